"""What torch training is told, what it reports after each epoch, and the state it can continue from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads.packing import arrays_of, meta_of, pack

FORMAT = 1
_FREE = ("epochs", "patience", "device")  # may change when a training is continued


@dataclass(frozen=True)
class Settings:
    """How to train: the options of `LinearHead` and `MLPHead`, with dropout given for every hidden layer."""

    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    optimizer: str
    lr: float
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int | None
    min_delta: float
    monitor: str
    standardize: bool
    seed: int
    device: str
    precision: str = "fp32"  # of products with rows: fp32 or bf16


@dataclass(frozen=True)
class TrainingState:
    """Everything that training needs to go on after an epoch, as arrays and plain JSON values.

    `tensors` holds the parameters, Adam's moments, the best parameters so far, the random generator and the
    training columns' mean; `meta` the epoch, the settings, the early stopping and the history.
    """

    tensors: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """The number of epochs behind this state."""
        return int(self.meta["epoch"])

    def to_bytes(self) -> bytes:
        """Return the state as the bytes of a safetensors file."""
        return pack(self.tensors, self.meta)

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainingState:
        """Return the state that `to_bytes` wrote; whether it fits a training shows when it is restored.

        Raises:
            HeadError: the bytes are no state, cut off or of another format.
        """
        return cls(arrays_of(data), meta_of(data, FORMAT))

    def check(self, settings: Settings, sizes: tuple[int, ...], mean: NDArray[np.float64]) -> None:
        """Refuse to continue with other settings, another network or other training rows.

        Raises:
            HeadError: naming what differs, then and now.
        """
        if self.meta.get("format") != FORMAT:
            raise HeadError(f"The training state has format {self.meta.get('format')!r}, expected {FORMAT}.")
        then, now = {"precision": "fp32", **self.meta["settings"]}, plain(settings)
        lines = [
            f"{name}: {then.get(name)!r} then, {now[name]!r} now"
            for name in now
            if name not in _FREE and then.get(name) != now[name]
        ]
        if list(sizes) != self.meta["sizes"]:
            lines.append(f"layer sizes: {self.meta['sizes']} then, {list(sizes)} now")
        elif not np.allclose(self.tensors["mean"], mean, rtol=1e-6, atol=3e-7):  # devices round differently
            lines.append("training rows: their column means differ")
        if lines:
            raise HeadError(
                f"The training cannot continue, because it began differently: {'; '.join(lines)}.",
                "Continue with what it began with, or start afresh.",
            )


@dataclass(frozen=True)
class LayerRow:
    """One line of a table of layers: its name, what it is, its shape, how many numbers it learns or holds."""

    name: str
    kind: str
    shape: tuple[int, ...]
    trainable: int
    frozen: int


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch: its number (1-based) of how many, its row of the history, and the layers trained.

    `metrics` has epoch, train_loss and val_loss (nats; val_* are None without validation rows),
    val_accuracy, seconds and lr.
    """

    epoch: int
    epochs: int
    metrics: Mapping[str, Any]
    layers: Sequence[LayerRow]
    _capture: Callable[[], TrainingState] = field(repr=False)

    def state(self) -> TrainingState:
        """Copy the state to continue from; call it before the callback returns."""
        return self._capture()


def layer_rows(sizes: Sequence[int], standardize: bool) -> list[LayerRow]:
    """Return the table of layers of a network of `sizes` (D, hidden…, C)."""
    columns = sizes[0]
    rows = [LayerRow("standardize", "mean and scale", (columns,), 0, 2 * columns)] if standardize else []
    for i, (wide, out) in enumerate(pairwise(sizes)):
        kind = "linear" if i == len(sizes) - 2 else "linear, ReLU"
        rows.append(LayerRow(f"layer {i + 1}", kind, (wide, out), wide * out + out, 0))
    return rows


def plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
