"""Peers' norm kernels on one GPU, as shares of a copy on the device; bench/norm_cuda.cpp prints ours in the same form:

  python3 bench/peers/norm_gpu.py [--kind rms] [--dtype bfloat16] [--cols 1024,8192] [--rep 30]

Bytes are the fewest that an op can move: each tensor once. The second cache is flushed before each call; medians.
PyTorch eager always; Liger (liger_kernel/), mamba_ssm's Triton (mamba_layernorm_gated.py, with einops/) and quack
where they are found in bench/.carry/, which git ignores."""

import argparse
import os
import sys

sys.path.insert(0, os.environ.get("NORMA_PEERS", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.carry")))
import torch
import torch.nn.functional as F
from triton.testing import do_bench


def optional(name, load):
    try:
        return load()
    except Exception as error:  # a peer that is not here is named and left out
        print(f"no {name}: {error!r}"[:200], flush=True)
        return None


def liger():
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return {"rms": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False),
            "layer": lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, 1e-5)}


def mamba():
    import mamba_layernorm_gated as m

    return {"rms": lambda x, w: m.rmsnorm_fn(x, w, None, eps=1e-6),
            "layer": lambda x, w, b: m.layernorm_fn(x, w, b, eps=1e-5),
            "norm_then_gate": lambda x, w, z: m.rmsnorm_fn(x, w, None, z=z, eps=1e-6, norm_before_gate=True),
            "gate_then_norm": lambda x, w, z: m.rmsnorm_fn(x, w, None, z=z, eps=1e-6, norm_before_gate=False)}


def quack():
    from quack.rmsnorm import rmsnorm

    return {"rms": lambda x, w: rmsnorm(x, w, eps=1e-6)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="rms,layer,norm_then_gate,gate_then_norm")
    parser.add_argument("--dtype", default="bfloat16,float32")
    parser.add_argument("--cols", default="256,1024,4096,8192,16384,65536")
    parser.add_argument("--elements", type=int, default=1 << 27)
    parser.add_argument("--rep", type=int, default=30, help="milliseconds a measurement")
    args = parser.parse_args()
    peers = {"eager": {"rms": lambda x, w: F.rms_norm(x, (x.shape[-1],), w, 1e-6),
                       "layer": lambda x, w, b: F.layer_norm(x, (x.shape[-1],), w, b, 1e-5)}}
    peers |= {name: optional(name, load) or {} for name, load in (("liger", liger), ("mamba", mamba), ("quack", quack))}

    def median(fn):
        return do_bench(fn, warmup=5, rep=args.rep, return_mode="median")

    source = torch.empty(args.elements * 4, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / median(lambda: target.copy_(source)) / 1e6
    print(f"{torch.cuda.get_device_name()}: copy {copy:.0f} GB/s, torch {torch.__version__}", flush=True)
    del source, target
    for name in args.dtype.split(","):
        dtype = getattr(torch, name)
        for cols in map(int, args.cols.split(",")):
            rows = args.elements // cols

            def tensor(*shape):
                return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=True)

            x, z, w, b = tensor(rows, cols), tensor(rows, cols), tensor(cols), tensor(cols)
            for kind in args.kind.split(","):
                inputs = {"rms": (x, w), "layer": (x, w, b)}.get(kind, (x, w, z))
                for peer, kernels in peers.items():
                    if kind not in kernels:
                        continue
                    try:
                        y = kernels[kind](*inputs)
                        dy = torch.randn_like(y)
                        times = (median(lambda: kernels[kind](*inputs)),
                                 median(lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)))
                    except Exception as error:
                        print(f"{kind:14} {peer:8} {name} {cols} failed: {error!r}"[:200], flush=True)
                        continue
                    for direction, ms, tensors in zip(("forward", "backward"), times, (2 + (inputs[-1] is z), 3 + 2 * (inputs[-1] is z))):
                        speed = tensors * x.numel() * x.element_size() / ms / 1e6
                        print(f"{kind:14} {direction:8} {name:8} {rows:8}x{cols:<8} {1e3 * ms:9.1f} us {speed:6.0f} GB/s "
                              f"{100 * speed / copy:6.1f} % of copy  {peer}", flush=True)
            del x, z, w, b
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
