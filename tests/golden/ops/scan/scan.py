"""Golden values of the selective scan, by the recurrence as state-spaces/mamba's reference states it
(deltaA and deltaB_u for all steps at once, then a loop), in float64 PyTorch."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)


def selective_scan(u, delta, A, B, C, D, z, delta_bias, state, delta_softplus):
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    deltaA = torch.exp(torch.einsum("bte,en->bten", delta, A))
    deltaB_u = torch.einsum("bte,btn,bte->bten", delta, B, u)
    x = u.new_zeros(u.shape[0], *A.shape) if state is None else state
    ys = []
    for i in range(u.shape[1]):
        x = deltaA[:, i] * x + deltaB_u[:, i]
        ys.append(torch.einsum("ben,bn->be", x, C[:, i]))
    y = torch.stack(ys, 1)
    out = y if D is None else y + u * D
    return out if z is None else out * F.silu(z), x


out = {}
for name, (batch, length, channels, n), full, softplus in (
    ("full", (2, 9, 5, 3), True, True),
    ("bare", (2, 7, 3, 4), False, False),
):
    values = {
        "x": torch.randn(batch, length, channels),
        "dt": torch.rand(batch, length, channels),
        "a": -torch.rand(channels, n) - 0.1,
        "b": torch.randn(batch, length, n),
        "c": torch.randn(batch, length, n),
    }
    if full:
        values |= {
            "d": torch.randn(channels),
            "z": torch.randn(batch, length, channels),
            "dt_bias": torch.randn(channels),
            "state": torch.randn(batch, channels, n),
        }
    values = {key: value.double().requires_grad_() for key, value in values.items()}
    keys = ("x", "dt", "a", "b", "c", "d", "z", "dt_bias", "state")
    y, last = selective_scan(*(values.get(key) for key in keys), softplus)
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    torch.autograd.backward([y, last], [dy, dlast])
    values |= {"d" + key: value.grad for key, value in values.items()}
    values |= {"y": y, "last": last, "dy": dy, "dlast": dlast}
    out |= {f"{name}.{key}": value.detach().contiguous() for key, value in values.items()}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
