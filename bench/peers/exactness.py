"""Errors of other libraries' norms, for bench/exactness.py:

    python bench/peers/exactness.py --draws FOLDER [--device cuda] [--cols 1,4096] > peers.txt

The cases, sizes, unit and inputs of bench/exactness.cpp, from the draws that it left in FOLDER. PyTorch
always; on a GPU also the Triton kernels of Liger (liger_kernel/) and mamba_ssm (mamba_layernorm_gated.py, with
einops/) where they are installed, or found in $NORMA_PEERS or in bench/.carry/, which git ignores.
"""
import argparse
import math
import os
import sys

sys.path.insert(0, os.environ.get("NORMA_PEERS", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.carry")))
import torch
import torch.nn.functional as F

COLS = "1,2,7,64,257,1024,4096,65536,131072"
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def bad(n, i, c):
    odd = (i % 2 == 1) & (c == i % 3)
    return torch.where(odd & (i % 4 == 1), math.nan, torch.where(odd, math.inf, n))


CASES = {
    "normal": (1e-5, lambda n, i, c, top, low: n),
    "mean 1e4, deviation 1": (1e-5, lambda n, i, c, top, low: 1e4 + n),
    "mean 1e6, deviation 1": (1e-5, lambda n, i, c, top, low: (6e4 if top < 1e6 else 1e6) + n),
    "1e-20": (1e-5, lambda n, i, c, top, low: n * 1e-20),
    "1e-20, eps 0": (0.0, lambda n, i, c, top, low: n * 1e-20),
    "subnormal, eps 0": (0.0, lambda n, i, c, top, low: n * low / 8),
    "near overflow": (1e-5, lambda n, i, c, top, low: top * (n / 6.8).clamp(-1, 1)),
    "one of 1e4 in 1e-3": (1e-5, lambda n, i, c, top, low: torch.where(c == i % 7, 1e4, n * 1e-3)),
    "constant rows": (1e-5, lambda n, i, c, top, low: (1 + (i % 1000) / 7).expand_as(n)),
    "alternating ±1e3": (1e-5, lambda n, i, c, top, low: torch.where(c % 2 == 1, -1e3, 1e3) + n),
    "a NaN or Inf in every other row": (1e-5, lambda n, i, c, top, low: bad(n, i, c)),
    "eps 0": (0.0, lambda n, i, c, top, low: n),
    "1e-6, eps 1e-12": (1e-12, lambda n, i, c, top, low: n * 1e-6),
}


def methods(device):
    def torch_norm(kind, x, w, b, eps):
        if kind == "layer":
            return F.layer_norm(x, x.shape[-1:], w, b, eps)
        return F.rms_norm(x, x.shape[-1:], w, eps) if b is None else None

    found = {"PyTorch": torch_norm}
    if device != "cuda":
        return found
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        def liger(kind, x, w, b, eps):
            if x.shape[-1] > 65536:
                return None
            if kind == "layer":
                return LigerLayerNormFunction.apply(x, w, b, eps)
            return LigerRMSNormFunction.apply(x, w, eps, 0.0, "gemma", False)

        found["Liger"] = liger
    except ImportError:
        pass
    try:
        from mamba_layernorm_gated import layernorm_fn, rmsnorm_fn

        def mamba(kind, x, w, b, eps):
            if x.shape[-1] * x.element_size() >= 65536:
                return None
            return (layernorm_fn if kind == "layer" else rmsnorm_fn)(x, w, b, eps=eps)

        found["mamba_ssm"] = mamba
    except ImportError:
        pass
    return found


def errors(y, x, w, b, eps, kind, unit):
    wide = x.double()
    mean = wide.mean(-1, keepdim=True) if kind == "layer" else torch.zeros_like(wide[:, :1])
    c = wide - mean
    if kind == "layer":
        c = c - c.mean(-1, keepdim=True)
    rho = c.square().mean(-1, keepdim=True).sqrt()
    rstd = 1 / (rho.square() + eps).sqrt()
    w, b = w.double(), b.double() if b is not None else torch.zeros_like(w, dtype=torch.float64)
    exact = w * (c * rstd) + b
    share = torch.where(rho.isfinite(), rstd * rho, 1)
    scale = unit * ((w * c * rstd).abs() + w.abs() * share + b.abs())
    scale = scale + unit**2 * w.abs() * rstd * mean.abs()
    y = y.double()
    good = exact.isfinite()
    wrong = (good & ~y.isfinite()) | (exact.isnan() & ~y.isnan()) | (exact.isinf() & (y != exact))
    both = good & y.isfinite()
    e = torch.where(scale == 0, 0, (y - exact).abs() / scale)[both]
    largest = e.max().item() if e.numel() else 0
    return largest, e.mean().item() if e.numel() else 0, int(wrong.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draws", required=True)
    parser.add_argument("--cols", default=COLS)
    a = parser.parse_args()

    def drawn(cols, what, dtype):
        t = torch.from_file(f"{a.draws}/{cols}.{what}", dtype=dtype,
                            size=os.path.getsize(f"{a.draws}/{cols}.{what}") // dtype.itemsize)
        return t.to(a.device)

    found = methods(a.device)
    for cols in map(int, a.cols.split(",")):
        noise = drawn(cols, "noise", torch.float64).reshape(-1, cols)
        i = torch.arange(noise.shape[0], device=a.device).unsqueeze(1)
        c = torch.arange(cols, device=a.device)
        for name, (eps, value) in CASES.items():
            for dtype, unit in UNIT.items():
                top, low = (65504.0, 2.0**-14) if dtype == torch.float16 else (3.38e38, 2.0**-126)
                x = value(noise, i, c, top, low).float().to(dtype)
                w, b = (drawn(cols, what, torch.float32).to(dtype) for what in "wb")
                for kind in ("layer", "rms"):
                    bias = b if kind == "layer" else None
                    for method, f in found.items():
                        y = f(kind, x, w, bias, eps)
                        if y is None:
                            continue
                        largest, mean, wrong = errors(y, x, w, bias, eps, kind, unit)
                        line = [method, kind, str(dtype).removeprefix("torch."), name]
                        print(*line, cols, largest, mean, wrong, sep=";", flush=True)


main()
