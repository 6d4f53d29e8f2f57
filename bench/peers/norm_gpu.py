"""Peers' norm kernels on one GPU, in the lines that bench/norm_cuda.cpp prints ours in; ./dev bench norms sets them
side by side:

  python3 bench/peers/norm_gpu.py [--kind rms] [--dtype bfloat16] [--shapes odd] [--cols 1024,8192] [--peers liger,quack]
      [--direction forward]

Bytes are the fewest that an op can move: each tensor once. As in ours, the second cache is flushed before each call, and
the median of seven counts; a call is replayed as a CUDA graph, so that Python's time is in none. The odd and toy shapes
are not flushed: a call's share of a graph of 100. PyTorch eager always; torch.compile at D 1024, 8192 and 65536; Liger
(liger_kernel/), mamba_ssm's Triton (mamba_layernorm_gated.py, with einops/) and quack where they are found in
$NORMA_PEERS or in bench/.carry/, which git ignores. Compiling takes most of the time, so several workers compile, each
its share, and only when all have done so do they time it, one after the other."""

import argparse
import functools
import multiprocessing
import os
import sys
import time
import typing

sys.path.insert(0, os.environ.get("NORMA_PEERS", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.carry")))
try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(f"norm_gpu: no peers without PyTorch: {error}", file=sys.stderr)
    sys.exit(77)

KINDS = ("rms", "layer", "norm_then_gate", "gate_then_norm", "layer_gated", "add_rms", "add_rms_wide", "dyt", "derf")
GRID = (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 8192, 12288, 16384, 32768, 65536, 131072)
COMPILED = (1024, 8192, 65536)
ELEMENTS = 1 << 27
ODD = [(ELEMENTS // d, d) for d in (257, 1000, 4097, 65537)] + [(1, 4096), (16, 4096), (132, 4096), (4, 131072)] + [
    (1 << 22, d) for d in (32, 64, 128)]
TOY = [(256, 64), (768, 64), (768, 128), (2048, 128), (4096, 128), (768, 256), (768, 384), (2048, 256), (256, 512),
       (1024, 512), (12288, 32), (49152, 16), (16, 512), (64, 1024)]


# Inputs of a kind in order: x, then z or the residual, then α and the shift, then w, then b.
def rms_norm(x, w):
    return F.rms_norm(x, (x.shape[-1],), w, 1e-6)


def layer_norm(x, w, b):
    return F.layer_norm(x, (x.shape[-1],), w, b, 1e-5)


def add_rms(x, r, w):
    h = x + r
    return F.rms_norm(h.to(x.dtype), (x.shape[-1],), w, 1e-6), h


FORMULAS = {"rms": rms_norm, "layer": layer_norm,
            "norm_then_gate": lambda x, z, w: rms_norm(x, w) * F.silu(z),
            "gate_then_norm": lambda x, z, w: rms_norm(x * F.silu(z), w),
            "layer_gated": lambda x, z, w, b: layer_norm(x, w, b) * F.silu(z),
            "add_rms": add_rms, "add_rms_wide": add_rms,
            "dyt": lambda x, alpha, w, b: torch.tanh(alpha * x) * w + b,
            "derf": lambda x, alpha, shift, w, b: torch.erf(alpha * x + shift) * w + b}


def written_out(kind):
    """For torch.compile, whose own kernels are fastest from a formula in float32."""

    def norm(u, w, b=None):
        u = u.float()
        if b is not None:
            u = u - u.mean(-1, keepdim=True)
        n = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6) * w.float()
        return n if b is None else n + b.float()

    def add(x, r, w):
        h = x + r
        return norm(h, w).to(x.dtype), h

    return {"rms": lambda x, w: norm(x, w).to(x.dtype), "layer": layer_norm,
            "norm_then_gate": lambda x, z, w: (norm(x, w) * F.silu(z.float())).to(x.dtype),
            "gate_then_norm": lambda x, z, w: norm(x.float() * F.silu(z.float()), w).to(x.dtype),
            "layer_gated": lambda x, z, w, b: (norm(x, w, b) * F.silu(z.float())).to(x.dtype),
            "add_rms": add, "add_rms_wide": add,
            "dyt": FORMULAS["dyt"], "derf": FORMULAS["derf"]}[kind]


def liger():
    from liger_kernel.ops.dyt import LigerDyTFunction
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction as fused
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return {"rms": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False),
            "layer": lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, 1e-5),
            "add_rms": lambda x, r, w: fused.apply(x, r, w, 1e-6, 0.0, "llama", False),
            "dyt": LigerDyTFunction.apply}


