"""Golden values of whole Mamba blocks in float64 PyTorch: output and every gradient. Written from the
papers' formulas, one token at a time; where the package transformers is installed its own Mamba
classes are run on the same weights in float32 and must agree."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
BATCH, LENGTH, WIDTH = 2, 13, 8


def conv(x, weight, bias):
    y = F.conv1d(F.pad(x.transpose(1, 2), (weight.size(-1) - 1, 0)), weight, bias, groups=x.size(-1))
    return F.silu(y).transpose(1, 2)


def mamba1(u, p):
    x, z = (u @ p["in_proj.weight"].t()).chunk(2, -1)
    x = conv(x, p["conv1d.weight"], p["conv1d.bias"])
    rank, n = p["dt_proj.weight"].size(1), p["A_log"].size(1)
    delta, b, c = (x @ p["x_proj.weight"].t()).split([rank, n, n], -1)
    delta = F.softplus(delta @ p["dt_proj.weight"].t() + p["dt_proj.bias"])
    a, h, ys = -p["A_log"].exp(), torch.zeros(BATCH, x.size(-1), n, dtype=u.dtype), []
    for t in range(LENGTH):
        d = delta[:, t, :, None]
        h = torch.exp(d * a) * h + d * x[:, t, :, None] * b[:, t, None, :]
        ys.append((h * c[:, t, None, :]).sum(-1) + p["D"] * x[:, t])
    return (torch.stack(ys, 1) * F.silu(z)) @ p["out_proj.weight"].t()


def mamba2(u, p, groups, head_dim, n, gate_first, layer, eps=1e-5):
    heads, inner = p["A_log"].numel(), p["norm.weight"].numel()
    z, xbc, dt = (u @ p["in_proj.weight"].t()).split([inner, inner + 2 * groups * n, heads], -1)
    x, b, c = conv(xbc, p["conv1d.weight"], p["conv1d.bias"]).split([inner, groups * n, groups * n], -1)
    x = x.unflatten(-1, (heads, head_dim))
    b, c = (t.unflatten(-1, (groups, n)).repeat_interleave(heads // groups, 2) for t in (b, c))
    dt = F.softplus(dt + p["dt_bias"])
    a, s, ys = -p["A_log"].exp(), torch.zeros(BATCH, heads, head_dim, n, dtype=u.dtype), []
    for t in range(LENGTH):
        step = dt[:, t, :, None, None]
        s = torch.exp(step * a[:, None, None]) * s + step * x[:, t, :, :, None] * b[:, t, :, None, :]
        ys.append((s * c[:, t, :, None, :]).sum(-1) + p["D"][:, None] * x[:, t])
    y = torch.stack(ys, 1).flatten(-2)
    v = (y * F.silu(z) if gate_first else y).unflatten(-1, (groups, -1))
    if layer:
        v = v - v.mean(-1, keepdim=True)
    v = (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps)).flatten(-2) * p["norm.weight"]
    if layer:
        v = v + p["norm.bias"]
    return (v if gate_first else v * F.silu(z)) @ p["out_proj.weight"].t()


def mamba3(u, p, groups, head_dim, n, fraction, eps=1e-5):
    heads, inner, angles = p["D"].numel(), 2 * WIDTH, int(n * fraction) // 2
    z, x, b, c, dt, alpha, tau, phi = (u @ p["in_proj.weight"].t()).split(
        [inner, inner, groups * n, groups * n, heads, heads, heads, angles], -1)
    x = x.unflatten(-1, (heads, head_dim))
    dt, lam = F.softplus(dt + p["dt_bias"]), torch.sigmoid(tau)
    a = -torch.where(alpha >= 0, 1 + alpha, 1 / (1 - alpha)).clamp(min=1e-4)

    def prepared(v, weight, bias):
        v = v.unflatten(-1, (groups, n))
        v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) * weight
        return v.repeat_interleave(heads // groups, 2) + bias[:, 0]

    def turned(v, theta):
        """As complex numbers, which the package does not do."""
        pairs = torch.view_as_complex(v[..., :2 * angles].unflatten(-1, (angles, 2)).contiguous())
        pairs = torch.view_as_real(pairs * torch.exp(1j * theta)).flatten(-2)
        return torch.cat([pairs, v[..., 2 * angles:]], -1)

    b, c = prepared(b, p["B_norm.weight"], p["B_bias"]), prepared(c, p["C_norm.weight"], p["C_bias"])
    theta = torch.zeros(BATCH, heads, angles, dtype=u.dtype)
    s = torch.zeros(BATCH, heads, head_dim, n, dtype=u.dtype)
    before, ys = torch.zeros_like(s), []
    for t in range(LENGTH):
        step, half = dt[:, t], lam[:, t]
        theta = theta + torch.pi * torch.tanh(phi[:, t, None, :]) * step[..., None]
        now = x[:, t, :, :, None] * turned(b[:, t], theta)[:, :, None, :]
        s = torch.exp(step * a[:, t])[..., None, None] * (s + ((1 - half) * step)[..., None, None] * before)
        s = s + (half * step)[..., None, None] * now
        before = now
        ys.append((s * turned(c[:, t], theta)[:, :, None, :]).sum(-1) + p["D"][:, None] * x[:, t])
    y = torch.stack(ys, 1)
    if "norm.weight" in p:
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        y = y * p["norm.weight"].view(heads, head_dim)
    return (y.flatten(-2) * F.silu(z)) @ p["out_proj.weight"].t()


def away(*shape, around=0.0, size=1.0):
    """Weights away from ones and zeros."""
    return (around + size * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def weights1():
    inner, n, rank = 2 * WIDTH, 3, 1
    return {
        "A_log": away(inner, n, around=0.5, size=0.4), "D": away(inner, around=1, size=0.3),
        "in_proj.weight": away(2 * inner, WIDTH, size=0.4), "conv1d.weight": away(inner, 1, 4, size=0.5),
        "conv1d.bias": away(inner, size=0.3), "x_proj.weight": away(rank + 2 * n, inner, size=0.4),
        "dt_proj.weight": away(inner, rank, size=0.5), "dt_proj.bias": away(inner, around=-1, size=0.5),
        "out_proj.weight": away(WIDTH, inner, size=0.3),
    }


def weights2(groups, head_dim, n, layer):
    inner = 2 * WIDTH
    heads, channels = inner // head_dim, inner + 2 * groups * n
    p = {
        "dt_bias": away(heads, around=-1, size=0.5), "A_log": away(heads, around=0.5, size=0.4),
        "D": away(heads, around=1, size=0.3),
        "in_proj.weight": away(inner + channels + heads, WIDTH, size=0.4),
        "conv1d.weight": away(channels, 1, 4, size=0.5), "conv1d.bias": away(channels, size=0.3),
        "norm.weight": away(inner, around=1, size=0.3), "out_proj.weight": away(WIDTH, inner, size=0.3),
    }
    return p | ({"norm.bias": away(inner, size=0.3)} if layer else {})


def weights3(groups, head_dim, n, fraction, norm):
    inner = 2 * WIDTH
    heads = inner // head_dim
    rows = 2 * inner + 2 * groups * n + 3 * heads + int(n * fraction) // 2
    p = {
        "dt_bias": away(heads, around=-1, size=0.5), "B_bias": away(heads, 1, n, around=1, size=0.3),
        "C_bias": away(heads, 1, n, around=1, size=0.3), "D": away(heads, around=1, size=0.3),
        "in_proj.weight": away(rows, WIDTH, size=0.4), "B_norm.weight": away(n, around=1, size=0.3),
        "C_norm.weight": away(n, around=1, size=0.3), "out_proj.weight": away(WIDTH, inner, size=0.3),
    }
    return p | ({"norm.weight": away(inner, around=1, size=0.3)} if norm else {})


def compare_with_transformers(name, mixer, u, p, values):
    """Their class in float32 against the formula: output and every gradient."""
    mixer.load_state_dict({key: value.detach().float() for key, value in p.items()}, strict=True)
    v = u.detach().float().requires_grad_()
    theirs = mixer(v)
    theirs.backward(values[f"{name}.dy"].float())
    pairs = {"y": theirs, "du": v.grad} | {"d." + key: w.grad for key, w in mixer.named_parameters()}
    for key, value in pairs.items():
        expected = values[f"{name}.{key}"].float()
        error = ((value - expected).norm() / expected.norm()).item()
        print(f"{name}: transformers differs by {error:.1e} in {key}")
        assert error < 1e-5, (name, key)


def check_with_transformers(name, u, p, values, settings):
    try:
        from transformers import Mamba2Config, MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    except ImportError:
        return print(f"{name}: transformers is not installed, not compared")
    if settings is None:
        config = MambaConfig(hidden_size=WIDTH, state_size=3, expand=2, conv_kernel=4,
                             time_step_rank=1, use_bias=False, use_conv_bias=True)
        return compare_with_transformers(name, MambaMixer(config, 0), u, p, values)
    groups, head_dim, n, gate_first, layer = settings
    if groups > 1 or not gate_first or layer:
        return print(f"{name}: their class has no such norm, not compared")
    config = Mamba2Config(hidden_size=WIDTH, state_size=n, expand=2, conv_kernel=4, n_groups=groups,
                          num_heads=2 * WIDTH // head_dim, head_dim=head_dim, chunk_size=4,
                          use_bias=False, use_conv_bias=True, layer_norm_epsilon=1e-5)
    compare_with_transformers(name, Mamba2Mixer(config, 0), u, p, values)


def values_of(name, u, p, y):
    dy = torch.randn_like(y)
    y.backward(dy)
    values = {"u": u, "y": y, "dy": dy, "du": u.grad}
    values |= {key: value for key, value in p.items()} | {"d." + key: v.grad for key, v in p.items()}
    return {f"{name}.{key}": value.detach().contiguous() for key, value in values.items()}


out = {}
cases = {"mamba1": None, "mamba2": (1, 4, 3, True, False), "mamba2_first": (2, 4, 3, False, False),
         "mamba2_groups": (8, 2, 3, True, False), "mamba2_layer": (2, 4, 3, True, True)}
for name, settings in cases.items():
    u = away(BATCH, LENGTH, WIDTH)
    p = weights1() if settings is None else weights2(settings[0], settings[1], settings[2], settings[4])
    y = mamba1(u, p) if settings is None else mamba2(u, p, *settings)
    values = values_of(name, u, p, y)
    out |= values
    with torch.random.fork_rng():  # their classes draw weights
        check_with_transformers(name, u, p, values, settings)
for name, (*settings, norm) in {"mamba3": (1, 4, 6, 0.5, False), "mamba3_groups": (2, 4, 6, 1, False),
                                "mamba3_norm": (4, 4, 6, 1, True)}.items():
    u, p = away(BATCH, LENGTH, WIDTH), weights3(*settings, norm)
    out |= values_of(name, u, p, mamba3(u, p, *settings))
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
