"""Times of network heads on a GPU: one head, many heads, wide and narrow tables, and what a step consists of.

The tables are made on the GPU's own machine from one seed. Each way is timed to the end of all work on the
device, the first run (libraries starting, recording) apart from the later ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from featcache.heads.batched import check_data, fit_together
from featcache.heads.neural import MLPHead

CLASSES = 10


def table(rows: int, columns: int, device: str) -> tuple[np.ndarray, ...]:
    """Return float16 rows around a centre a class, four fifths to train on and one to validate."""
    generator = torch.Generator(device).manual_seed(0)
    y = torch.randint(0, CLASSES, (rows,), generator=generator, device=device)
    centres = torch.randn(CLASSES, columns, generator=generator, device=device)
    X = np.empty((rows, columns), np.float16)
    for start in range(0, rows, 4096):
        own = y[start : start + 4096]
        noise = torch.randn(len(own), columns, generator=generator, device=device)
        X[start : start + 4096] = (centres[own] + (14 if columns < 5000 else 60) * noise).half().cpu().numpy()
    cut = rows * 4 // 5
    labels = y.cpu().numpy()
    return X[:cut], labels[:cut], X[cut:], labels[cut:]


def timed(name: str, work: Callable[[], str], runs: int) -> None:
    """Print the first time, the median of the later ones, and what the last run says of itself."""
    times = []
    for _ in range(runs):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        said = work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    later = statistics.median(times[1:]) if len(times) > 1 else times[0]
    print(f"{name:<58} first {times[0]:7.3f} s  then {later:7.3f} s  {said}", flush=True)


def one(data: tuple[np.ndarray, ...], **options: object) -> Callable[[], str]:
    def work() -> str:
        head = MLPHead(device="cuda", **options).fit(*data)  # type: ignore[arg-type]
        epochs = statistics.median(row["seconds"] for row in head.history_[1:])
        accuracy = head.history_[head.best_epoch_ - 1]["val_accuracy"]
        return f"{head.n_epochs_} epochs, {epochs * 1e3:.1f} ms each, accuracy {accuracy:.4f}"

    return work


def many(data: tuple[np.ndarray, ...], count: int, seeds: int, **options: object) -> Callable[[], str]:
    checked = check_data(*data)

    def work() -> str:
        rates = np.geomspace(1e-4, 3e-3, count // seeds).tolist()
        heads = [
            MLPHead(device="cuda", lr=lr, seed=seed, patience=None, **options)  # type: ignore[arg-type]
            for lr in rates
            for seed in range(seeds)
        ]
        for _ in fit_together(heads, checked):
            pass
        return f"best {max(head.history_[-1]['val_accuracy'] for head in heads):.4f}"

    return work


def peak() -> str:
    return f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the device"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--wide", type=int, default=25_088)
    parser.add_argument("--narrow", type=int, default=512)
    parser.add_argument("--heads", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=["narrow", "wide"], help="goal, narrow, wide")
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    if "goal" in options.only:
        data = table(options.rows, options.narrow, "cuda")
        for precision in ("fp32", "bf16"):
            shared = {"batch_size": 256, "epochs": options.epochs, "compute_precision": precision}
            name = f"{options.heads} heads × {options.narrow}, batch 256, {precision}"
            timed(name, many(data, options.heads, 1, **shared), 4)
    if "narrow" in options.only:
        narrow(options)
    if "wide" in options.only:
        wide(options)
    print(peak())


def narrow(options: argparse.Namespace) -> None:
    data = table(options.rows, options.narrow, "cuda")
    for precision in ("fp32", "bf16"):
        timed(
            f"1 head × {options.narrow}, early stopping, {precision}",
            one(data, compute_precision=precision),
            3,
        )
        for size, seeds in ((256, 1), (64, 1), (256, 5)):
            shared = {"batch_size": size, "epochs": options.epochs, "compute_precision": precision}
            name = f"{options.heads} heads × {options.narrow}, batch {size}, {seeds} seeds, {precision}"
            timed(name, many(data, options.heads, seeds, **shared), 2)


def wide(options: argparse.Namespace) -> None:
    data = table(options.rows, options.wide, "cuda")
    for precision in ("fp32", "bf16"):
        timed(
            f"1 head × {options.wide}, early stopping, {precision}", one(data, compute_precision=precision), 3
        )
        shared = {"batch_size": 256, "epochs": options.epochs, "compute_precision": precision}
        name = f"{options.heads} heads × {options.wide}, {options.epochs} epochs, batch 256, {precision}"
        timed(name, many(data, options.heads, 1, **shared), 1)


if __name__ == "__main__":
    main()
