"""Many heads at once against the same heads one by one: featcache's, a plain torch loop, scikit-learn.

Every way trains the same number of 50-20-10 networks for the same number of epochs on the same float16 rows.
The ways take turns, several rounds; printed are medians, and medians of each round's ratio to the batch.
Heads trained one after the other are timed on `--peers` of them and scaled to all; what is done once for a
table (casting, standardising) is counted once.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from featcache.heads.batched import check_data, fit_together
from featcache.heads.neural import MLPHead

CLASSES = 10
Data = tuple[np.ndarray, ...]
Train = Callable[[], None]


def table(rows: int, columns: int) -> Data:
    """Return float16 rows around a centre a class, four fifths to train on and one to validate."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, rows)
    centres = rng.normal(size=(CLASSES, columns)).astype(np.float32)
    X = np.empty((rows, columns), np.float16)
    for start in range(0, rows, 4096):
        noise = rng.normal(scale=4, size=(len(y[start : start + 4096]), columns)).astype(np.float32)
        X[start : start + 4096] = centres[y[start : start + 4096]] + noise
    cut = rows * 4 // 5
    return X[:cut], y[:cut], X[cut:], y[cut:]


def rates(count: int) -> list[float]:
    return np.geomspace(1e-4, 1e-2, count).tolist()


def heads(options: argparse.Namespace, count: int) -> list[MLPHead]:
    shared = {"batch_size": options.batch_size, "epochs": options.epochs, "patience": None}
    return [MLPHead(lr=lr, device=options.device, **shared) for lr in rates(count)]


def together(data: Data, options: argparse.Namespace) -> Train:
    checked = check_data(*data)

    def train() -> None:
        for _ in fit_together(heads(options, options.heads), checked):
            pass

    return train


def one_by_one(data: Data, options: argparse.Namespace) -> Train:
    def train() -> None:
        for head in heads(options, options.peers):
            head.fit(*data)

    return train


def torch_loop(data: Data, options: argparse.Namespace) -> Train:
    """What people write with care: a loop over float32 tensors in memory, no DataLoader, fused Adam."""
    device = options.device
    X, y = torch.from_numpy(data[0]).float().to(device), torch.from_numpy(data[1]).to(device)
    X_val, y_val = torch.from_numpy(data[2]).float().to(device), torch.from_numpy(data[3]).to(device)
    mean, scale = X.mean(0), X.std(0)
    X.sub_(mean).div_(scale)
    X_val.sub_(mean).div_(scale)

    def train() -> None:
        for lr in rates(options.peers):
            torch_training(X, y, X_val, y_val, lr, options)

    return train


def torch_training(
    X: torch.Tensor,
    y: torch.Tensor,
    X_val: torch.Tensor,
    y_val: torch.Tensor,
    lr: float,
    options: argparse.Namespace,
) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(X.shape[1], 50), torch.nn.Linear(50, 20), torch.nn.Linear(20, CLASSES)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]).to(
        X.device
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    for _ in range(options.epochs):
        for index in torch.randperm(len(X), device=X.device).split(options.batch_size):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(X[index]), y[index]).backward()
            optimiser.step()
        with torch.no_grad():
            torch.nn.functional.cross_entropy(model(X_val), y_val).item()


def scikit_learn(data: Data, options: argparse.Namespace) -> Train:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    X = scaler.fit_transform(data[0].astype(np.float32))
    X_val = scaler.transform(data[2].astype(np.float32))

    def train() -> None:
        for lr in rates(options.peers):
            model = MLPClassifier(
                (50, 20), learning_rate_init=lr, batch_size=options.batch_size, max_iter=options.epochs,
                alpha=0, n_iter_no_change=options.epochs,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(X, data[1])
            model.score(X_val, data[3])

    return train


WAYS: dict[str, Callable[[Data, argparse.Namespace], Train]] = {
    "together": together,
    "one by one": one_by_one,
    "torch loop": torch_loop,
    "scikit-learn": scikit_learn,
}


def timed(name: str, data: Data, options: argparse.Namespace) -> float:
    """Return the seconds for all heads: what is done once, and the training, scaled where it was of a few."""
    begin = time.perf_counter()
    train = WAYS[name](data, options)
    ready = time.perf_counter()
    train()
    if options.device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - ready
    return ready - begin + seconds * (1 if name == "together" else options.heads / options.peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    data = table(options.rows, options.columns)
    print(
        f"{options.heads} heads 50-20-10, {len(data[0])} × {options.columns}, batch {options.batch_size}, "
        f"{options.epochs} epochs, {options.device}; torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {platform.machine()}"
    )
    times: dict[str, list[float]] = {name: [] for name in options.ways}
    for _ in range(options.rounds):
        for name in options.ways:
            times[name].append(timed(name, data, options))
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["together"], strict=True))
        print(f"{name:<14} median {statistics.median(found):8.2f} s   × {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
