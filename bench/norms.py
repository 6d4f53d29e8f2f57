"""The norm family on this GPU beside its peers, a slice a run, all slices in one table:

  ./dev bench norms --kind rms --dtype bfloat16          a slice: runs ours and every peer that is found
  ./dev bench norms --kind rms --dtype float32 --shapes odd
  ./dev bench norms --show                               the merged table as Markdown
  ./dev bench norms --picture docs/norm-speed.png        the same as curves, one panel a kind and direction

A slice prints µs, % of the copy on the device and % of a plain streaming kernel of the same reads and writes for ours, and
% of the same copy for each peer (bench/peers/norm_gpu.py says where they are looked for). It replaces the cells that it has
in the table (--table, norms.csv in the build folder by default), each with the id of its run. Exit code 77 where there
is no GPU or no build for one."""

import argparse
import csv
import datetime
import os
import re
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SKIPPED = 77
LINE = re.compile(r"(\S+) +(forward|backward) +(\S+) +(\d+)x(\d+) +([\d.]+) us +(\d+) GB/s +([\d.]+) % of copy +(\S+)$")
COPY = re.compile(r"copy (\d+) GB/s")  # said before any cell
KEY = ("shapes", "kind", "dtype", "direction", "rows", "cols", "who")
FIELDS = KEY + ("us", "share", "run")
PEERS = ("eager", "compile", "liger", "mamba", "quack")


def program():
    folders = [os.environ.get("NORMA_BUILD", ""), "build/cuda-hopper", "build/cuda", "build/cuda-native"]
    for folder in filter(None, folders):
        path = os.path.join(HERE, "..", folder, "bench", "norm_cuda") if not os.path.isabs(folder) else os.path.join(
            folder, "bench", "norm_cuda")
        if os.access(path, os.X_OK):
            return path
    print("norms: nothing to time: no build for a GPU has bench/norm_cuda (cmake --preset cuda-native; NORMA_BUILD names "
          "its folder); the processor's norms are ./dev bench norm", file=sys.stderr)
    sys.exit(SKIPPED)


