"""Many network heads of one shape trained at once on one table, each as if it were trained alone.

Heads with the same seed see the same batches, dropout masks and initial weights, so a batch of rows is
gathered, cast and standardised once for all of them, and their first layers are one product. Learning rate,
weight decay, optimiser and early stopping are each head's own; a head that is done leaves the stack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from featcache.errors import HeadError
from featcache.heads.base import Task
from featcache.heads.course import Course
from featcache.heads.epochs import resolve_device
from featcache.heads.labels import UNKNOWN
from featcache.heads.network import Adam, Network
from featcache.heads.neural import NetworkHead
from featcache.heads.rows import Rows
from featcache.heads.stack import Stack
from featcache.heads.state import Settings
from featcache.heads.threads import torch_threads_for

_SHARED = ("hidden", "dropout", "batch_size", "standardize", "seed", "device")
_COPIES = 6  # of a head's weights: themselves, gradients, two moments, the best, one while the stack shrinks
_SMALL_STEP = 1 << 30  # operations; a hundredth of a second of a core, in dozens of parallel parts


@dataclass(frozen=True)
class Data:
    """Checked rows and labels that any number of heads may be fitted to (see `check_data`)."""

    task: Task
    classes: NDArray[Any]
    attributes: dict[str, Any]  # what scikit-learn's check of the rows sets on an estimator


@dataclass(frozen=True)
class EpochOfMany:
    """One finished epoch: its number (1-based), how many heads trained in it, and the best validation
    accuracy of this batch so far (None without validation rows)."""

    epoch: int
    alive: int
    best_accuracy: float | None


def check_data(
    X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None
) -> Data:
    """Check rows X (N, D) and labels y (N,), and validation ones, once for many fits.

    Raises:
        HeadError: the data cannot be used; it is a ValueError too.
    """
    from featcache.heads.neural import LinearHead

    probe = LinearHead()
    task = probe._task(X, y, X_val, y_val)
    attributes = {name: value for name, value in vars(probe).items() if name.endswith("_in_")}
    return Data(task, probe.classes_, attributes)


def shared(head: NetworkHead) -> tuple[Any, ...]:
    """Return what heads must have in common to train together; heads of equal values can.

    Raises:
        HeadError: an option of the head cannot be used.
    """
    head.check_options()
    settings = head._settings()
    return tuple(getattr(settings, name) for name in _SHARED)


def bytes_of(head: NetworkHead, columns: int, classes: int) -> int:
    """Return the memory in bytes that a head takes in a batch: its weights six times, and its outputs."""
    sizes = head._sizes(columns, classes)
    weights = sum(wide * out + out for wide, out in pairwise(sizes))
    return 4 * (_COPIES * weights + 3 * head._settings().batch_size * sum(sizes[1:]))


def fit_together(
    heads: Sequence[NetworkHead],
    data: Data,
    on_epoch: Callable[[EpochOfMany], None] = lambda report: None,
) -> Iterator[list[tuple[int, HeadError | None]]]:
    """Fit heads at once; after each epoch yield those that are done, by their number, with what failed.

    A head comes out as its own `fit` on the same data makes it: with the same initial weights, batches,
    dropout and early stopping, and weights that differ by rounding alone (sums over columns and rows are
    taken in another order). `fit_seconds_` and the history's seconds are a head's equal share of the time.
    A head whose loss is no longer a number is left unfitted; the others go on.

    Raises:
        HeadError: an option cannot be used, or the heads differ in what they must share (see `shared`).
    """
    if len({shared(head) for head in heads}) > 1:
        raise HeadError(
            f"Heads that train together must have the same {', '.join(_SHARED)}.", "Fit the others apart."
        )
    for head in heads:
        head.forget()
    training = _Batch(data, [head._settings() for head in heads])
    with torch.no_grad():
        while training.alive:
            finished = training.epoch()
            on_epoch(training.report)
            for number, error in finished:
                if error is None:
                    _complete(heads[number], data, training, number)
            if finished:
                training.leave([number for number, _ in finished])
                yield finished


class _Batch:
    """The heads in training: `alive` are their numbers, in the order of the stack."""

    def __init__(self, data: Data, settings: Sequence[Settings]) -> None:
        task, first = data.task, settings[0]
        device = resolve_device(first.device)
        columns = task.columns if first.standardize else None
        sizes = (task.X.shape[1], *first.hidden, len(data.classes))
        self.generator = torch.Generator().manual_seed(first.seed)
        self.stack = Stack(Network(sizes, first.dropout, self.generator, device), len(settings))
        self.rows = Rows(task.X, task.y, columns, first.batch_size, device)
        self.val: Rows | None = None
        self.known = 0  # validation rows that the loss is taken of
        if task.X_val is not None and task.y_val is not None:
            self.val = Rows(task.X_val, task.y_val, columns, first.batch_size, device)
            self.known = int((task.y_val != UNKNOWN).sum())
        self.alive = list(range(len(settings)))
        self.courses = [Course(each, self.val is not None) for each in settings]
        self.optimisers = [
            Adam(own, each.lr, each.weight_decay, each.optimizer == "adamw")
            for own, each in zip(_heads_of(self.stack.parameters), settings, strict=True)
        ]
        self.seconds = [0.0] * len(settings)
        self._operations = 4 * first.batch_size * sum(p[0].numel() for p in self.stack.parameters)
        self._epochs, self._best = 0, -1.0

    @property
    def report(self) -> EpochOfMany:
        return EpochOfMany(self._epochs, len(self.alive), self._best if self._best >= 0 else None)

    def epoch(self) -> list[tuple[int, HeadError | None]]:
        """Train each head for an epoch; return those that are done or failed."""
        start = time.perf_counter()
        self._epochs += 1
        losses, validated = self._train(), self._validate()
        share = (time.perf_counter() - start) / len(self.alive)
        finished: list[tuple[int, HeadError | None]] = []
        for at, number in enumerate(self.alive):
            course, own = self.courses[number], [value[at] for value in self.stack.parameters]
            self.seconds[number] += share
            metrics = {"epoch": self._epochs, "train_loss": losses[at], **validated[at], "seconds": share}
            try:
                course.add(metrics, own)
            except HeadError as error:
                finished.append((number, error))
                continue
            self._best = max(self._best, metrics["val_accuracy"] or 0.0) if self.val else self._best
            if course.done:
                finished.append((number, None))
        return finished

    def parameters(self, number: int) -> list[NDArray[np.float32]]:
        """Return copies of the weights to keep of a head that is alive."""
        at = self.alive.index(number)
        return self.courses[number].kept([value[at] for value in self.stack.parameters])

    def leave(self, gone: Sequence[int]) -> None:
        """Take heads out of the stack."""
        stay = [at for at, number in enumerate(self.alive) if number not in gone]
        for number in gone:
            self.courses[number].best = None
        self.alive = [self.alive[at] for at in stay]
        self.optimisers = [self.optimisers[at] for at in stay]
        self.stack.keep(stay)
        for optimiser, own in zip(self.optimisers, _heads_of(self.stack.parameters), strict=True):
            optimiser.parameters = own

    def _train(self) -> list[float]:
        order = torch.randperm(len(self.rows), generator=self.generator)
        total = torch.zeros(len(self.alive), dtype=torch.float64, device=self.rows.device)
        gradients = _heads_of(self.stack.gradients)
        with torch_threads_for(self._operations * len(self.alive), _SMALL_STEP):
            for rows, classes in self.rows.batches(order):
                total += self.stack.gradient_step(rows, classes)
                for optimiser, own in zip(self.optimisers, gradients, strict=True):
                    optimiser.step(own)
        losses: list[float] = (total / len(self.rows)).tolist()
        return losses

    def _validate(self) -> list[dict[str, float | None]]:
        if self.val is None:
            return [{"val_loss": None, "val_accuracy": None}] * len(self.alive)
        totals = torch.zeros((2, len(self.alive)), dtype=torch.float64, device=self.val.device)
        for rows, classes in self.val.blocks():
            for part, scores in self.stack.scores(rows):
                true = classes[part][None, :, None].expand(len(scores), -1, 1)
                own = torch.log_softmax(scores, dim=2).gather(2, true.clamp(min=0))
                own = own.masked_fill(true == UNKNOWN, 0.0)
                totals[0] -= own.sum(dim=(1, 2), dtype=torch.float64)
                totals[1] += (scores.argmax(dim=2) == classes[part]).sum(dim=1)
        rows_of = len(self.val)
        return [
            {"val_loss": loss / self.known, "val_accuracy": correct / rows_of}
            for loss, correct in totals.t().tolist()
        ]


def _heads_of(stacked: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return the tensors (K, …) as K lists of views, one list a head."""
    return [list(own) for own in zip(*(value.unbind(0) for value in stacked), strict=True)]


def _complete(head: NetworkHead, data: Data, training: _Batch, number: int) -> None:
    for name, value in data.attributes.items():
        setattr(head, name, value)
    head.classes_ = data.classes
    columns = data.task.columns if head.standardizes else None
    head.mean_, head.scale_ = (columns.mean, columns.scale) if columns else (None, None)
    head._keep(training.courses[number], training.parameters(number))
    head.notes_ = list(data.task.notes)
    head.fit_seconds_ = training.seconds[number]
