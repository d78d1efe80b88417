"""Many network heads of one shape trained at once on one table, each as if it were trained alone.

Heads with the same seed see the same batches, dropout masks and initial weights, so a batch of rows is
gathered, cast and standardised once for all of them, and their first layers are one product. Other seeds
have batches of their own, and share all that follows the first layer. Learning rate, weight decay,
optimiser and early stopping are each head's own; a head that is done leaves the stack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.adam import Rule
from featcache.heads.adams import Adams
from featcache.heads.course import Course
from featcache.heads.data import Data, check_data
from featcache.heads.epochs import resolve_device
from featcache.heads.labels import UNKNOWN
from featcache.heads.network import Network
from featcache.heads.neural import NetworkHead
from featcache.heads.rows import Rows
from featcache.heads.stack import Stack
from featcache.heads.state import Settings
from featcache.heads.steps import Batch, Steps, recorder
from featcache.heads.tables import placed
from featcache.heads.threads import torch_threads_for
from featcache.heads.views import drawn

__all__ = ["Data", "EpochOfMany", "bytes_of", "check_data", "fit_together", "shared"]

_SHARED = ("hidden", "dropout", "batch_size", "standardize", "precision", "device")
_COPIES = 7  # of weights: themselves, gradients, moments, directions, the best, one while the stack shrinks
_LARGE = 1 << 18  # weights of a first layer that fill a good part of a core's cache
_SMALL_STEP = 1 << 30  # operations; a hundredth of a second of a core, in dozens of parallel parts


@dataclass(frozen=True)
class EpochOfMany:
    """One finished epoch: its number (1-based), how many heads trained in it, and the best validation
    accuracy of this batch so far (None without validation rows). `rows` are the heads' own rows of the
    history, by the heads' numbers; empty where heads are not trained by epochs."""

    epoch: int
    alive: int
    best_accuracy: float | None
    rows: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def shared(head: NetworkHead) -> tuple[Any, ...]:
    """Return what heads must have in common to train together; heads of equal values can.

    Raises:
        HeadError: an option of the head cannot be used.
    """
    head.check_options()
    settings = head._settings()
    return tuple(getattr(settings, name) for name in _SHARED)


def bytes_of(head: NetworkHead, columns: int, classes: int) -> int:
    """Return the memory in bytes that a head takes in a batch: its weights seven times, and its outputs."""
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
    if not heads:
        return
    if len({shared(head) for head in heads}) > 1:
        raise HeadError(
            f"Heads that train together must have the same {', '.join(_SHARED)}.", "Fit the others apart."
        )
    for head in heads:
        head.forget()
    for numbers in _parts(heads, data):
        part = [heads[number] for number in numbers]
        for finished in _train(part, data, partial(_tell, on_epoch, numbers)):
            yield [(numbers[at], error) for at, error in finished]


def _tell(tell: Callable[[EpochOfMany], None], numbers: Sequence[int], report: EpochOfMany) -> None:
    """Tell of a part of the heads under the numbers that they have among all."""
    tell(replace(report, rows={numbers[at]: row for at, row in report.rows.items()}))


def _parts(heads: Sequence[NetworkHead], data: Data) -> list[list[int]]:
    """Return which heads stand in one stack: on a CPU, large ones of different seeds do not.

    They would share the small layers alone, and what is in the cache.
    """
    settings = [head._settings() for head in heads]
    first = heads[0]._sizes(data.blocks.X.shape[1], len(data.classes))[:2]
    if resolve_device(settings[0].device).type != "cpu" or first[0] * first[1] < _LARGE:
        return [list(range(len(heads)))]
    seeds = dict.fromkeys(each.seed for each in settings)
    return [[at for at, each in enumerate(settings) if each.seed == seed] for seed in seeds]


