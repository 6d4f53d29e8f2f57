"""Golden values of the family's features from PyTorch, in float64: features.safetensors beside this file."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(1)
ROWS, D, EPS = 3, 12, 1e-5
out = {}


def record(name, forward, shapes, second=False):
    inputs = {k: torch.randn(s, dtype=torch.float64).requires_grad_() for k, s in shapes.items()}
    results = forward(**inputs)
    results = results if isinstance(results, dict) else {"y": results}
    cotangents = {k: torch.randn_like(v) for k, v in results.items()}
    grads = torch.autograd.grad(
        results.values(), inputs.values(), cotangents.values(), create_graph=second
    )
    out.update({f"{name}.{k}": v.detach() for k, v in inputs.items()})
    out.update({f"{name}.{k}": v.detach() for k, v in results.items()})
    out.update({f"{name}.d{k}": v for k, v in cotangents.items()})
    out.update({f"{name}.grad.{k}": v.detach() for k, v in zip(inputs, grads)})
    if second:  # of the gradient in x alone
        v = torch.randn_like(grads[0])
        of = torch.autograd.grad((grads[0] * v).sum(), inputs.values(), allow_unused=True)
        out[f"{name}.v"] = v
        out.update({f"{name}.second.{k}": g for k, g in zip(inputs, of) if g is not None})


x, w, row = (ROWS, D), (D,), (ROWS,)


def residual(x, w, residual, row_scale):
    h = x * row_scale[:, None] + residual
    return {"h": h, "y": F.rms_norm(h, (D,), 1 + w, EPS)}


def two(x, w, b, w2, b2):
    return {"y": F.layer_norm(x, (D,), w, b, EPS), "y2": F.layer_norm(x, (D,), w2, b2, EPS)}


def grouped(x, w, b, z):
    u = (x * z * torch.sigmoid(1.7 * z)).view(ROWS, 3, 4)
    return (F.layer_norm(u, (4,), None, None, EPS) * w + b).view(ROWS, D)


record("l2", lambda x, w: w * x / (x.square().sum(-1, keepdim=True) + EPS).sqrt(), dict(x=x, w=w), True)
record("layer", lambda x, w, b: F.layer_norm(x, (D,), w, b, EPS), dict(x=x, w=w, b=w), True)
record("rms", lambda x, w: F.rms_norm(x, (D,), w, EPS), dict(x=x, w=w), True)
record("gelu", lambda x, w, b, z: F.layer_norm(x, (D,), w, b, EPS) * F.gelu(z), dict(x=x, w=w, b=w, z=x))
record("swish_groups", grouped, dict(x=x, w=(4,), b=(4,), z=x))
record("residual", residual, dict(x=x, w=w, residual=x, row_scale=row))
record("two", two, dict(x=x, w=w, b=w, w2=w, b2=w))
record("dyt", lambda x, alpha, w, b: w * torch.tanh(alpha * x) + b, dict(x=x, alpha=(1,), w=w, b=w))
record(
    "derf",
    lambda x, alpha, shift, w, b: w * torch.erf(alpha * x + shift) + b,
    dict(x=x, alpha=(1,), shift=(1,), w=w, b=w),
)
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
