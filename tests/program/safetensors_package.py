"""safetensors_package.py NORMA: the Python package safetensors reads what norma saves, and norma goes on
from what the package writes, to the last bit. Without the package the test is skipped (exit 77)."""
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    from safetensors import safe_open
    from safetensors.numpy import save_file
except ImportError as error:
    print(f"skipped: {error} (python3 -m pip install safetensors numpy)")
    sys.exit(77)

WIDTH = 16
RUN = ["--task", "copying", "--n-layers", "1", "--n-heads", "2", "--d-model", str(WIDTH), "--batch", "4"]


def norma(*arguments):
    subprocess.run([sys.argv[1], *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def load(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def curve(folder):
    """Every column of the metrics but the last, the speed."""
    return [line.split(",")[:5] for line in (folder / "metrics.csv").read_text().splitlines()]


with tempfile.TemporaryDirectory() as temporary:
    ours, theirs = pathlib.Path(temporary, "ours"), pathlib.Path(temporary, "theirs")
    norma("train", *RUN, "--steps", 4, "--checkpoint-every", 2, "--out", ours)
    middle, end = "step-000002.safetensors", "step-000004.safetensors"
    tensors, metadata = load(ours / middle)
    weight = tensors["model.h.0.attn.c_attn.weight"]
    assert weight.shape == (3 * WIDTH, WIDTH) and weight.dtype == "float32", (weight.shape, weight.dtype)
    assert 0 < abs(weight).max() < 1, "weights begin small"
    assert tensors["optimizer.m.h.0.attn.c_attn.weight"].shape == weight.shape
    assert metadata["step"] == "2" and json.loads(metadata["options"])["d_model"] == WIDTH

    theirs.mkdir()
    for name in ("config.json", "metrics.csv"):
        (theirs / name).write_bytes((ours / name).read_bytes())
    # The package orders and aligns as it likes.
    save_file(dict(reversed(tensors.items())), theirs / middle, metadata)
    norma("train", "--resume", theirs)
    assert curve(theirs) == curve(ours), "a run must go on the same from the package's file"
    (a, _), (b, _) = load(ours / end), load(theirs / end)
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a), "to the last bit"
    print(f"{len(tensors)} tensors read by the package, written by it, and gone on with to the last bit")
