"""Golden values of every elementwise function from PyTorch, in float64, at awkward points and
ordinary ones, with the gradients for an upstream gradient of 1.5: elementwise.safetensors."""
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

INF, NAN = math.inf, math.nan
POINTS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 5.5, -5.5, 10.0, -10.0, 20.0, -20.0, 38.0, -38.0,
          89.0, -89.0, 710.0, -710.0, 746.0, -746.0, 1e-3, -1e-3, 1e-8, -1e-8, 1e-17, -1e-17, 1e-154, -1e-154,
          2.2250738585072014e-308, 5e-324, -5e-324, 1e154, -1e154, 1e300, -1e300, 1.7976931348623157e308,
          math.pi, -math.pi, math.pi / 2, math.nextafter(1, 2), math.nextafter(1, 0), math.nextafter(-1, 0),
          INF, -INF, NAN]
UNARY = {
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "square": torch.square,
    "reciprocal": torch.reciprocal, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "exp": torch.exp,
    "expm1": torch.expm1, "log": torch.log, "log1p": torch.log1p, "sin": torch.sin, "cos": torch.cos,
    "erf": torch.erf, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu,
    # F.softplus leaves out e^−x above its threshold of 20.
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)), "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    # At a bound PyTorch's clamp passes the whole gradient; ours, like minimum and maximum, half of it.
    "clamp": lambda x: torch.minimum(torch.maximum(x, torch.tensor(-1.0).double()), torch.tensor(1.0).double()),
}
BINARY = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
          "minimum": torch.minimum, "maximum": torch.maximum}
PAIRED = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 2.5, 1e-8, -1e200, 1e200, 5e-324, INF, -INF, NAN]
UPSTREAM = 1.5

x = torch.tensor(POINTS, dtype=torch.float64)
out = {"x": x}
for name, f in UNARY.items():
    u = x.clone().requires_grad_()
    y = f(u)
    y.backward(torch.full_like(y, UPSTREAM))
    out |= {f"{name}.y": y.detach(), f"{name}.dx": u.grad}

paired = torch.tensor(PAIRED, dtype=torch.float64)
a, b = paired.repeat_interleave(len(PAIRED)), paired.repeat(len(PAIRED))
out |= {"a": a, "b": b}
for name, f in BINARY.items():
    u, v = a.clone().requires_grad_(), b.clone().requires_grad_()
    y = f(u, v)
    y.backward(torch.full_like(y, UPSTREAM))
    out |= {f"{name}.y": y.detach(), f"{name}.da": u.grad, f"{name}.db": v.grad}
for name in ("eq", "ne", "lt", "le", "gt", "ge"):
    out[f"{name}.y"] = getattr(torch, name)(a, b)
u, v = a.clone().requires_grad_(), b.clone().requires_grad_()
y = torch.where(a > b, u, v)
y.backward(torch.full_like(y, UPSTREAM))
out |= {"where.y": y.detach(), "where.da": u.grad, "where.db": v.grad}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
