"""Trajectories of PyTorch's optimizers in float64 over given gradients: optimizer.safetensors."""
import pathlib

import torch
from safetensors.torch import save_file

torch.manual_seed(0)
STEPS, N = 12, 6
start = torch.randn(N).double()
# Gradients of very different sizes, one always zero (v stays 0), one that changes its sign.
scale = torch.tensor([1.0, 1e-6, 1e4, 0.0, 1.0, 1.0], dtype=torch.float64)
grads = torch.randn(STEPS, N).double() * scale
grads[:, 4] = torch.tensor([(-1.0) ** t for t in range(STEPS)])
lr = torch.tensor([1e-3 * (t + 1) if t < 4 else 5e-3 / (t + 1) for t in range(STEPS)], dtype=torch.float64)
out = {"start": start, "grads": grads, "lr": lr}


def trajectory(make, decay=0.0):
    """Decay that SGD couples is done by hand, decoupled, as in AdamW's paper."""
    p = start.clone().requires_grad_()
    optimizer = make([p])
    points = []
    for t in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr[t].item()
        with torch.no_grad():
            p.mul_(1 - lr[t] * decay)
        p.grad = grads[t].clone()
        optimizer.step()
        points.append(p.detach().clone())
    return torch.stack(points)


AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
out["adamw"] = trajectory(lambda p: AdamW(p, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1))
out["adamw_large_eps"] = trajectory(lambda p: AdamW(p, betas=(0.8, 0.999), eps=1e-3, weight_decay=0.0))
out["sgd"] = trajectory(lambda p: SGD(p, lr=0.0), decay=0.1)
out["momentum"] = trajectory(lambda p: SGD(p, lr=0.0, momentum=0.9))
out["nesterov"] = trajectory(lambda p: SGD(p, lr=0.0, momentum=0.9, nesterov=True), decay=0.1)
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
