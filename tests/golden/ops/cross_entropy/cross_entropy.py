"""Golden values of the cross entropy from PyTorch, in float64."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
out = {}
for name, smoothing in (("plain", 0.0), ("smoothed", 0.2)):
    logits = (torch.randn(6, 11).double() * 2).requires_grad_()
    targets = torch.randint(0, 11, (6,))
    targets[2] = -1
    loss = F.cross_entropy(logits, targets, ignore_index=-1, label_smoothing=smoothing)
    loss.backward()
    out |= {f"{name}.logits": logits.detach(), f"{name}.targets": targets}
    out |= {f"{name}.loss": loss.detach(), f"{name}.dlogits": logits.grad}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
