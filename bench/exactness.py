"""How exact norms are, as a page: docs/exactness.md, or with --device cuda docs/exactness-gpu.md.

  ./dev bench exactness [--device cuda] [--elements LOG2] [--page FILE]

bench/exactness.cpp draws the inputs and measures ours and the ways to find a variance; bench/peers/exactness.py
measures PyTorch's, Liger's and mamba_ssm's kernels on the same inputs, where they are found. Exit code 77 where there is
no GPU for --device cuda."""

import argparse
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def program_for(gpu):
    """In $NORMA_BUILD, which ./dev sets to build/cpu where nobody else did, or where a GPU's builds are."""
    folders = [os.environ.get("NORMA_BUILD", "build/cpu")]
    if gpu and folders[0] == "build/cpu":
        folders = ["build/cuda-hopper", "build/cuda", "build/cuda-native"]
    programs = [os.path.join(HERE, "..", folder, "bench", "exactness") for folder in folders]
    for program in programs:
        if os.access(program, os.X_OK):
            return program
    print("exactness: no build has", *programs, file=sys.stderr)
    sys.exit(1)


def start_peers(folder, device):
    """Their processes and the files that they write. On a GPU a process a D: Triton's compiler takes most of the time."""
    script = [sys.executable, os.path.join(HERE, "peers", "exactness.py"), "--device", device, "--draws", folder]
    cols = sorted(name.removesuffix(".noise") for name in os.listdir(folder) if name.endswith(".noise"))
    started = []
    for share in cols if device != "cpu" else [",".join(cols)]:
        path = os.path.join(folder, share + ".peers")
        with open(path, "w") as file:
            started.append((subprocess.Popen([*script, "--cols", share], stdout=file), path))
    return started


def what_they_measured(started):
    codes = [process.wait() for process, _ in started]
    if any(codes):
        print("exactness: no peers in the page: their programs ended with", *codes, file=sys.stderr)
        return ""
    lines = []
    for _, path in started:
        with open(path) as file:
            lines.append(file.read())
    return "".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--elements", type=int, help="of each D, as a power of two: 16, on a GPU 20")
    parser.add_argument("--page")
    a = parser.parse_args()
    gpu = a.device != "cpu"
    elements = str(a.elements or (20 if gpu else 16))
    page = a.page or os.path.join(HERE, "../docs", "exactness-gpu.md" if gpu else "exactness.md")
    program = program_for(gpu)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, "--elements", elements, "--only-draw", folder], check=True)
        peers = start_peers(folder, a.device)
        ours = subprocess.Popen([program, "--elements", elements, "--device", a.device, "--peers", "/dev/stdin"],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # which it reads last
        text, _ = ours.communicate(what_they_measured(peers))
    if ours.returncode == 0:
        with open(page, "w") as file:
            file.write(text)
    return ours.returncode


if __name__ == "__main__":
    sys.exit(main())
