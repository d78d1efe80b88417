"""Many heads at once, and one, against other ways to train them on the same float16 rows in memory.

Every way trains networks of the same shape at the same learning rates for the same number of epochs. The
ways take turns, several rounds; printed are medians, epochs of one head a second, and medians of each
round's ratio to featcache's heads together. Ways that train one head after the other do so for `--peers` of
them, scaled to all; what is done once for a table (casting, standardising, measuring) is counted once.
`--hidden ""` trains linear heads. `--task step` measures one step of one head against its two products.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from heads_peers import CLASSES, PEERS, Asked, Data, Train

from featcache.heads.batched import check_data, fit_together
from featcache.heads.neural import LinearHead, MLPHead, NetworkHead

AT_ONCE = ("together", "together bf16", "DINOv2's loop")  # these train all heads, whatever --peers says


def table(rows: int, columns: int) -> Data:
    """Return float16 rows around a centre a class, four fifths to train on and one to validate."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (rows,), generator=generator)
    centres = torch.randn(CLASSES, columns, generator=generator)
    X = np.empty((rows, columns), np.float16)
    for start in range(0, rows, 4096):
        own = y[start : start + 4096]
        noise = torch.randn(len(own), columns, generator=generator)
        X[start : start + 4096] = (centres[own] + 4 * noise).half().numpy()
    cut, labels = rows * 4 // 5, y.numpy()
    return X[:cut], labels[:cut], X[cut:], labels[cut:]


def heads(asked: Asked, precision: str) -> list[NetworkHead]:
    """Return featcache's heads at the learning rates."""
    options = {
        "batch_size": asked.batch_size,
        "epochs": asked.epochs,
        "patience": None,
        "device": asked.device,
        "compute_precision": precision,
    }
    if not asked.hidden:
        return [LinearHead(lr=lr, **options) for lr in asked.rates]  # type: ignore[arg-type]
    return [MLPHead(asked.hidden, lr=lr, **options) for lr in asked.rates]  # type: ignore[arg-type]


def together(precision: str) -> Callable[[Data, Asked], Train]:
    def prepare(data: Data, asked: Asked) -> Train:
        checked = check_data(*data)

        def train() -> None:
            for _ in fit_together(heads(asked, precision), checked):
                pass

        return train

    return prepare


def one_by_one(precision: str) -> Callable[[Data, Asked], Train]:
    def prepare(data: Data, asked: Asked) -> Train:
        def train() -> None:
            for head in heads(asked, precision):
                head.fit(*data)

        return train

    return prepare


WAYS: dict[str, Callable[[Data, Asked], Train]] = {
    "together": together("fp32"),
    "together bf16": together("bf16"),
    "one by one": one_by_one("fp32"),
    "one by one bf16": one_by_one("bf16"),
    **PEERS,
}


def timed(name: str, data: Data, options: argparse.Namespace) -> float:
    """Return the seconds for all heads: what is done once, and the training, scaled where it was of a few."""
    count = options.heads if name in AT_ONCE else min(options.peers, options.heads)
    hidden = tuple(int(size) for size in options.hidden.split(",") if size)
    asked = Asked(
        np.geomspace(1e-4, 1e-2, count).tolist(), hidden, options.batch_size, options.epochs, options.device
    )
    begin = time.perf_counter()
    train = WAYS[name](data, asked)
    ready = time.perf_counter()
    train()
    if options.device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - ready
    return float(ready - begin + seconds * options.heads / count)


def race(options: argparse.Namespace) -> None:
    """Let the ways take turns, and print the table."""
    data = table(options.rows, options.columns)
    hidden = options.hidden.replace(",", "-") or "linear"
    print(
        f"{options.heads} heads ({hidden}), {len(data[0])} × {options.columns}, batch {options.batch_size}, "
        f"{options.epochs} epochs, {options.device}; torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {platform.machine()}"
    )
    little = table(4 * options.batch_size, options.columns)
    for name in options.ways:  # libraries are loaded before anything is timed
        timed(name, little, options)
    times: dict[str, list[float]] = {name: [] for name in options.ways}
    for _ in range(options.rounds):
        for name in options.ways:
            times[name].append(timed(name, data, options))
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times[options.ways[0]], strict=True))
        seconds = statistics.median(found)
        speed = options.heads * options.epochs / seconds
        print(f"{name:<24} median {seconds:9.2f} s  {speed:9.2f} epochs/s   × {ratio:.2f}", flush=True)


def step(options: argparse.Namespace) -> None:
    """Time steps of one head and its two large products by turns, and print their ratio."""
    rows = max(options.rows, 4 * options.batch_size)
    X, y, _, _ = table(rows * 5 // 4, options.columns)
    size, width = options.batch_size, int(options.hidden.split(",")[0] or CLASSES)
    kind = heads(Asked([1e-3], tuple(int(n) for n in options.hidden.split(",") if n), size, 1, "cpu"), "fp32")
    weight, delta = torch.randn(width, options.columns), torch.randn(size, width)
    batch, out = torch.randn(size, options.columns), torch.empty(width, options.columns)
    for precision in ("fp32", "bf16"):
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        w, d, b, o = (value.to(dtype) for value in (weight, delta.t().contiguous(), batch, out))
        ours, products = [], []
        for _ in range(options.rounds):
            head = kind[0].__class__(**{**kind[0].get_params(), "compute_precision": precision, "epochs": 3})
            head.fit(X, y)
            ours.append(min(row["seconds"] for row in head.history_) / -(-len(X) // size))
            each = []
            for _ in range(60):
                begin = time.perf_counter()
                torch.mm(b, w.t())
                torch.mm(d, b, out=o)
                each.append(time.perf_counter() - begin)
            products.append(statistics.median(each))
        ratio = statistics.median(a / b for a, b in zip(ours, products, strict=True))
        print(
            f"{precision}: step {statistics.median(ours) * 1e3:.2f} ms, its products "
            f"{statistics.median(products) * 1e3:.2f} ms, ratio {ratio:.2f}; "
            f"40 000 rows: {statistics.median(ours) * 40_000 / size:.2f} s an epoch"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["race", "step"], default="race")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--hidden", default="50,20")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    if importlib.util.find_spec("skorch") is None:
        options.ways = [name for name in options.ways if name != "skorch"]
    (race if options.task == "race" else step)(options)


if __name__ == "__main__":
    main()
