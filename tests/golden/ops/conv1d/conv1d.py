"""Golden values of the causal depthwise convolution from PyTorch's conv1d, in float64."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
B, T, C = 2, 7, 5
out = {}
for name, width, activation, bias, past in (
    ("plain", 4, lambda p: p, False, False),
    ("silu", 4, F.silu, True, False),
    ("silu3", 3, F.silu, True, True),
    ("silu2", 2, F.silu, False, True),
):
    x = torch.randn(B, T, C).double().requires_grad_()
    w = torch.randn(C, width).double().requires_grad_()
    values = {"x": x, "w": w}
    if bias:
        values["b"] = torch.randn(C).double().requires_grad_()
    if past:
        values["state"] = torch.randn(B, width - 1, C).double().requires_grad_()
    before = values["state"] if past else torch.zeros(B, width - 1, C).double()
    u = torch.cat([before, x], 1).transpose(1, 2)
    y = activation(F.conv1d(u, w.unsqueeze(1), values.get("b"), groups=C)).transpose(1, 2)
    dy = torch.randn(B, T, C).double()
    y.backward(dy)
    grads = {"d" + key: value.grad for key, value in values.items()}
    values |= grads | {"y": y, "dy": dy}
    out |= {f"{name}.{key}": value.detach().contiguous() for key, value in values.items()}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
