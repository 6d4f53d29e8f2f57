"""PyTorch's fused causal attention: flash (also deterministic) and cuDNN; as bench/attention."""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
print(torch.cuda.get_device_name(), torch.__version__)


def measure(name, head, length, deterministic=False):
    batch, heads = max(1, 32768 // length), 2048 // head
    q, k, v = (torch.randn(batch, heads, length, head, device="cuda", dtype=torch.bfloat16,
                           requires_grad=True) for _ in range(3))
    torch.use_deterministic_algorithms(deterministic)
    with sdpa_kernel(BACKENDS[name]):
        forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = forward()
        dy = torch.randn_like(y)
        backward = lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)
        f, b = (do_bench(g, warmup=10, rep=40, return_mode="median") for g in (forward, backward))
    torch.use_deterministic_algorithms(False)
    flops = 2 * batch * heads * length * length * head
    what = name + (" det." if deterministic else "")
    print(f"{what:10s} head {head:3d}  T {length:5d}  forward {f:7.3f} ms {flops / f / 1e9:4.0f} "
          f"TFLOP/s  backward {b:7.3f} ms {2.5 * flops / b / 1e9:4.0f}", flush=True)


for head in (64, 128):
    for length in (256, 1024, 4096, 16384):
        for name, deterministic in (("flash", False), ("flash", True), ("cudnn", False)):
            try:
                measure(name, head, length, deterministic)
            except RuntimeError as error:
                print(name, head, length, "failed:", str(error)[:100])
