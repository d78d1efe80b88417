"""What a fine-tuning is asked for. Light: imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from featcache.errors import OptionError, unknown
from featcache.images.policies import STEPS
from featcache.stopping import MONITORS

TRAIN = ("all", "last-block", "head")
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("none", "step", "plateau", "cosine")
PRECISIONS = ("fp32", "tf32", "bf16")
PREPROCESS = ("auto", "weights", "squash")
NORMALIZE = ("weights", "imagenet", "half", "dataset", "none")
AUGMENTATIONS = tuple(STEPS)
SCRATCH = "scratch"
CHANNELS = (1, 3)
GAMMAS = {"step": 0.5, "plateau": 0.1}
_CHOICES = {
    "train": TRAIN,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "preprocess": PREPROCESS,
    "normalize": NORMALIZE,
    "monitor": tuple(MONITORS),
}
_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "step_epochs": 1,
    "patience": 1,
    "limit": 1,
    "image_size": 1,
    "seed": 0,
}
_FREE = ("epochs", "patience")  # may change when a training goes on


@dataclass(frozen=True)
class Finetuning:
    """The options that decide what comes out of a fine-tuning.

    `weights` is "auto" (a backbone's official ones; a small network's are drawn), "scratch" (drawn from the
    seed), or what `featcache.backbones.weights.resolve` takes. `hidden` are sizes of layers between the
    network's features and its scores. `from_run` is the id of the run whose backbone and head to start with.

    Raises:
        OptionError: a value is not one of those known.
    """

    network: str = "resnet18"
    dataset: str = "cifar10"
    weights: str = "auto"
    from_run: str | None = None
    train: str = "all"
    hidden: tuple[int, ...] = ()
    optimizer: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.01
    schedule: str = "none"
    step_epochs: int = 10
    gamma: float | None = None
    augment: tuple[str, ...] = ()
    epochs: int = 10
    patience: int | None = 5
    min_delta: float = 1e-3
    monitor: str = "val_loss"
    batch_size: int = 32
    precision: str = "fp32"
    channels: int | None = None
    preprocess: str = "auto"
    image_size: int | None = None
    normalize: str = "weights"
    seed: int = 0
    val_fraction: float = 0.2
    split_seed: int = 42
    split_mode: str = "random"
    limit: int | None = None
    max_pixels: int = 50_000_000
    test: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for each in self.augment:
            if each not in AUGMENTATIONS:
                raise unknown("augmentation", each, AUGMENTATIONS)
        if self.channels not in (None, *CHANNELS):
            raise OptionError(f"channels must be 1 or 3, got {self.channels}.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} must be at least {least}, got {value}.")
        if any(size < 1 for size in self.hidden):
            raise OptionError(f"Hidden layers must have at least 1 number, got {self.hidden}.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Refuse numbers that training cannot use; those that are not numbers compare as false."""
        for name, good, what in (
            ("lr", 0 < self.lr < float("inf"), "above 0"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0"),
            ("min_delta", 0 <= self.min_delta < float("inf"), "at least 0"),
            ("gamma", self.gamma is None or 0 < self.gamma < 1, "between 0 and 1"),
            ("val_fraction", 0 <= self.val_fraction < 1, "at least 0 and below 1"),
        ):
            if not good:
                raise OptionError(f"{name} must be {what}, got {getattr(self, name)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finetuning:
        """Rebuild the options from `to_dict`; what other versions knew besides is left out."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in plain.items() if name in known}
        whole: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**whole)

    def params(self) -> dict[str, Any]:
        """Return what a run's record holds as the options of its training."""
        elsewhere = ("dataset", "val_fraction", "split_seed", "split_mode", "test", "network")
        return {name: value for name, value in self.to_dict().items() if name not in elsewhere}

    def split(self) -> dict[str, Any]:
        """Return the options that choose the validation rows."""
        return {name: getattr(self, name) for name in ("val_fraction", "split_seed", "split_mode")}

    def differences(self, other: Finetuning) -> list[str]:
        """Return a line for each option that may not change when a training goes on, and did."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {mine[name]!r} then, {theirs[name]!r} now"
            for name in mine
            if name not in _FREE and mine[name] != theirs[name]
        ]


@dataclass(frozen=True)
class Place:
    """Where a fine-tuning reads, writes and computes; nothing here changes what it is asked for."""

    features_dir: Path = Path("features")
    data_dir: Path = Path("data")
    device: str = "auto"  # or several: "cuda:0,cuda:1"
    workers: int | None = None  # processes that decode; None: none on a CPU, one for each core beside a GPU
    keep_checkpoints: int = 5
