"""Does Norma train as PyTorch does? The same model from the same initial weights (our checkpoint) on the
same batches, in both; loss curves and validation side by side:

  python3 bench/peers/parity.py TEXT [--steps 2000] [--build build/cpu] [--set norm=layer mlp=swiglu …]

The first steps run in PyTorch in float64 too, which tells a difference in the mathematics from rounding.
Ends with 1 where the curves part by more than 0.01: validation at any evaluation, or the training loss
averaged over 100 steps."""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

HOUSE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOUSE / "tests/golden/nn"))
from transformer import Transformer  # noqa: E402  our transformer's twin in PyTorch

ALLOWED, WINDOW, EXACT_STEPS = 0.01, 100, 50
DEFAULTS = {"context": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 0, "d_model": 128, "d_ff": 0, "norm": "rms",
            "mlp": "gelu", "positions": "learned", "qk_norm": False, "tie": True, "batch": 12, "lr": 1e-3,
            "min_lr": 1e-4, "warmup": 100, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "clip": 1.0,
            "seed": 1, "eval_every": 250}


def learning_rate(c, step):
    if step < c["warmup"]:
        return c["lr"] * (step + 1) / (c["warmup"] + 1)
    done = (step - c["warmup"]) / max(1, c["steps"] - c["warmup"])
    return c["min_lr"] + (c["lr"] - c["min_lr"]) * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model, inputs, targets, reduction="mean"):
    logits = model(inputs.long())
    return F.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), ignore_index=-1, reduction=reduction)


@torch.no_grad()
def validate(model, inputs, targets):
    total = sum(loss_of(model, x, y, "sum").item() for x, y in zip(inputs.split(64), targets.split(64)))
    return total / (targets >= 0).sum().item()


def train_torch(c, weights, data, dtype, steps):
    """Yields the loss of each step and, where Norma evaluates, the validation loss."""
    model = Transformer(c | {"bias": False, "vocab_size": weights["wte.weight"].shape[0]}).to(dtype)
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items()})
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": c["weight_decay"]},
                                   {"params": gains, "weight_decay": 0.0}],
                                  betas=(c["beta1"], c["beta2"]), eps=1e-8)
    for step in range(steps):
        loss = loss_of(model, data["inputs"][step], data["targets"][step])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c["clip"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(c, step)
        optimizer.step()
        last = step + 1 == c["steps"]
        measured = (step + 1) % c["eval_every"] == 0 or last
        if (step + 1) % WINDOW == 0:
            print(f"\rtorch: step {step + 1}", end="", file=sys.stderr, flush=True)
        yield loss.item(), validate(model, data["validation_inputs"], data["validation_targets"]) if measured else None


def value_of(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--build", default=str(HOUSE / "build/cpu"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of the run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    c = DEFAULTS | {"text": arguments.text, "steps": arguments.steps, "placement": "pre", "dropout": 0.0,
                    "optimizer": "adamw", "schedule": "cosine", "checkpoint_every": arguments.steps}
    c |= {key: value_of(value) for key, value in (pair.split("=") for pair in arguments.set)}

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "config.json").write_text(json.dumps(c))
        build = pathlib.Path(arguments.build)
        subprocess.run([build / "examples/export_run", folder / "config.json", folder / "export"], check=True)
        subprocess.run([build / "norma", "train", "--config", folder / "config.json", "--out", folder / "run",
                        "--threads", str(arguments.threads)], check=True, stdout=subprocess.DEVNULL)
        rows = [line.split(",") for line in (folder / "run/metrics.csv").read_text().splitlines()]
        header, rows = rows[0], rows[1:]
        column = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        ours = [float(v) for v in column["loss"]]
        ours_validation = [float(v) if v else None for v in column["validation"]]
        checkpoint = load_file(folder / "export/initial.safetensors")
        weights = {k.removeprefix("model."): v for k, v in checkpoint.items() if k.startswith("model.")}
        data = {name: torch.from_numpy(numpy.load(folder / f"export/{name}.npy"))
                for name in ("inputs", "targets", "validation_inputs", "validation_targets")}

    off_lr = max(abs(float(v) / learning_rate(c, step) - 1) for step, v in enumerate(column["lr"]))
    print(f"learning rates differ by at most {off_lr:.1e} of their size")
    exact_c = c | {"eval_every": c["steps"] + 1}
    steps = min(EXACT_STEPS, c["steps"] - 1)
    exact = [loss for loss, _ in train_torch(exact_c, weights, data, torch.float64, steps)]
    theirs, theirs_validation = zip(*train_torch(c, weights, data, torch.float32, c["steps"]))
    print(file=sys.stderr)
    print(f"\n{'step':>6}  |norma − exact|  |torch − exact|   (exact: PyTorch in float64)")
    for step in [0, 1, 2, 4, 9, 19, 29, 39, 49]:
        if step < steps:
            print(f"{step + 1:>6}  {abs(ours[step] - exact[step]):>15.2e}  {abs(theirs[step] - exact[step]):>15.2e}")
    print(f"\n{'step':>6}  {'norma':>9}  {'torch':>9}  difference   (validation loss)")
    worst = 0.0
    for step, (a, b) in enumerate(zip(ours_validation, theirs_validation)):
        # The last evaluation of both is of the whole validation part; so are all where it has ≤ 2048 rows.
        if a is not None and (step + 1 == c["steps"] or len(data["validation_inputs"]) <= 2048):
            worst = max(worst, abs(a - b))
            print(f"{step + 1:>6}  {a:>9.5f}  {b:>9.5f}  {a - b:>+10.5f}")
    window = min(WINDOW, len(ours))
    mean = lambda v, i: sum(v[i : i + window]) / window
    curve = max(abs(mean(ours, i) - mean(theirs, i)) for i in range(0, len(ours) - window + 1, window))
    single = max(abs(a - b) for a, b in zip(ours, theirs))
    print(f"\ntraining loss: means over {window} steps differ by at most {curve:.5f}, single steps by {single:.5f}")
    print(f"validation loss differs by at most {worst:.5f}; allowed {ALLOWED}")
    return 0 if max(worst, curve) <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
