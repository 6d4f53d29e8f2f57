"""The norms of PyTorch and of Norma, forward and backward, on as many threads, taking turns in one run:

  ./dev build && python3 bench/peers/norms.py [--threads 2] [--sizes 64x64,65536x4096]

A row a cell: the least time a call took, ours and PyTorch's, their ratio (above 1: we are faster), and our
share of the copy bandwidth (the better of memcpy and a loop past the caches, of as many bytes as one tensor
has) where the tensors are larger than the last cache. Bytes: forward x and y, backward x, dy and dx."""

import argparse
import subprocess
import time

import torch
import torch.nn.functional as F

BEYOND = 64 << 20  # bytes of all tensors of a cell; smaller ones stay in the last cache


class Ours:
    def __init__(self, program, threads):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={"NORMA_THREADS": str(threads)})

    def us(self, kind, direction, rows, cols, seconds):
        self.process.stdin.write(f"{kind} {direction} {rows} {cols} {seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def torch_call(kind, direction, rows, cols):
    backward = direction == "backward"
    x = torch.randn(rows, cols, requires_grad=backward)
    w, b = torch.ones(cols, requires_grad=backward), torch.zeros(cols, requires_grad=backward)

    def norm():
        return F.layer_norm(x, (cols,), w, b, 1e-5) if kind == "layer" else F.rms_norm(x, (cols,), w, 1e-6)

    if not backward:
        return norm
    y, dy = norm(), torch.randn(rows, cols)
    inputs = (x, w, b) if kind == "layer" else (x, w)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def torch_us(call, seconds):
    least, calls, runs, end = float("inf"), 1, 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        took = 1e6 * (time.perf_counter() - begin)
        least = min(least, took / calls)
        runs += 1
        if took < 50:
            calls *= 2
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default="build/cpu/bench/norm_times")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.05, help="a turn")
    parser.add_argument("--sizes", default=",".join(f"{r}x{c}" for r in (1, 64, 1024, 65536)
                                                    for c in (64, 256, 1024, 4096)))
    parser.add_argument("--kinds", default="rms,layer")
    parser.add_argument("--directions", default="forward,backward")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    ours = Ours(a.program, a.threads)
    print(f"torch {torch.__version__}, {a.threads} threads; microseconds")
    print(f"{'norm':6} {'direction':9} {'rows x cols':>12} {'ours':>11} {'torch':>11} {'ratio':>6} {'of copy':>8}")
    slower = 0
    for size in a.sizes.split(","):
        rows, cols = map(int, size.split("x"))
        for kind in a.kinds.split(","):
            for direction in a.directions.split(","):
                moved = rows * cols * 4 * (2 if direction == "forward" else 3)
                call, mine, peer, copy = torch_call(kind, direction, rows, cols), [], [], []
                for _ in range(a.turns):
                    peer.append(torch_us(call, a.seconds))
                    time.sleep(0.01)  # its threads spin a while
                    mine.append(ours.us(kind, direction, rows, cols, a.seconds))
                del call
                share = ""
                if moved > BEYOND:
                    copy = min(ours.us("copy", "both", rows, cols, a.seconds) for _ in range(a.turns))
                    share = f"{100 * copy * moved / (rows * cols * 8) / min(mine):.0f} %"
                ratio = min(peer) / min(mine)
                slower += ratio < 1
                print(f"{kind:6} {direction:9} {size:>12} {min(mine):11.2f} {min(peer):11.2f} {ratio:6.2f} "
                      f"{share:>8}", flush=True)
    print(f"slower than PyTorch in {slower} cells")


main()
