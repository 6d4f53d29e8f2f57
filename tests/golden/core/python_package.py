"""A file as the Python package writes it: every dtype that Norma reads, an empty tensor, a scalar,
metadata. The values are small whole numbers: 0 … n − 1, for bool its parity."""
import pathlib

import torch
from safetensors.torch import save_file

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16,
          "bfloat16": torch.bfloat16, "int64": torch.int64, "int32": torch.int32}
out = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
out["bool"] = torch.arange(6).reshape(2, 3) % 2 == 1
out["scalar"] = torch.tensor(3.5)
out["empty"] = torch.zeros(0, 4)
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"), metadata={"made by": "the package", "ü": "\"\n"})
