"""One training as Lightning runs it: steps, validation, and after each epoch the state to go on from.

All that is drawn depends on (seed, epoch) alone, so that a training that was stopped goes on as if it had not
been. The state after an epoch is arrays and JSON (`TrainingState`), never a pickled checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from featcache.errors import RunError
from featcache.finetuning import images
from featcache.finetuning.augment import draw
from featcache.finetuning.model import Model
from featcache.finetuning.options import Finetuning
from featcache.finetuning.state import array, copied, load, load_optimizer, part, plain, schedule
from featcache.heads.state import FORMAT, EpochReport, LayerRow, TrainingState
from featcache.progress import Progress, silent
from featcache.stopping import EarlyStopping

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "lr",
)  # of the history


@dataclass(frozen=True)
class Data:
    """What is trained and validated on: images, and the rows of each (N,)."""

    training: images.Images
    validation: images.Images
    train_rows: NDArray[np.int64]
    val_rows: NDArray[np.int64]
    workers: int = 0


class Learner(pl.LightningModule):
    """A model, what it learns from, and what is known of its training so far.

    Args:
        model: on the CPU; it is trained in place.
        frozen: the parts that do not learn; they stay in evaluation mode.
        asked: the options.
        data: see there.
        layers: the table of layers, for reports.
        progress: told of the images of each epoch, where there is one process.
    """

    def __init__(
        self,
        model: Model,
        frozen: list[nn.Module],
        asked: Finetuning,
        data: Data,
        layers: list[LayerRow],
        progress: Progress = silent,
    ) -> None:
        super().__init__()
        self.model, self.asked, self.data = model, asked, data
        self._frozen, self.layers, self._progress = frozen, layers, progress
        self.tell: Callable[[EpochReport], None] | None = None  # told of every epoch, in the first process
        self.stopping = EarlyStopping(asked.monitor, asked.patience, asked.min_delta)
        self.history: list[dict[str, Any]] = []
        self.best = copied(model)
        self._resumed: TrainingState | None = None
        self._epochs_before = 0
        self._begin = 0.0
        self._sums = torch.zeros(3, dtype=torch.float64)  # loss, hits and rows of the training epoch
        self._found: dict[str, float] = {}

    # --- state ---

    def restore(self, state: TrainingState) -> None:
        """Go on from a state, of a training that began with the same options."""
        self._resumed, self._epochs_before = state, state.epoch
        load(self.model, part(state.tensors, "network."))
        self.best = part(state.tensors, "best.")
        self.history = [{name: row[name] for name in COLUMNS} for row in state.meta["history"]]
        kept = state.meta["stopping"]
        self.stopping.best = -math.inf if kept["best"] is None else kept["best"]
        self.stopping.best_epoch, self.stopping.waited = kept["best_epoch"], kept["waited"]

    def start_from(self, metrics: Mapping[str, float]) -> None:
        """Take note of how good the model is before its first step: it may stay the best."""
        self.stopping.update(0, metrics[self.asked.monitor])

    def use_best(self) -> Model:
        """Return the model with its best weights, on the CPU and in evaluation mode."""
        self.model.cpu()
        load(self.model, self.best)
        return self.model.eval()

    @property
    def left(self) -> int:
        """How many epochs are left, 0 where patience is used up."""
        return 0 if self.stopping.should_stop else max(0, self.asked.epochs - self._epochs_before)

    def capture(self) -> TrainingState:
        """Return a copy of the state after an epoch."""
        tensors = {f"network.{name}": value for name, value in copied(self.model).items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, kept in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": array(value) for key, value in kept.items()}
        stopping = asdict(self.stopping)
        best = self.stopping.best
        return TrainingState(
            tensors,
            {
                "format": FORMAT,
                "epoch": self.history[-1]["epoch"],
                "options": self.asked.to_dict(),
                "stopping": {
                    "best": None if best == -math.inf else best,
                    "best_epoch": stopping["best_epoch"],
                    "waited": stopping["waited"],
                },
                "schedule": plain(self._schedule.state_dict()) if self._schedule else None,
                "history": self.history,
            },
        )

    # --- what Lightning calls ---

    def train(self, mode: bool = True) -> Learner:
        """Set training mode, but for the parts that do not learn."""
        super().train(mode)
        for frozen in self._frozen:
            frozen.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser and the schedule; where a training goes on, in their state."""
        asked = self.asked
        learned = [each for each in self.model.parameters() if each.requires_grad]
        kind = torch.optim.AdamW if asked.optimizer == "adamw" else torch.optim.Adam
        self._optimizer = kind(learned, lr=asked.lr, weight_decay=asked.weight_decay)
        self._schedule = schedule(self._optimizer, asked)
        if self._resumed is not None:
            load_optimizer(self._optimizer, self._resumed, self._schedule)
        return self._optimizer

    def on_fit_start(self) -> None:
        """Make what prepares images on the device."""
        self._intake = images.Intake(self.data.training.preprocess, str(self.device))

    def train_dataloader(self) -> Any:
        """Return the loader of the coming epoch."""
        asked, rows = self.asked, self.data.train_rows
        rank, devices = self.trainer.global_rank, self.trainer.world_size
        batches = images.batches_of_epoch(rows, asked.batch_size, asked.seed, self._coming, rank, devices)
        return images.loader(self.data.training, batches, self.data.workers, self._pins)

    def val_dataloader(self) -> Any:
        """Return the loader of the validation rows, this device's share of them."""
        mine = self.data.val_rows[self.trainer.global_rank :: self.trainer.world_size]
        batches = images.plain_batches(mine, self.asked.batch_size)
        return images.loader(self.data.validation, batches, self.data.workers, self._pins)

    def on_train_epoch_start(self) -> None:
        """Start the clock and the sums."""
        self._begin, self._found = time.perf_counter(), {}
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._where)

    def training_step(self, batch: Any, number: int) -> Tensor:
        """Return the mean loss of a batch."""
        if number == 0:
            torch.manual_seed(draw(self.asked.seed, self._coming, self.trainer.global_rank, 1))
        scores, labels = self._scores(batch)
        loss = cross_entropy(scores, labels)
        self._sums += _sums(loss.detach() * len(labels), scores.detach(), labels).to(self._sums)
        if self.trainer.world_size == 1:
            rows = len(self.data.train_rows)
            self._progress("train", min((number + 1) * self.asked.batch_size, rows), rows)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start the sums of the validation rows."""
        self._val_sums = torch.zeros(3, dtype=torch.float64, device=self._where)

    def validation_step(self, batch: Any, number: int) -> None:
        """Add up a batch's losses and hits."""
        scores, labels = self._scores(batch)
        loss = cross_entropy(scores, labels, reduction="sum")
        self._val_sums += _sums(loss, scores, labels).to(self._val_sums)

    def on_validation_epoch_end(self) -> None:
        """Note mean loss and accuracy over all devices."""
        loss, hits = self._means(self._val_sums)
        self._found = {"val_loss": loss, "val_accuracy": hits}

    def on_train_epoch_end(self) -> None:
        """Close the epoch: history, best weights, schedule, whether to stop, and whoever is to be told.

        Raises:
            RunError: the loss is not finite any more.
        """
        epoch, rate = self._coming_of(self.trainer.current_epoch), self._optimizer.param_groups[0]["lr"]
        loss, hits = self._means(self._sums)
        if not math.isfinite(loss) or not math.isfinite(self._found.get("val_loss", 0.0)):
            raise RunError(
                f"The loss is not finite in epoch {epoch}: the training has diverged.",
                f"Try a smaller --lr than {self.asked.lr:g}.",
            )
        row: dict[str, Any] = {"epoch": epoch, "train_loss": loss, "train_accuracy": hits}
        row |= {name: self._found.get(name) for name in ("val_loss", "val_accuracy")}
        self.history.append({**row, "seconds": round(time.perf_counter() - self._begin, 4), "lr": rate})
        self._judge(epoch)
        self._step_schedule(loss)
        if self.trainer.is_global_zero and self.tell is not None:
            self.tell(EpochReport(epoch, self.asked.epochs, self.history[-1], self.layers, self.capture))

    # --- parts of it ---

    def _judge(self, epoch: int) -> None:
        """Keep the best weights; without validation rows they are the last."""
        value = self._found.get(self.asked.monitor)
        if value is None:
            self.stopping.best_epoch = epoch
            self.best = copied(self.model)
        elif self.stopping.update(epoch, value):
            self.best = copied(self.model)
        self.trainer.should_stop = self.stopping.should_stop

    def _step_schedule(self, train_loss: float) -> None:
        if isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._schedule.step(self._found.get("val_loss", train_loss))
        elif self._schedule is not None:
            self._schedule.step()

    def _scores(self, batch: Any) -> tuple[Tensor, Tensor]:
        pixels, labels, _ = images.checked(batch)
        return self.model(self._intake(pixels)), labels

    def _means(self, sums: Tensor) -> tuple[float, float]:
        """Return mean loss and share of hits, over all devices."""
        whole: Any = self.trainer.strategy.reduce(sums, reduce_op="sum")
        loss, hits, rows = whole.tolist()
        return loss / rows, hits / rows

    @property
    def _coming(self) -> int:
        return self._coming_of(self.trainer.current_epoch)

    def _coming_of(self, here: int) -> int:
        """Return the number of an epoch, from 1 on, of the whole training."""
        return self._epochs_before + here + 1

    @property
    def _pins(self) -> bool:
        return self._where == "cuda"

    @property
    def _where(self) -> str:
        return str(self.device.type)


def _sums(loss: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    hits = (scores.argmax(dim=1) == labels).sum()
    return torch.stack([loss.double(), hits.double(), torch.full_like(hits, len(labels)).double()])
