"""The training of a network head: epochs, early stopping, and states to continue from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.adam import Adam
from featcache.heads.base import Task
from featcache.heads.course import Course, array
from featcache.heads.labels import UNKNOWN
from featcache.heads.network import Network
from featcache.heads.rows import Rows
from featcache.heads.state import FORMAT, EpochReport, Settings, TrainingState, layer_rows, plain
from featcache.heads.steps import Batch, Steps, recorder
from featcache.heads.tables import placed
from featcache.heads.threads import torch_threads_for
from featcache.heads.views import drawn


class Training:
    """One training run; `run` it, then read `parameters()` and the `course` it took."""

    def __init__(self, task: Task, classes: int, settings: Settings) -> None:
        device = resolve_device(settings.device)
        columns = task.columns if settings.standardize else None
        self.settings = settings
        self.mean = task.columns.mean
        self.generator = torch.Generator().manual_seed(settings.seed)
        sizes = (task.X.shape[1], *settings.hidden, classes)
        self.network = Network(sizes, settings.dropout, self.generator, device, settings.precision)
        self.optimiser = Adam(
            self.network.parameters, settings.lr, settings.weight_decay, settings.optimizer == "adamw"
        )
        place = placed(task.X, device, task.copies)
        dtype = self.network.products.dtype
        self.rows = Rows(place, task.y, columns, settings.batch_size, dtype, task.views)
        self.val: Rows | None = None
        self.known = 0  # validation rows that the loss is taken of
        if task.X_val is not None and task.y_val is not None:
            val = placed(task.X_val, device, task.copies)
            self.val = Rows(val, task.y_val, columns, settings.batch_size, torch.float32)
            self.known = int((task.y_val != UNKNOWN).sum())
        self.course = Course(settings, validates=self.val is not None)
        self.steps = Steps([self.rows], [self.network.masks], self._learn, recorder([self.rows]))

    def parameters(self) -> list[NDArray[np.float32]]:
        """Return copies of the weights to keep: the best epoch's, or the last's where nothing selects."""
        return self.course.kept(self.network.parameters)

    def run(self, on_epoch: Callable[[EpochReport], None] | None = None) -> None:
        """Train until the epochs are done or the patience is used up.

        Raises:
            HeadError: the loss is no longer a number.
        """
        with torch.no_grad():
            while not self.course.done:
                metrics = self._epoch(len(self.course.history) + 1)
                if on_epoch:
                    on_epoch(self._report(metrics))

    def _report(self, metrics: dict[str, Any]) -> EpochReport:
        layers = layer_rows(self.network.sizes, self.settings.standardize)
        return EpochReport(metrics["epoch"], self.settings.epochs, dict(metrics), layers, self.state)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        start = time.perf_counter()
        metrics: dict[str, Any] = {"epoch": epoch, "train_loss": self._train(epoch)}
        metrics |= self._validate()
        metrics["seconds"] = time.perf_counter() - start
        self.course.add(metrics, self.network.parameters)
        return self.course.history[-1]

    def _train(self, epoch: int) -> float:
        order = torch.randperm(len(self.rows), generator=self.generator)
        order = drawn(order, self.rows.views, self.settings.seed, epoch)
        operations = 4 * self.settings.batch_size * sum(p.numel() for p in self.network.parameters)
        with torch_threads_for(operations):
            total = self.steps.epoch([order])
        return total.item() / len(self.rows)  # the epoch's one wait for the device

    def _learn(self, batches: Sequence[Batch]) -> Tensor:
        loss = self.network.gradient_step(*batches[0])
        self.optimiser.step(self.network.gradients, self.network.rounded)
        return loss

    def _validate(self) -> dict[str, float | None]:
        if self.val is None:
            return {"val_loss": None, "val_accuracy": None}
        totals = torch.zeros(2, dtype=torch.float64, device=self.val.device)
        for rows, classes in self.val.blocks():
            scores = self.network.scores(rows)
            totals[0] += torch.nn.functional.cross_entropy(
                scores, classes, reduction="sum", ignore_index=UNKNOWN
            )
            totals[1] += (scores.argmax(dim=1) == classes).sum()
        loss, correct = totals.tolist()
        return {"val_loss": loss / self.known, "val_accuracy": correct / len(self.val)}

    def state(self) -> TrainingState:
        """Copy everything that the next epoch depends on."""
        course = self.course
        tensors: dict[str, NDArray[Any]] = {
            "mean": self.mean,
            "generator": self.generator.get_state().numpy(),
        }
        for group, values in self._groups().items():
            tensors |= {f"{group}.{i}": array(value) for i, value in enumerate(values)}
        meta = {
            "format": FORMAT,
            "epoch": len(course.history),
            "step": int(self.optimiser.steps[0].item()),
            "sizes": list(self.network.sizes),
            "settings": plain(self.settings),
            "stopping": {
                "best": course.stopping.best if math.isfinite(course.stopping.best) else None,
                "best_epoch": course.stopping.best_epoch,
                "waited": course.stopping.waited,
            },
            "has_best": course.best is not None,
            "history": [dict(row) for row in course.history],
        }
        return TrainingState(tensors, meta)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state.

        Raises:
            HeadError: it is of another training, or something in it is missing or malformed.
        """
        course = self.course
        try:
            state.check(self.settings, self.network.sizes, self.mean)
            meta = state.meta
            if meta["has_best"]:
                course.best = [torch.empty_like(parameter) for parameter in self.network.parameters]
            for group, values in self._groups().items():
                for i, value in enumerate(values):
                    value.copy_(torch.from_numpy(_of_shape(state.tensors[f"{group}.{i}"], value)))
            self.generator.set_state(torch.from_numpy(np.array(state.tensors["generator"])))
            for step in self.optimiser.steps:
                step.fill_(meta["step"])
            self.network.learned()
            stopping = dict(meta["stopping"])
            course.stopping.best = -math.inf if stopping["best"] is None else float(stopping["best"])
            course.stopping.best_epoch, course.stopping.waited = stopping["best_epoch"], stopping["waited"]
            course.history = [dict(row) for row in meta["history"]]
        except (KeyError, TypeError, RuntimeError) as error:
            raise HeadError(
                f"The training state is damaged: {error}.", "Start the training afresh."
            ) from error

    def _groups(self) -> dict[str, list[Tensor]]:
        course = self.course
        groups = {
            "parameters": self.network.parameters,
            "first_moments": self.optimiser.first,
            "second_moments": self.optimiser.second,
        }
        return groups | ({"best": course.best} if course.best is not None else {})


def resolve_device(name: str) -> torch.device:
    """Return the device of "auto" (the GPU where there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        HeadError: a GPU is asked for and torch sees none of that number.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HeadError(
            f"There is no device {name!r}: torch sees {torch.cuda.device_count()} GPUs.", "Use auto."
        )
    return device


def _of_shape(array: NDArray[Any], like: Tensor) -> NDArray[np.float32]:
    if array.shape != tuple(like.shape) or array.dtype != np.float32:
        raise TypeError(f"expected float32 {tuple(like.shape)}, got {array.dtype} {array.shape}")
    return np.array(array)
