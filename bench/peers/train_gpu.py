"""A training step of nanoGPT's models with PyTorch, beside bench/train.cpp: forward, backward, gradient
clipping, fused AdamW, on random tokens. Eager, torch.compile, reduce-overhead, and the whole step in
one CUDA graph.

    python bench/peers/train_gpu.py [toy] [char] [gpt2]

The model is written here in full (LayerNorm without bias, learned positions, tied output, GPT-2's
tanh GELU), so that both sides compute the same.
"""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

from graph import captured, seconds_a_call


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_out = nn.Linear(width, width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(c, dim=2)
        q, k, v = (u.view(b, t, self.heads, c // self.heads).transpose(1, 2) for u in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers, heads, width, context, vocabulary):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = (2 * layers) ** -0.5 if "c_out" in name or "c_proj" in name else 1
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


CASES = {  # layers, heads, width, context, vocabulary; batch, bf16, steps, modes
    "toy": ((4, 4, 128, 64, 65), 12, False, 200, ("eager", "compile", "reduce-overhead", "graph")),
    "char": ((6, 6, 384, 256, 65), 64, True, 100, ("eager", "compile", "reduce-overhead", "graph")),
    "gpt2": ((12, 12, 768, 1024, 50304), 32, True, 12, ("eager", "compile")),
}


def measure(shape, batch, bf16, mode, steps):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = GPT(*shape).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=True, capturable=True)
    tokens = torch.randint(0, shape[4], (2, batch, shape[3]), device="cuda")
    run = {"compile": lambda: torch.compile(model),
           "reduce-overhead": lambda: torch.compile(model, mode="reduce-overhead")}.get(mode, lambda: model)()

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = run(tokens[0], tokens[1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    go = captured(step) if mode == "graph" else step
    go()
    torch.cuda.reset_peak_memory_stats()  # what compiling took does not count
    return seconds_a_call(go, steps), torch.cuda.max_memory_allocated() / 2**30


torch.set_float32_matmul_precision("high")  # tf32, as the toy's row says
print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
for name in sys.argv[1:] or CASES:
    shape, batch, bf16, steps, modes = CASES[name]
    for mode in modes:
        try:
            seconds, peak = measure(shape, batch, bf16, mode, steps)
            print(f"{name:6} {'bf16' if bf16 else 'tf32'}  {mode:16} {1e3 * seconds:9.3f} ms a step"
                  f" {batch * shape[3] / seconds:12.0f} tokens/s  peak {peak:.2f} GiB", flush=True)
        except Exception as error:
            print(name, mode, "failed:", repr(error)[:200], flush=True)
        torch.cuda.empty_cache()
