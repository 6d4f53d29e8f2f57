"""The twin of nn::Transformer (placement pre) in PyTorch, with the same names of parameters, and the
golden values of two small ones in float64: transformer.safetensors beside this file."""
import pathlib

import torch
import torch.nn.functional as F
from torch import nn

EPS = {"rms": 1e-6, "layer": 1e-5}


class Norm(nn.Module):
    def __init__(self, kind, dim, bias=False):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias and kind == "layer" else None

    def forward(self, x):
        if self.kind == "rms":
            return F.rms_norm(x, self.weight.shape, self.weight, EPS["rms"])
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS["layer"])


def rotary(x, base=10000.0):
    """Pairs i and i + D/2 of row t turn by t · base^(−2i/D)."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Attention(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.heads, self.kv_heads = o["n_heads"], o["n_kv_heads"] or o["n_heads"]
        self.dim, self.rotary = o["d_model"] // self.heads, o["positions"] == "rotary"
        self.c_attn = nn.Linear(o["d_model"], (self.heads + 2 * self.kv_heads) * self.dim, bias=o["bias"])
        self.c_proj = nn.Linear(o["d_model"], o["d_model"], bias=o["bias"])
        if o["qk_norm"]:
            self.q_norm, self.k_norm = Norm(o["norm"], self.dim), Norm(o["norm"], self.dim)
        self.qk_norm = o["qk_norm"]

    def forward(self, x):
        batch, length, width = x.shape
        sizes = [self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim]
        q, k, v = (t.view(batch, length, -1, self.dim).transpose(1, 2) for t in self.c_attn(x).split(sizes, -1))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotary(q), rotary(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.gated = o["mlp"] == "swiglu"
        d_ff = o["d_ff"] or ((8 * o["d_model"] // 3 + 7) // 8 * 8 if self.gated else 4 * o["d_model"])
        self.c_fc = nn.Linear(o["d_model"], d_ff * (2 if self.gated else 1), bias=o["bias"])
        self.c_proj = nn.Linear(d_ff, o["d_model"], bias=o["bias"])

    def forward(self, x):
        u = self.c_fc(x)
        if not self.gated:
            return self.c_proj(F.gelu(u))
        a, b = u.chunk(2, -1)
        return self.c_proj(F.silu(a) * b)


class Block(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.ln_1, self.ln_2 = (Norm(o["norm"], o["d_model"], o["bias"]) for _ in range(2))
        self.attn, self.mlp = Attention(o), Mlp(o)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """`o`: the fields of TransformerOptions as a dict."""

    def __init__(self, o):
        super().__init__()
        self.wte = nn.Embedding(o["vocab_size"], o["d_model"])
        self.wpe = nn.Embedding(o["context"], o["d_model"]) if o["positions"] == "learned" else None
        self.h = nn.ModuleList(Block(o) for _ in range(o["n_layers"]))
        self.ln_f = Norm(o["norm"], o["d_model"], o["bias"])
        self.lm_head = None if o["tie"] else nn.Linear(o["d_model"], o["vocab_size"], bias=False)

    def forward(self, tokens):
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight if self.lm_head is None else self.lm_head.weight)


COMMON = {"vocab_size": 7, "context": 6, "n_layers": 2, "n_heads": 3, "n_kv_heads": 0, "d_model": 12, "d_ff": 16}
CASES = {
    "layer_gelu": COMMON | {"norm": "layer", "mlp": "gelu", "positions": "learned", "qk_norm": False,
                            "bias": True, "tie": True},
    "rms_swiglu": COMMON | {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True,
                            "bias": False, "tie": False, "n_kv_heads": 1},
}


def main():
    from safetensors.torch import save_file

    torch.manual_seed(0)
    out = {}
    for name, options in CASES.items():
        model = Transformer(options).double()
        with torch.no_grad():
            for parameter in model.parameters():
                # Float32 values of a size that makes every part matter, gains around 1.
                values = torch.randn(parameter.shape) * 0.3 + (0 if parameter.dim() > 1 else 1)
                parameter.copy_(values)
        tokens = torch.randint(0, 7, (3, 6))
        targets = torch.randint(0, 7, (3, 6))
        targets[1, 4:] = -1
        logits = model(tokens)
        loss = F.cross_entropy(logits.view(-1, 7), targets.view(-1), ignore_index=-1)
        loss.backward()
        out |= {f"{name}.tokens": tokens.int(), f"{name}.targets": targets.int(),
                f"{name}.logits": logits.detach(), f"{name}.loss": loss.detach()}
        for key, parameter in model.named_parameters():
            out[f"{name}.model.{key}"] = parameter.detach().float()
            out[f"{name}.grad.{key}"] = parameter.grad
    save_file({k: v.contiguous() for k, v in out.items()}, pathlib.Path(__file__).with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
