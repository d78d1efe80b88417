"""Other ways to train heads on features in memory: what people write, and what known projects do.

The loops of DINOv2 (`dinov2/eval/linear.py`: all learning rates' linear layers in one Python loop, one
backward pass of the sum of their losses, SGD with a cosine) and of CLIP_benchmark (`metrics/linear_probe.py`:
a DataLoader over rows, AdamW under autocast with a cosine, one training for each point of the search) are
written anew after what their public code does, on features that are there already.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 10
Data = tuple[np.ndarray, ...]
Train = Callable[[], None]


@dataclass(frozen=True)
class Asked:
    """What is trained: heads of `hidden` layers at these learning rates, and how long."""

    rates: list[float]
    hidden: tuple[int, ...]
    batch_size: int
    epochs: int
    device: str


def wide(data: Data, device: str) -> list[Tensor]:
    """Return the rows as float32, standardised, and the labels, on the device."""
    X, y, X_val, y_val = (torch.from_numpy(value).to(device) for value in data)
    X, X_val = X.float(), X_val.float()
    mean, scale = X.mean(0), X.std(0)
    return [X.sub_(mean).div_(scale), y, X_val.sub_(mean).div_(scale), y_val]


def model(columns: int, asked: Asked) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    torch.manual_seed(0)
    sizes = [columns, *asked.hidden, CLASSES]
    layers: list[nn.Module] = []
    for number in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[number], sizes[number + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(asked.device)


def torch_loop(data: Data, asked: Asked) -> Train:
    """What people write with care: a loop over float32 tensors in memory, no DataLoader, fused Adam."""
    X, y, X_val, y_val = wide(data, asked.device)

    def train() -> None:
        for lr in asked.rates:
            network = model(X.shape[1], asked)
            optimiser = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
            for _ in range(asked.epochs):
                for index in torch.randperm(len(X), device=X.device).split(asked.batch_size):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(network(X[index]), y[index]).backward()
                    optimiser.step()
                with torch.no_grad():
                    nn.functional.cross_entropy(network(X_val), y_val).item()

    return train


def cosine(lr: float, step: int, steps: int) -> float:
    """Return the learning rate at a step of so many."""
    return 0.5 * (1 + math.cos(math.pi * step / steps)) * lr


def dataloader_probe(data: Data, asked: Asked) -> Train:
    """CLIP_benchmark's loop, for each learning rate in turn."""
    X, y, X_val, y_val = wide(data, "cpu")
    cuda = asked.device != "cpu"
    loader = DataLoader(TensorDataset(X, y), asked.batch_size, shuffle=True, pin_memory=cuda)
    val = DataLoader(TensorDataset(X_val, y_val), asked.batch_size)

    def train() -> None:
        kind = torch.float16 if cuda else torch.bfloat16
        for lr in asked.rates:
            network = model(X.shape[1], asked)
            optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0)
            for epoch in range(asked.epochs):
                for number, (rows, classes) in enumerate(loader):
                    there, true = rows.to(asked.device), classes.to(asked.device)
                    step = number + epoch * len(loader)
                    optimiser.param_groups[0]["lr"] = cosine(lr, step, asked.epochs * len(loader))
                    optimiser.zero_grad()
                    with torch.autocast(asked.device, dtype=kind):
                        loss = nn.functional.cross_entropy(network(there), true)
                    loss.backward()
                    optimiser.step()
            with torch.no_grad():
                for rows, _ in val:
                    network(rows.to(asked.device)).argmax(1).cpu()

    return train


def one_loop(data: Data, asked: Asked) -> Train:
    """DINOv2's loop: all heads side by side as modules, one backward pass of the sum of their losses."""
    X, y, X_val, y_val = wide(data, asked.device)

    def train() -> None:
        networks = nn.ModuleDict(
            {str(number): model(X.shape[1], asked) for number in range(len(asked.rates))}
        )
        groups = [
            {"params": networks[str(number)].parameters(), "lr": lr} for number, lr in enumerate(asked.rates)
        ]
        optimiser = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
        steps = asked.epochs * math.ceil(len(X) / asked.batch_size)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0)
        for _ in range(asked.epochs):
            for index in torch.randperm(len(X), device=X.device).split(asked.batch_size):
                rows, true = X[index], y[index]
                outputs = {name: network(rows) for name, network in networks.items()}
                loss = sum(nn.functional.cross_entropy(value, true) for value in outputs.values())
                optimiser.zero_grad()
                loss.backward()  # type: ignore[union-attr]
                optimiser.step()
                scheduler.step()
            with torch.no_grad():
                for network in networks.values():
                    nn.functional.cross_entropy(network(X_val), y_val).item()

    return train


def scikit_learn(data: Data, asked: Asked) -> Train:
    """MLPClassifier, one learning rate after the other, without early stopping."""
    X, y, X_val, y_val = (value.numpy() for value in wide(data, "cpu"))

    def train() -> None:
        for lr in asked.rates:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _classifier(lr, asked).fit(X, y).score(X_val, y_val)

    return train


def grid_search(data: Data, asked: Asked) -> Train:
    """scikit-learn's GridSearchCV over the learning rates, on the one split, in one process a core."""
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    X, y, X_val, y_val = (value.numpy() for value in wide(data, "cpu"))
    rows, labels = np.concatenate([X, X_val]), np.concatenate([y, y_val])
    split = PredefinedSplit(np.r_[np.full(len(X), -1), np.zeros(len(X_val), int)])

    def train() -> None:
        grid = {"learning_rate_init": asked.rates}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            GridSearchCV(_classifier(1e-3, asked), grid, cv=split, refit=False).fit(rows, labels)

    return train


def _classifier(lr: float, asked: Asked) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        asked.hidden, learning_rate_init=lr, batch_size=asked.batch_size, max_iter=asked.epochs,
        alpha=0, n_iter_no_change=asked.epochs + 1,
    )  # fmt: skip


def with_skorch(data: Data, asked: Asked) -> Train:
    """skorch's NeuralNetClassifier with Adam, on its DataLoader."""
    from skorch import NeuralNetClassifier  # type: ignore[import-untyped]
    from skorch.dataset import Dataset  # type: ignore[import-untyped]
    from skorch.helper import predefined_split  # type: ignore[import-untyped]

    X, y, X_val, y_val = wide(data, "cpu")

    def train() -> None:
        for lr in asked.rates:
            NeuralNetClassifier(
                model(X.shape[1], asked),
                criterion=nn.CrossEntropyLoss,
                optimizer=torch.optim.Adam,
                lr=lr,
                max_epochs=asked.epochs,
                batch_size=asked.batch_size,
                iterator_train__shuffle=True,
                train_split=predefined_split(Dataset(X_val, y_val)),
                device=asked.device,
                verbose=0,
            ).fit(X, y)

    return train


PEERS: dict[str, Callable[[Data, Asked], Train]] = {
    "torch loop": torch_loop,
    "DINOv2's loop": one_loop,
    "CLIP_benchmark's probe": dataloader_probe,
    "scikit-learn": scikit_learn,
    "GridSearchCV": grid_search,
    "skorch": with_skorch,
}