def lines_of(command, record, copy=None):
    """Runs it, shows what it says, gives its cells to record, with shares of `copy` GB/s or of its own; both the exit
    code and that copy."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        match = LINE.match(line.rstrip())
        if match:
            *cell, speed, _, who = match.groups()
            record(*cell, f"{100 * float(speed) / copy:.1f}", who)
        else:
            print(line.rstrip(), flush=True)
            said = COPY.search(line)
            copy = copy or (float(said[1]) if said else None)
    return process.wait(), copy


def read(path):
    if not os.path.exists(path):
        return {}
    with open(path, newline="") as file:
        return {tuple(row[k] for k in KEY): row for row in csv.DictReader(file)}


def write(path, cells):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".new", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(cells.values())
    os.replace(path + ".new", path)


def rows_of(cells):
    """Cells by (shapes, kind, dtype, direction), then size, then who, in the order in which they came."""
    table = {}
    for cell in cells.values():
        key = tuple(cell[k] for k in KEY[:4])
        table.setdefault(key, {}).setdefault((int(cell["rows"]), int(cell["cols"])), {})[cell["who"]] = cell
    return table


def number(cell, field):
    return float(cell[field])


def print_slice(cells):
    for (shapes, kind, dtype, direction), sizes in rows_of(cells).items():
        print(f"\n{kind} {dtype} {direction}" + (", µs a call in a graph of 100" if shapes != "grid" else ", % of copy"))
        head = ("µs", "norma", "stream") if shapes == "grid" else ("norma",)
        print(f"{'rows x cols':>16}" + "".join(f"{h:>9}" for h in head + PEERS) + "   best peer / ours")
        for (rows, cols), who in sizes.items():
            print(f"{f'{rows} x {cols}':>16}" + slice_row(shapes, who))
    sys.stdout.flush()


def slice_row(shapes, who):
    field = "share" if shapes == "grid" else "us"
    mine = who.get("norma")
    text = []
    if shapes == "grid":
        text.append(f"{number(mine, 'us'):.1f}" if mine else "")
    text.append(f"{number(mine, field):.1f}" if mine else "")
    if shapes == "grid":
        stream = who.get("stream")
        text.append(f"{100 * number(stream, 'us') / number(mine, 'us'):.1f}" if mine and stream else "")
    text += [f"{number(who[p], field):.1f}" if p in who else "" for p in PEERS]
    line = "".join(f"{t:>9}" for t in text)
    peers = [p for p in PEERS if p in who]
    if mine and peers:
        best = min(peers, key=lambda p: number(who[p], "us"))
        line += f"   {number(who[best], 'us') / number(mine, 'us'):.2f} {best}"
    return line


def show(cells):
    """Markdown: a row a direction, a column a size. Ours, after a slash of the streaming kernel; after a dot the best
    peer's with its first letter; bold where it is more than 1 % faster."""
    groups = rows_of(cells)
    for shapes, unit in (("grid", "% of copy"), ("odd", "µs a call"), ("toy", "µs a call")):
        mine = {key: sizes for key, sizes in groups.items() if key[0] == shapes}
        columns = sorted({size[1] if shapes == "grid" else size for sizes in mine.values() for size in sizes},
                         key=lambda c: c if isinstance(c, int) else (c[1], c[0]))
        if not columns:
            continue
        names = [str(c) if isinstance(c, int) else f"{c[0]}×{c[1]}" for c in columns]
        print(f"| {unit} | " + " | ".join(names) + " | runs |\n|" + " --- |" * (len(names) + 2))
        for (_, kind, dtype, direction), sizes in mine.items():
            by_column = {size[1] if shapes == "grid" else size: who for size, who in sizes.items()}
            runs = sorted({cell["run"] for who in sizes.values() for cell in who.values()})
            row = [markdown_cell(shapes, by_column.get(c, {})) for c in columns]
            print(f"| {kind} {dtype} {direction} | " + " | ".join(row) + f" | {' '.join(runs)} |")
        print()


def markdown_cell(shapes, who):
    def figure(cell):
        us = number(cell, "us")
        return f"{number(cell, 'share'):.0f}" if shapes == "grid" else f"{us:.0f}" if us >= 100 else f"{us:.3g}"

    peers = [p for p in PEERS if p in who]
    best = min(peers, key=lambda p: number(who[p], "us")) if peers else None
    text = figure(who["norma"]) if "norma" in who else "–"
    if "norma" in who and "stream" in who:
        text += f"/{100 * number(who['stream'], 'us') / number(who['norma'], 'us'):.0f}"
    if "norma" in who and best and number(who[best], "us") < 0.99 * number(who["norma"], "us"):
        text = f"**{text}**"  # slower than a peer
    return text + (f" · {figure(who[best])}{best[0]}" if best else "")


COLOURS = {"norma": "#d04a02", "eager": "#888888", "compile": "#4b8b3b", "liger": "#2f6db3", "mamba": "#7b4fa3",
           "quack": "#b59b00"}
NAMES = {"norma": "Norma", "eager": "PyTorch", "compile": "torch.compile", "liger": "Liger", "mamba": "mamba_ssm",
         "quack": "quack"}


