"""A training step of the toy model (4 layers, d_model 128, 4 heads, 64 tokens, batch 12, vocabulary 65)
in PyTorch, eager and compiled, and in Norma, on as many threads, taking turns in one run:

  python3 bench/peers/toy.py TEXT [--threads 2] [--program build/cpu/norma] [--turns 3]

TEXT is any text of 65 different bytes, such as tiny Shakespeare."""

import argparse
import statistics
import subprocess
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn

C, HEADS, LAYERS, T, BATCH, VOCAB = 128, 4, 4, 64, 12, 65


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.RMSNorm(C), nn.RMSNorm(C)
        self.attn, self.proj = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        heads = (t.view(BATCH, T, HEADS, C // HEADS).transpose(1, 2) for t in self.attn(self.ln_1(x)).split(C, -1))
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(BATCH, T, C))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, C), nn.Embedding(T, C)
        self.h, self.ln_f = nn.ModuleList(Block() for _ in range(LAYERS)), nn.RMSNorm(C)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def torch_step_ms(model, optimizer, steps=60):
    times = []
    for step in range(steps + 10):
        x, y = (torch.randint(0, VOCAB, (BATCH, T)) for _ in range(2))
        begin = time.perf_counter()
        loss = F.cross_entropy(model(x).view(-1, VOCAB), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        if step >= 10:
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def norma_step_ms(program, text, threads):
    """The median of single steps, as PyTorch's: a line of metrics has the mean rate since the run began."""
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "train", "--text", text, "--steps", "80", "--eval-every", "100000",
                   "--checkpoint-every", "100000", "--threads", str(threads), "--out", folder + "/run"]
        subprocess.run(command, check=True, capture_output=True)
        with open(folder + "/run/metrics.csv") as file:
            rates = [float(line.split(",")[-1]) for line in file.read().splitlines()[1:]]
    ends = [1e3 * BATCH * T * step / rate for step, rate in enumerate(rates, 1)]
    steps = [end - begin for begin, end in zip(ends, ends[1:])]
    anew = next((i for i, step in enumerate(steps) if step < 0), len(steps))  # after 5 s the mean begins anew
    return statistics.median(steps[20:anew])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default="build/cpu/norma")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {"eager": Model(), "compiled": torch.compile(Model())}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for name, model in models.items()}
    best = dict.fromkeys(["norma", *models], float("inf"))
    for _ in range(arguments.turns):  # the least median: what the machine does beside only adds
        for name, model in models.items():
            best[name] = min(best[name], torch_step_ms(model, optimizers[name]))
        best["norma"] = min(best["norma"], norma_step_ms(arguments.program, arguments.text, arguments.threads))
    ours, eager, compiled = best["norma"], best["eager"], best["compiled"]
    print(f"toy step on {arguments.threads} threads: norma {ours:.1f} ms, torch {torch.__version__} eager "
          f"{eager:.1f} ms, compiled {compiled:.1f} ms: {min(eager, compiled) / ours:.2f} times as fast")


main()
