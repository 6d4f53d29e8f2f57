"""Golden values of the norm family from PyTorch, in float64: norm.safetensors beside this file."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
D, ROWS, EPS = 13, 5, 1e-5
out = {}


def record(name, forward, bias, gate):
    inputs = {"x": torch.randn(ROWS, D), "w": torch.randn(D)}
    if bias:
        inputs["b"] = torch.randn(D)
    if gate:
        inputs["z"] = torch.randn(ROWS, D)
    inputs = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y = forward(**inputs)
    dy = torch.randn(ROWS, D).double()
    y.backward(dy)
    out.update({f"{name}.{k}": v.detach() for k, v in inputs.items()})
    out.update({f"{name}.d{k}": v.grad for k, v in inputs.items()})
    out[f"{name}.y"], out[f"{name}.dy"] = y.detach(), dy


record("layer", lambda x, w, b: F.layer_norm(x, (D,), w, b, EPS), True, False)
record("rms", lambda x, w: F.rms_norm(x, (D,), w, EPS), False, False)
record("norm_then_gate", lambda x, w, z: F.rms_norm(x, (D,), w, EPS) * F.silu(z), False, True)
record("gate_then_norm", lambda x, w, z: F.rms_norm(x * F.silu(z), (D,), w, EPS), False, True)
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
