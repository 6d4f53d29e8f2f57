"""mamba_ssm's and causal_conv1d's kernels and models on one GPU, beside bench/mamba.cpp and bench/train.cpp.

    python bench/peers/mamba_gpu.py [ssd] [scan] [conv1d] [mamba1] [mamba2]

What is not installed is named and left out: SSD is Triton and needs no build, the selective scan, conv1d
and the models need the packages' CUDA extensions. Sources are looked for in $NORMA_PEERS first.
"""
import os
import sys

sys.path[:0] = [p for p in [os.environ.get("NORMA_PEERS")] if p]

import torch
import torch.nn.functional as F
from graph import captured, seconds_a_call
from triton.testing import do_bench


def median(run):
    return do_bench(run, warmup=20, rep=100, return_mode="median")


def leaf(*shape, dtype=torch.bfloat16, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(dtype).requires_grad_()


def rates(*shape):
    return (-torch.rand(*shape, device="cuda") * 15 - 1).requires_grad_()


def report(name, forward, inputs):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = forward()
    dy = torch.randn_like(y)
    backward = lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
    backward()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    print(f"{name:44} forward {median(forward):8.3f} ms  backward {median(backward):8.3f} ms  peak {peak:.0f} MiB",
          flush=True)


def ssd():
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    heads, head, state = 24, 64, 128
    for batch, length in ((8, 2048), (64, 256), (1, 16384), (1, 131072)):
        x, dt = leaf(batch, length, heads, head), leaf(batch, length, heads, scale=0.5)
        b, c = leaf(batch, length, 1, state), leaf(batch, length, 1, state)
        a, d = rates(heads), torch.ones(heads, device="cuda", requires_grad=True)
        report(f"ssd B {batch}, T {length}, 24 × 64, N 128",
               lambda: mamba_chunk_scan_combined(x, dt, a, b, c, 256, D=d, dt_bias=0 * d, dt_softplus=True),
               (x, dt, a, b, c, d))


def scan():
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    width, state = 1536, 16
    for dtype in (torch.bfloat16, torch.float32):
        for batch, length in ((8, 2048), (1, 16384)):
            x, z = leaf(batch, width, length, dtype=dtype), leaf(batch, width, length, dtype=dtype)
            dt = leaf(batch, width, length, dtype=dtype, scale=0.5)
            b, c = leaf(batch, 1, state, length, dtype=dtype), leaf(batch, 1, state, length, dtype=dtype)
            a, d = rates(width, state), torch.ones(width, device="cuda", requires_grad=True)
            report(f"scan {str(dtype)[6:]} B {batch}, T {length}, E 1536, N 16",
                   lambda: selective_scan_fn(x, dt, a, b, c, d, z=z, delta_bias=0 * d, delta_softplus=True),
                   (x, dt, a, b, c, d, z))


def conv1d():
    from causal_conv1d import causal_conv1d_fn
    for dtype in (torch.bfloat16, torch.float32):
        x = leaf(8, 2048, 1792, dtype=dtype)
        w, b = leaf(1792, 4, dtype=dtype), leaf(1792, dtype=dtype)
        report(f"conv1d {str(dtype)[6:]} B 8, T 2048, C 1792",
               lambda: causal_conv1d_fn(x.transpose(1, 2), w, b, activation="silu"), (x, w, b))


def training(kind, **more):
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    batch, length, vocabulary = 16, 1024, 50288
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = MambaLMHeadModel(
        MambaConfig(d_model=768, n_layer=24, vocab_size=vocabulary, ssm_cfg={"layer": kind, **more}, rms_norm=True,
                    residual_in_fp32=True, fused_add_norm=True), device="cuda")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True,
                             capturable=True)
    tokens = torch.randint(0, vocabulary, (2, batch, length), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens[0]).logits
        F.cross_entropy(logits.float().view(-1, logits.shape[-1]), tokens[1].view(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    seconds = seconds_a_call(captured(step), 12)
    print(f"{kind} 130M, one CUDA graph: {1e3 * seconds:.1f} ms a step, {batch * length / seconds:.0f} tokens/s,"
          f" peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB", flush=True)


CASES = {"ssd": ssd, "scan": scan, "conv1d": conv1d, "mamba1": lambda: training("Mamba1"),
         "mamba2": lambda: training("Mamba2", headdim=64)}

torch.manual_seed(0)
a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
b = torch.empty_like(a)
print(torch.cuda.get_device_name(), "PyTorch", torch.__version__,
      f"copy {2 * a.numel() / median(lambda: b.copy_(a)) / 1e6:.0f} GB/s")
del a, b
for name in sys.argv[1:] or CASES:
    try:
        CASES[name]()
    except Exception as error:
        print(name, "left out:", repr(error)[:200].replace("\n", " "), flush=True)
