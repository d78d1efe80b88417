"""Logistic regression and the linear SVM: featcache's solver against scikit-learn's, at what cost, how well.

Every way gets the same float16 table, mapped from a file, and runs in a process of its own, so that its peak
of memory is its own. Printed are the seconds of the whole fit (moments, standardising, solving), iterations,
the objective reached (mean loss + penalty, computed in float64 for all), peak memory and ratios. Of several
penalties, peers fit `--peers` one after the other and are scaled to all.

The table is one given (--table X.npy --labels y.npy) or a synthetic one that is as hard as real features:
correlated columns of decaying spectrum, rectified as by a ReLU, classes that overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

CLASSES = 10


def synthetic(rows: int, columns: int, folder: Path) -> tuple[Path, Path]:
    """Write float16 rows (N, D): factors of decaying weight, a class's centre, mixed, noisy, rectified."""
    rng = np.random.default_rng(0)
    rank = min(400, columns)
    y = rng.integers(0, CLASSES, rows)
    centres = rng.normal(size=(CLASSES, rank)).astype(np.float32)
    mixing = rng.normal(size=(rank, columns)).astype(np.float32)
    mixing *= (1 + np.arange(rank, dtype=np.float32))[:, None] ** -0.7
    level = rng.uniform(-1.5, 0.5, columns).astype(np.float32)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float16, (rows, columns))
    for start in range(0, rows, 2048):
        own = y[start : start + 2048]
        hidden = 0.35 * centres[own] + rng.normal(size=(len(own), rank)).astype(np.float32)
        noise = rng.normal(scale=0.7, size=(len(own), columns)).astype(np.float32)
        X[start : start + 2048] = np.maximum(hidden @ mixing + noise + level, 0)
    X.flush()
    np.save(folder / "y.npy", y)
    return folder / "X.npy", folder / "y.npy"


def penalties(count: int) -> list[float]:
    return [0.01] if count == 1 else np.geomspace(1e-4, 10, count).tolist()


def one(options: argparse.Namespace) -> dict[str, object]:
    """Fit one way; return what it took and reached."""
    X, y = np.load(options.table, mmap_mode="r"), np.load(options.labels)
    Cs = penalties(options.penalties)
    import torch

    import featcache.heads.linear  # noqa: F401  # neither importing nor waking the device is part of a fit

    torch.zeros(1, device=options.device).sum().item()
    if options.one == "featcache":
        heads, seconds = featcache_fit(X, y, Cs, options)
    else:
        Cs = Cs[:: max(1, len(Cs) // options.peers)][: options.peers]
        heads, seconds = peer_fit(X, y, Cs, options)
        seconds *= options.penalties / len(Cs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "iterations": [int(head.n_iter_) for head in heads],
        "objectives": {
            f"{C:.6g}": reached(X, y, C, head, options) for C, head in zip(Cs, heads, strict=True)
        },
        "peak": peak,
        "notes": [note for head in heads for note in head.notes_],
    }


def head_of(options: argparse.Namespace, C: float, solver: str):
    from featcache.heads.catalogue import create

    extra = {"tol": options.tol} if options.tol else {}
    return create(options.head, C=C, solver=solver, device=options.device, **extra)


def featcache_fit(X, y, Cs, options):
    from featcache.heads.batched import check_data
    from featcache.heads.paths import fit_path

    heads = [head_of(options, C, "featcache") for C in Cs]
    start = time.perf_counter()
    if len(heads) == 1:
        heads[0].fit(X, y)
    else:
        for _ in fit_path(heads, check_data(X, y)):
            pass
    return heads, time.perf_counter() - start


def peer_fit(X, y, Cs, options):
    heads = [head_of(options, C, "sklearn") for C in Cs]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for head in heads:
            head.set_params(max_iter=options.max_iter).fit(X, y)
    return heads, time.perf_counter() - start


def reached(X, y, C: float, head, options: argparse.Namespace) -> float:
    """Return the objective of a head, in float64."""
    import torch

    from featcache.heads.base import Task
    from featcache.heads.linear import Problem, objective
    from featcache.heads.scaling import Moments

    columns = Moments(head.mean_, head.scale_, head.scale_**2)
    codes = np.searchsorted(head.classes_, y).astype(np.int64)
    task = Task(X, codes, columns)
    problem = Problem(options.head, task, columns, len(head.classes_), torch.device(options.device))
    return objective(problem, C, head.coef_, head.intercept_)


def run(way: str, options: argparse.Namespace) -> dict[str, object]:
    """Run a way in a process of its own."""
    passed = ["table", "labels", "head", "penalties", "device", "peers", "max_iter", "tol"]
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in passed]
    done = subprocess.run(
        [sys.executable, __file__, f"--one={way}", *arguments], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def show(options: argparse.Namespace, found: dict[str, list[dict[str, object]]]) -> None:
    base = found["featcache"] if "featcache" in found else next(iter(found.values()))
    best = {}
    for runs in found.values():
        for C, value in runs[0]["objectives"].items():
            best[C] = min(best.get(C, value), value)
    for way, runs in found.items():
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs, base, strict=True))
        above = max(value / best[C] - 1 for C, value in runs[0]["objectives"].items())
        count = runs[0]["iterations"]
        print(
            f"{way:<13} median {statistics.median(r['seconds'] for r in runs):8.2f} s   × {ratio:5.2f}   "
            f"{min(count)}–{max(count)} iterations   objective above the best {above:.1e}   peak "
            f"{max(r['peak'] for r in runs) / 2**30:.2f} GiB {'  '.join(runs[0]['notes'])[:90]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--table")
    parser.add_argument("--labels")
    parser.add_argument("--head", default="logreg", choices=["logreg", "svm"])
    parser.add_argument("--penalties", type=int, default=1)
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--max-iter", type=int, default=1000, help="of the peers")
    parser.add_argument("--tol", type=float, default=0.0, help="0 is the head's own")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", default=["featcache", "scikit-learn"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.table is None:
            options.table, options.labels = synthetic(options.rows, options.columns, Path(folder))
        shape = np.load(options.table, mmap_mode="r").shape
        print(
            f"{options.head}, {options.penalties} penalties, {shape[0]} × {shape[1]} float16, "
            f"{options.device}; {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, "
            f"{platform.machine()}"
        )
        found: dict[str, list[dict[str, object]]] = {way: [] for way in options.ways}
        for _ in range(options.rounds):
            for way in options.ways:
                found[way].append(run(way, options))
        show(options, found)


if __name__ == "__main__":
    main()