def draw(cells, kinds, dtype, picture):
    """By gnuplot: % of copy over D, a row a direction, a column a kind; where only a few D ran, points alone."""
    groups = rows_of(cells)
    panels = [(direction, kind) for direction in ("forward", "backward") for kind in kinds
              if ("grid", kind, dtype, direction) in groups]
    if not panels:
        print(f"norms: the table has no {dtype} cells of {', '.join(kinds)}; run a slice first", file=sys.stderr)
        return 1
    script = [f"set terminal pngcairo noenhanced size {470 * len(kinds)},760 font 'sans,11'", f"set output '{picture}.new'",
              f"set multiplot layout 2,{len(kinds)}", "set logscale x 2", "set format x '%.0f'", "set xrange [200:170000]",
              "set xtics (256,1024,4096,16384,65536) nomirror", "set yrange [0:108]", "set ytics 20 nomirror",
              "set grid ytics lc '#dddddd'", "set border 3", "set key bottom left reverse Left samplen 2"]
    for direction, kind in panels:
        sizes = groups["grid", kind, dtype, direction]
        curves, plots = [], []
        for who in PEERS + ("norma",):
            points = sorted((size[1], number(by[who], "share")) for size, by in sizes.items() if who in by)
            if not points:
                continue
            curves.append("\n".join(f"{cols} {share}" for cols, share in points) + "\ne")
            style = "points pt 7 ps 1.2" if len(points) < 5 else f"lines lw {4 if who == 'norma' else 2}"
            plots.append(f"'-' with {style} lc rgb '{COLOURS[who]}' title '{NAMES[who]}'")
        script += [f"set title '{kind}, {direction}, {dtype}: % of copy over D'", "plot " + ", ".join(plots)] + curves
        script.append("unset key")  # the first panel's stands for all
    subprocess.run(["gnuplot"], input="\n".join(script + ["unset multiplot"]), text=True, check=True)
    os.replace(picture + ".new", picture)
    return 0


def flags_of(a):
    flags = ["--kind", a.kind, "--dtype", a.dtype, "--shapes", a.shapes]
    return flags + (["--cols", a.cols] if a.cols else []) + (["--rows", str(a.rows)] if a.rows else []) + (
        ["--elements", str(a.elements)] if a.elements else [])


def time_slice(a, record):
    """The exit code of ours: a slice without peers is one too. Everyone's shares are of the copy that our program
    measured: a second measurement, in the peers', was once a tenth lower."""
    status, copy = lines_of([program(), *flags_of(a)], record)
    if status != 0 or a.peers == "none":
        return status if status in (0, SKIPPED) else 1
    peers = [sys.executable, os.path.join(HERE, "peers", "norm_gpu.py"), *flags_of(a), "--peers", a.peers]
    status, _ = lines_of(peers, record, copy)
    if status != 0:
        print(f"norms: the peers' program ended with {status}: ours alone" +
              (", or what it had printed" if status != SKIPPED else ""), flush=True)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="rms", help="one, or several with commas between")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shapes", default="grid", choices=("grid", "odd", "toy"))
    parser.add_argument("--cols", help="D, with commas between")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--elements", type=int)
    parser.add_argument("--peers", default="eager,liger,mamba,quack,compile", help="none: ours alone")
    parser.add_argument("--table", default=os.path.join(os.environ.get("NORMA_BUILD", "build"), "norms.csv"))
    parser.add_argument("--run", default=datetime.datetime.now().strftime("%Y%m%d-%H%M%S"), help="the run's id")
    parser.add_argument("--show", action="store_true", help="print the table and run nothing")
    parser.add_argument("--picture", help="draw the table's cells of --kind and --dtype there and run nothing")
    a = parser.parse_args()
    if a.picture:
        return draw(read(a.table), a.kind.split(","), a.dtype, a.picture)
    if a.show:
        cells = read(a.table)
        if not cells:
            print(f"norms: no cells in {a.table}; run a slice first", file=sys.stderr)
            return 1
        show(cells)
        return 0
    cells = {}

    def record(kind, direction, dtype, rows, cols, us, share, who):
        cell = dict(zip(FIELDS, (a.shapes, kind, dtype, direction, rows, cols, who, us, share, a.run)))
        cells[tuple(cell[k] for k in KEY)] = cell

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("norms: ended early"))  # what is timed by then is kept
    try:
        status = time_slice(a, record)
    finally:
        table = read(a.table)
        table.update(cells)
        if cells:
            write(a.table, table)
    if status == 0:
        print(f"\nrun {a.run}")
        print_slice(cells)
        print(f"\n{len(cells)} cells of {len(table)} in {a.table}; --show prints them all")
    return status


if __name__ == "__main__":
    sys.exit(main())
