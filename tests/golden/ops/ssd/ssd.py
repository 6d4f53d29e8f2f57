"""Golden values of the state-space dual in float64 PyTorch, by the chunked algorithm of the paper's
Listing 1 (Dao & Gu 2024, arXiv:2405.21060): segment sums, four products a chunk."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)


def segsum(x):
    T = x.size(-1)
    x = x.unsqueeze(-1).expand(*x.shape, T)
    x = x.masked_fill(~torch.tril(torch.ones(T, T, dtype=bool), -1), 0)
    return torch.cumsum(x, -2).masked_fill(~torch.tril(torch.ones(T, T, dtype=bool)), -torch.inf)


def ssd(x, dt, a, b, c, d, dt_bias, state, limits, chunk):
    """T a multiple of chunk; b and c already one a head."""
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias).clamp(*limits)
    X, A = x * dt.unsqueeze(-1), dt * a
    X, B, C = (t.unflatten(1, (-1, chunk)) for t in (X, b, c))
    A = A.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2)
    A_cumsum = torch.cumsum(A, -1)
    L = torch.exp(segsum(A))
    Y_diag = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, L, X)
    decay_states = torch.exp(A_cumsum[..., -1:] - A_cumsum)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, decay_states, X)
    first = torch.zeros_like(states[:, :1]) if state is None else state.unsqueeze(1)
    states = torch.cat([first, states], 1)
    decay_chunk = torch.exp(segsum(F.pad(A_cumsum[..., -1], (1, 0))))
    states = torch.einsum("bhzc,bchpn->bzhpn", decay_chunk, states)
    states, last = states[:, :-1], states[:, -1]
    Y_off = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(A_cumsum))
    y = (Y_diag + Y_off).flatten(1, 2)
    return y if d is None else y + (d if d.dim() == 2 else d.unsqueeze(-1)) * x, last


out = {}
for name, groups, full, wide, limits in (
    ("one", 1, False, False, (0.0, float("inf"))),
    ("two", 2, True, False, (0.4, 1.2)),
    ("eight", 8, True, True, (0.0, float("inf"))),
):
    batch, length, heads, head_dim, n = 2, 12, 8, 3, 4
    values = {
        "x": torch.randn(batch, length, heads, head_dim),
        "dt": torch.randn(batch, length, heads),
        "a": -torch.rand(heads) - 0.1,
        "b": torch.randn(batch, length, groups, n),
        "c": torch.randn(batch, length, groups, n),
    }
    if full:
        values |= {
            "d": torch.randn(heads, head_dim) if wide else torch.randn(heads),
            "dt_bias": torch.randn(heads),
            "state": torch.randn(batch, heads, head_dim, n),
        }
    values = {key: value.double().requires_grad_() for key, value in values.items()}
    each = {k: v.repeat_interleave(heads // groups, 2) if k in "bc" else v for k, v in values.items()}
    keys = ("x", "dt", "a", "b", "c", "d", "dt_bias", "state")
    y, last = ssd(*(each.get(key) for key in keys), limits, 4)
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    torch.autograd.backward([y, last], [dy, dlast])
    values |= {"d" + key: value.grad for key, value in values.items()}
    values |= {"y": y, "last": last, "dy": dy, "dlast": dlast}
    out |= {f"{name}.{key}": value.detach().contiguous() for key, value in values.items()}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
