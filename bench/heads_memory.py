"""Peak memory of training a head on a mapped table, as it is and within budgets, and whether weights agree.

The table is a file of float16 rows in a temporary folder, a random fifth of which validates. Each training
is a process of its own; what it had in memory before it began (Python, torch) is counted apart.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write(path: Path, rows: int, columns: int) -> None:
    """Write rows around a centre a class, 2000 at a time."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, columns)).astype(np.float32)
    with path.open("wb") as file:
        for start in range(0, rows, 2000):
            labels = np.arange(start, min(start + 2000, rows)) % 10
            noise = rng.standard_normal((len(labels), columns), dtype=np.float32)
            file.write((centres[labels] + 30 * noise).astype(np.float16).tobytes())


def peak(name: str) -> int:
    """Return a figure of this process in bytes: VmRSS (now) or VmHWM (most since it was reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def train(path: Path, rows: int, columns: int, budget: int | None, epochs: int) -> None:
    """Train an MLP, and print its peak in bytes, seconds and a digest of its weights."""
    from featcache.heads.base import probabilities_of
    from featcache.heads.neural import MLPHead
    from featcache.selection import Selection

    table = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, columns))
    order, cut = np.random.default_rng(1).permutation(rows), rows * 4 // 5
    data, val = (Selection(table, np.sort(part), budget) for part in (order[:cut], order[cut:]))
    y = np.arange(rows) % 10
    MLPHead(epochs=1, device="cpu").fit(np.ones((4, 8), np.float16), np.arange(4) % 2)  # libraries
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = peak("VmRSS"), time.perf_counter()
    head = MLPHead(epochs=epochs, patience=None, device="cpu")
    head.fit(data, y[data.index], val, y[val.index])
    probabilities_of([head], val)
    seconds = time.perf_counter() - begin
    digest = hashlib.sha256(b"".join(value.tobytes() for value in head.coefs_)).hexdigest()
    print(before, peak("VmHWM") - before, f"{seconds:.1f}", digest[:16])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--columns", type=int, default=25_088)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0, 1 / 3], help="of the table; 0: none")
    parser.add_argument("--one", nargs=2, metavar=("PATH", "BYTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        path, budget = Path(options.one[0]), int(options.one[1]) or None
        train(path, options.rows, options.columns, budget, options.epochs)
        return
    size = options.rows * options.columns * 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        write(path, options.rows, options.columns)
        print(f"table {options.rows} × {options.columns}: {size / 1e9:.2f} GB, {options.epochs} epochs")
        for share in options.budgets:
            same = ["--rows", str(options.rows), "--columns", str(options.columns)]
            asked = [*same, "--epochs", str(options.epochs), "--one", str(path), str(int(size * share))]
            out = subprocess.run(
                [sys.executable, __file__, *asked], capture_output=True, text=True, check=True
            )
            before, more, seconds, digest = out.stdout.split()
            name = f"budget {share:.2f} of it" if share else "no budget"
            print(
                f"{name:<20} {int(more) / size:5.2f} × the table, besides {int(before) / 1e6:.0f} MB at the "
                f"start; {(int(more) + int(before)) / size:5.2f} × with it; {seconds} s; weights {digest}",
                flush=True,
            )


if __name__ == "__main__":
    main()