def mamba():
    import mamba_layernorm_gated as m

    return {"rms": lambda x, w: m.rmsnorm_fn(x, w, None, eps=1e-6),
            "layer": lambda x, w, b: m.layernorm_fn(x, w, b, eps=1e-5),
            "norm_then_gate": lambda x, z, w: m.rmsnorm_fn(x, w, None, z=z, eps=1e-6, norm_before_gate=True),
            "gate_then_norm": lambda x, z, w: m.rmsnorm_fn(x, w, None, z=z, eps=1e-6, norm_before_gate=False),
            "layer_gated": lambda x, z, w, b: m.layernorm_fn(x, w, b, z=z, eps=1e-5, norm_before_gate=True)}


def quack():
    from quack.rmsnorm import layernorm_fwd, rmsnorm

    @functools.lru_cache(maxsize=4)
    def wide(weight):  # its LayerNorm, which has no backward, takes float32 weights alone: made outside of what is timed
        return weight.detach().float()

    def added(x, r, w):
        return rmsnorm(x, w, residual=r, eps=1e-6, prenorm=True, residual_dtype=r.dtype)

    return {"rms": lambda x, w: rmsnorm(x, w, eps=1e-6), "add_rms": added, "add_rms_wide": added,
            "layer": lambda x, w, b: layernorm_fwd(x.detach(), wide(w), wide(b), eps=1e-5)}


def optional(name, load):
    try:
        return load()
    except Exception as error:  # a peer that is not here is named and left out
        print(f"no {name}: {error!r}"[:200], flush=True)
        return {}


class Cell:
    """One kind, dtype and size: its tensors, and what its directions move."""

    def __init__(self, kind, dtype, rows, cols):
        def tensor(*shape, dtype=dtype):
            return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=True)

        wide = torch.float32 if kind == "add_rms_wide" else dtype
        self.gated, self.added = "gate" in kind, kind.startswith("add_rms")
        self.inputs = [tensor(rows, cols)]
        if self.gated or self.added:
            self.inputs.append(tensor(rows, cols, dtype=wide if self.added else dtype))
        squash = kind in ("dyt", "derf")
        if squash:
            self.inputs += [tensor(1) for _ in range(2 if kind == "derf" else 1)]
        self.inputs.append(tensor(cols))
        if "layer" in kind or squash:
            self.inputs.append(tensor(cols))
        t, h, n = dtype.itemsize, wide.itemsize, rows * cols
        self.bytes = {"forward": n * (2 * t + self.gated * t + self.added * 2 * h),
                      "backward": n * (2 * t + h + self.gated * 2 * t + self.added * h + (h if wide != dtype else 0))}

    def gradients_of(self, y):
        return [torch.randn_like(t) for t in (y if isinstance(y, tuple) else (y,))]


