"""Golden values of causal attention from PyTorch, in float64: full heads and shared ones."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
out = {}
for name, kv_heads in (("full", 4), ("grouped", 2)):
    q = torch.randn(2, 4, 9, 6).double().requires_grad_()
    k, v = (torch.randn(2, kv_heads, 9, 6).double().requires_grad_() for _ in range(2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != 4)
    dy = torch.randn_like(y)
    y.backward(dy)
    values = {"q": q, "k": k, "v": v, "y": y, "dy": dy, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    out |= {f"{name}.{key}": value.detach().contiguous() for key, value in values.items()}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