def _train(
    heads: Sequence[NetworkHead], data: Data, on_epoch: Callable[[EpochOfMany], None]
) -> Iterator[list[tuple[int, HeadError | None]]]:
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
        task, first = data.blocks, settings[0]
        self.device = resolve_device(first.device)
        columns = task.columns if first.standardize else None
        sizes = (task.X.shape[1], *first.hidden, len(data.classes))
        # heads of a seed stand next to each other, and among them those of a rule
        self.alive = sorted(range(len(settings)), key=lambda number: _place(settings[number]))
        groups = [list(same) for _, same in groupby(self.alive, lambda number: settings[number].seed)]
        seeds = [settings[group[0]].seed for group in groups]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        networks = [Network(sizes, first.dropout, generator, self.device) for generator in self.generators]
        self.stack = Stack(networks, [len(group) for group in groups], first.precision)
        place, dtype = placed(task.X, self.device, task.copies), self.stack.products[0].dtype
        self.rows = [Rows(place, task.y, columns, first.batch_size, dtype, task.views) for _ in groups]
        self.seeds = seeds
        self.val: Rows | None = None
        self.known = 0  # validation rows that the loss is taken of
        if task.X_val is not None and task.y_val is not None:
            val = placed(task.X_val, self.device, task.copies)
            self.val = Rows(val, task.y_val, columns, first.batch_size, torch.float32)
            self.known = int((task.y_val != UNKNOWN).sum())
        self.courses = [Course(each, self.val is not None) for each in settings]
        self.optimiser = Adams(self.stack.parameters, [_rule(settings[number]) for number in self.alive])
        self.stack.parameters, self.stack.gradients = self.optimiser.parameters, self.optimiser.gradients
        self.seconds = [0.0] * len(settings)
        self._operations = 4 * first.batch_size * sum(p[0].numel() for p in self.stack.parameters)
        self._epochs, self._best = 0, -1.0
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._begin()

    def _begin(self) -> None:
        self.stack.learned()
        self.steps = Steps(self.rows, self.stack.masks, self._learn, recorder(self.rows))

    def _learn(self, batches: Sequence[Batch]) -> Tensor:
        losses = self.stack.gradient_step(*batches)
        self.optimiser.step(self.stack.gradients, self.stack.rounded)
        return losses

    @property
    def report(self) -> EpochOfMany:
        best = self._best if self._best >= 0 else None
        return EpochOfMany(self._epochs, len(self.alive), best, self._rows)

    def epoch(self) -> list[tuple[int, HeadError | None]]:
        """Train each head for an epoch; return those that are done or failed."""
        start = time.perf_counter()
        self._epochs += 1
        losses, validated = self._train(), self._validate()
        share = (time.perf_counter() - start) / len(self.alive)
        finished: list[tuple[int, HeadError | None]] = []
        self._rows = {}
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
            self._rows[number] = course.history[-1]
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
        if not stay:
            return
        left = self.stack.keep(stay)
        self.rows = [self.rows[group] for group in left]
        self.generators = [self.generators[group] for group in left]
        self.seeds = [self.seeds[group] for group in left]
        self.optimiser.keep(stay)
        self.stack.parameters, self.stack.gradients = self.optimiser.parameters, self.optimiser.gradients
        self._begin()

    def _train(self) -> list[float]:
        orders = [torch.randperm(len(self.rows[0]), generator=generator) for generator in self.generators]
        views = self.rows[0].views
        orders = [
            drawn(order, views, seed, self._epochs) for order, seed in zip(orders, self.seeds, strict=True)
        ]
        with torch_threads_for(self._operations * len(self.alive), _SMALL_STEP):
            total = self.steps.epoch(orders, (len(self.alive),))
        losses: list[float] = (total / len(self.rows[0])).tolist()
        return losses

    def _validate(self) -> list[dict[str, float | None]]:
        if self.val is None:
            return [{"val_loss": None, "val_accuracy": None}] * len(self.alive)
        totals = torch.zeros((2, len(self.alive)), dtype=torch.float64, device=self.device)
        for rows, classes in self.val.blocks():
            for part, scores in self.stack.scores(rows):
                true = classes[part][None, None].expand(len(scores), 1, -1)
                own = torch.log_softmax(scores, dim=1).gather(1, true.clamp(min=0))
                own = own.masked_fill(true == UNKNOWN, 0.0)
                totals[0] -= own.sum(dim=(1, 2), dtype=torch.float64)
                totals[1] += (scores.argmax(dim=1) == classes[part]).sum(dim=1)
        rows_of = len(self.val)
        return [
            {"val_loss": loss / self.known, "val_accuracy": correct / rows_of}
            for loss, correct in totals.t().tolist()
        ]


def _rule(settings: Settings) -> Rule:
    return Rule(settings.lr, settings.weight_decay, settings.optimizer == "adamw")


def _place(settings: Settings) -> tuple[Any, ...]:
    rule = _rule(settings)
    return settings.seed, rule.decoupled, rule.decay, rule.lr


def _complete(head: NetworkHead, data: Data, training: _Batch, number: int) -> None:
    for name, value in data.attributes.items():
        setattr(head, name, value)
    head.classes_ = data.classes
    columns = data.blocks.columns if head.standardizes else None
    head.mean_, head.scale_ = (columns.mean, columns.scale) if columns else (None, None)
    head._keep(training.courses[number], training.parameters(number))
    head.notes_ = list(data.blocks.notes)
    head.fit_seconds_ = training.seconds[number]
