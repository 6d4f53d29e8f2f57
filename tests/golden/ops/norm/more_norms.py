"""Golden values of batch, group, instance and weight norm from PyTorch, in float64."""
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
x, w, b = torch.randn(3, 4, 5).double(), torch.randn(4).double(), torch.randn(4).double()
v, g = torch.randn(3, 6).double(), torch.randn(3).double()
save_file(
    {
        "x": x, "w": w, "b": b, "v": v, "g": g,
        "batch": F.batch_norm(x, None, None, w, b, training=True, eps=1e-5),
        "group": F.group_norm(x, 2, w, b, eps=1e-5),
        "instance": F.instance_norm(x, None, None, w, b, eps=1e-5),
        "weight": torch._weight_norm(v, g[:, None], 0).contiguous(),
    },
    pathlib.Path(__file__).with_suffix(".safetensors"),
)