class Clock:
    def __init__(self, calls):
        self.calls, self.flush = calls, calls == 1
        self.cache = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def median(self, call):
        times = []
        turns = 7 if self.flush else 3
        for i in range(turns + 1):
            torch.cuda._sleep(1_000_000)  # half a millisecond, so that the call is queued before its turn comes
            if self.flush:
                self.cache.zero_()
            self.events[0].record()
            call()
            self.events[1].record()
            self.events[1].synchronize()
            if i > 0:
                times.append(1e3 * self.events[0].elapsed_time(self.events[1]))
        return sorted(times)[turns // 2]

    def microseconds(self, call):
        call(), call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(self.calls):
                call()
        return self.median(graph.replay) / self.calls


def sizes(args):
    if args.shapes != "grid":
        return ODD if args.shapes == "odd" else TOY
    return [(args.rows or max(1, args.elements // d), d) for d in map(int, args.cols.split(","))]


def keep_buffers():
    """torch.compile's backward may be called again: it is timed many times."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def tune_alone(turn):
    """torch.compile chooses among kernels by their time: no two workers at once."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    tune = CachingAutotuner.autotune_to_one_config

    def alone(self, *args, **kwargs):
        with turn:
            return tune(self, *args, **kwargs)

    CachingAutotuner.autotune_to_one_config = alone


class Task(typing.NamedTuple):
    """One peer's kernels for one kind, dtype and size."""

    peer: str
    kind: str
    dtype: str
    rows: int
    cols: int
    direction: str

    def has_backward(self, y):
        return self.direction != "forward" and (isinstance(y, tuple) or y.requires_grad)

    def cell(self):
        torch.cuda.empty_cache()
        return Cell(self.kind, getattr(torch, self.dtype), self.rows, self.cols)

    def failed(self, error):
        why = repr(error)[:160].replace("\n", " ")
        print(f"{self.kind:14} {self.peer:8} {self.dtype} {self.rows}x{self.cols} failed: {why}", flush=True)

    def warm_up(self, norm):
        """Its kernels are compiled when this returns, or why not is said."""
        cell = self.cell()
        try:
            y = norm(*cell.inputs)
            if self.has_backward(y):
                torch.autograd.grad(y, cell.inputs, cell.gradients_of(y))
            return True
        except Exception as error:
            self.failed(error)
            return False

    def time(self, norm, clock, copy):
        cell = self.cell()
        try:
            y = norm(*cell.inputs)
            times = {}
            if self.direction != "backward":
                times["forward"] = clock.microseconds(lambda: norm(*cell.inputs))
            dy = cell.gradients_of(y)
            if self.has_backward(y):
                times["backward"] = clock.microseconds(
                    lambda: torch.autograd.grad(y, cell.inputs, dy, retain_graph=True))
        except Exception as error:
            self.failed(error)
            return
        for direction, us in times.items():
            speed = cell.bytes[direction] / us / 1e3
            print(f"{self.kind:14} {direction:8} {self.dtype:8} {self.rows:8}x{self.cols:<8} {us:10.2f} us "
                  f"{speed:6.0f} GB/s {100 * speed / copy:6.1f} % of copy  {self.peer}", flush=True)


def tasks_of(args):
    """By the worker that does them. What is compiled at first use is dealt out; the last worker has the rest."""
    peers = args.peers.split(",")
    all_tasks = [Task(peer, kind, dtype, rows, cols, args.direction) for peer in peers for kind in args.kind.split(",")
                 for dtype in args.dtype.split(",") for rows, cols in sizes(args)
                 if peer != "compile" or cols in COMPILED]
    all_tasks.sort(key=lambda task: task.peer != "compile")
    slow = [task for task in all_tasks if task.peer != "eager"]
    dealt = [slow[i::args.workers] for i in range(args.workers)]
    return [tasks for tasks in [*dealt, [task for task in all_tasks if task not in slow]] if tasks]


def measured_copy(args, clock):
    source = torch.empty(args.elements * 4, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / clock.median(lambda: target.copy_(source)) / 1e3
    print(f"{torch.cuda.get_device_name()}: copy {copy:.0f} GB/s, torch {torch.__version__}; "
          f"compiled in {time.monotonic() - args.began:.0f} s", flush=True)
    return copy


def work(args, tasks, all_warm, turn, copy):
    """A worker: compiles beside the others, waits until none does, then has the GPU for itself."""
    loaders = {"liger": liger, "mamba": mamba, "quack": quack, "eager": lambda: FORMULAS, "compile": lambda: {
        kind: torch.compile(written_out(kind), dynamic=False) for kind in KINDS}}
    peers = {name: optional(name, loaders[name]) for name in {task.peer for task in tasks}}
    if "compile" in peers:
        keep_buffers()
        tune_alone(turn)
    # A backward runs on its forward's stream, and a graph is captured on one that is not the default.
    with torch.cuda.stream(torch.cuda.Stream()):
        ready = [task for task in tasks if task.kind in peers[task.peer] and
                 task.warm_up(peers[task.peer][task.kind])]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        all_warm.wait(timeout=600)
        with turn:
            clock = Clock(1 if args.shapes == "grid" else 100)
            if copy.value == 0:
                copy.value = measured_copy(args, clock)
            for task in ready:
                task.time(peers[task.peer][task.kind], clock, copy.value)
            torch.cuda.synchronize()


def run(args):
    """The exit code: that of the worst worker."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["torch"])  # imported once for all
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the workers are the threads
    dealt = tasks_of(args)
    all_warm, turn, copy = start.Barrier(len(dealt)), start.RLock(), start.Value("d", 0)
    workers = [start.Process(target=work, args=(args, tasks, all_warm, turn, copy)) for tasks in dealt]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(0.1)
            if worker.exitcode:
                all_warm.abort()  # the others need not wait for it
    return max(abs(worker.exitcode) for worker in workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default=",".join(KINDS))
    parser.add_argument("--dtype", default="bfloat16,float32")
    parser.add_argument("--shapes", default="grid", choices=("grid", "odd", "toy"))
    parser.add_argument("--cols", default=",".join(map(str, GRID)))
    parser.add_argument("--direction", default="both", choices=("forward", "backward", "both"))
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--peers", default="eager,liger,mamba,quack,compile")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count()), help="that compile at once")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"norm_gpu: PyTorch {torch.__version__} finds no GPU", file=sys.stderr)
        return 77
    args.began = time.monotonic()
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
