"""Network heads: one linear layer, or a multilayer perceptron. torch trains them, numpy applies them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featcache.errors import HeadError
from featcache.heads.base import STANDARDIZE, ArraySpec, ScoredHead, Task
from featcache.heads.options import Option, choice, number, per_layer, whole
from featcache.heads.scaling import Matrix, Moments
from featcache.heads.state import EpochReport, LayerRow, Settings, TrainingState, layer_rows
from featcache.heads.views import with_views
from featcache.stopping import MONITORS

if TYPE_CHECKING:
    from featcache.heads.course import Course
    from featcache.heads.tables import Place

_OPTIONS = {
    "optimizer": choice("weight_decay is an L2 penalty with adam, decoupled with adamw", "adam", "adamw"),
    "lr": number("learning rate", above=0),
    "weight_decay": number("see optimizer", least=0),
    "batch_size": whole("rows a step", least=1),
    "epochs": whole("passes over the training rows, at most", least=1),
    "patience": whole("epochs without improvement before stopping; None: never stop", least=1, or_none=True),
    "min_delta": number("what counts as an improvement", least=0),
    "monitor": choice("the value early stopping looks at", *MONITORS),
    "standardize": STANDARDIZE,
    "compute_precision": choice(
        "of products with the table's rows while training; auto is fp32, bf16 is faster where there are "
        "instructions for it, and rounds",
        "auto",
        "fp32",
        "bf16",
    ),
    "seed": whole("of initial weights, order of rows and dropout", least=0),
    "device": Option(
        "auto, cpu, cuda or cuda:N",
        "where to train",
        lambda value: isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
    ),
}


class NetworkHead(ScoredHead):
    """What the torch heads share: minibatches of cross-entropy under Adam, with early stopping.

    With validation rows and a patience, training stops as `featcache.stopping.EarlyStopping` says and the
    best epoch's weights are kept. Without either, all epochs are run and the last weights are kept. Same
    options, rows and seed give the same head; torch's global random generator is not touched.

    Fitted: `coefs_` (list of (out, in)), `intercepts_` (list of (out,)), `history_` (a dict an epoch: epoch,
    train_loss, val_loss, val_accuracy, seconds, lr; the two val_* are over the validation rows, val_loss
    without those of classes that have no training rows), `n_epochs_`, `best_epoch_` (1-based).
    """

    ATTRIBUTES: ClassVar = {"history_": list, "n_epochs_": int, "best_epoch_": int}
    BLOCKWISE: ClassVar = True

    coefs_: list[NDArray[np.float32]]
    intercepts_: list[NDArray[np.float32]]
    history_: list[dict[str, Any]]
    n_epochs_: int
    best_epoch_: int

    @abstractmethod
    def _settings(self) -> Settings:
        """Return the options in torch training's terms."""

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        *,
        on_epoch: Callable[[EpochReport], None] | None = None,
        resume: TrainingState | None = None,
        views: int = 1,
    ) -> Self:
        """Train on rows X (N, D) with labels y (N,); validation rows only choose the epoch.

        With `views` so many rows one behind the other are views of one sample: each epoch takes one of them,
        drawn by the seed. Columns are standardised by all of them.

        `on_epoch` is called after every epoch. `resume` continues from a state that such a call took: the
        weights come out bit for bit as if training had never stopped (on the CPU, with as many threads).

        Raises:
            HeadError: an option, the data or the state cannot be used, or the loss is no longer a number.
        """
        learn = partial(self._learn, on_epoch=on_epoch, resume=resume, views=views)
        return self._fit(X, y, X_val, y_val, learn)

    def layers(self, columns: int, classes: int) -> list[LayerRow]:
        """Return the table of layers for `columns` features and `classes` classes; no fit is needed."""
        return layer_rows(self._sizes(columns, classes), self.standardizes)

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what `coefs_.i` (out, in) and `intercepts_.i` (out,) of every layer i must be."""
        specs = {}
        for i, (wide, out) in enumerate(pairwise(self._sizes(self.n_features_in_, len(self.classes_)))):
            specs[f"coefs_.{i}"] = ArraySpec((out, wide), ("float32",))
            specs[f"intercepts_.{i}"] = ArraySpec((out,), ("float32",))
        return specs

    def _sizes(self, columns: int, classes: int) -> tuple[int, ...]:
        return (columns, *self._settings().hidden, classes)

    def _measured(self, X: Matrix, copies: dict[str, Any]) -> Moments:
        from featcache.heads.measuring import measured

        return measured(self._placed(X, copies))

    def _check_finite(self, X: Matrix, name: str, copies: dict[str, Any]) -> None:
        from featcache.heads.measuring import check_all_finite

        check_all_finite(self._placed(X, copies), name)

    def _placed(self, X: Matrix, copies: dict[str, Any]) -> Place:
        from featcache.heads.epochs import resolve_device
        from featcache.heads.tables import placed

        return placed(X, resolve_device(self.device), copies)

    def _learn(
        self,
        task: Task,
        on_epoch: Callable[[EpochReport], None] | None = None,
        resume: TrainingState | None = None,
        views: int = 1,
    ) -> None:
        from featcache.heads.epochs import Training  # torch, which predicting does not need

        training = Training(with_views(task, views), len(self.classes_), self._settings())
        if resume is not None:
            training.restore(resume)
        training.run(on_epoch)
        self._keep(training.course, training.parameters())

    def _keep(self, course: Course, parameters: list[NDArray[np.float32]]) -> None:
        self.coefs_, self.intercepts_ = parameters[::2], parameters[1::2]
        self.history_, self.n_epochs_ = course.history, len(course.history)
        self.best_epoch_ = course.best_epoch

    def _block_scores(self, block: Matrix) -> Matrix:
        for i, (weight, bias) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            if i:
                np.maximum(block, 0, out=block)
            block = block @ weight.T.astype(block.dtype, copy=False) + bias
        return block


class LinearHead(NetworkHead):
    """One linear layer, trained as `NetworkHead` says: the linear probe."""

    KIND: ClassVar = "linear"
    OPTIONS: ClassVar = _OPTIONS

    def __init__(
        self,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        epochs: int = 50,
        patience: int | None = 5,
        min_delta: float = 1e-3,
        monitor: str = "val_loss",
        standardize: str = "auto",
        compute_precision: str = "auto",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.min_delta = min_delta
        self.monitor = monitor
        self.standardize = standardize
        self.compute_precision = compute_precision
        self.seed = seed
        self.device = device

    def _settings(self) -> Settings:
        return _settings_of(self, (), ())


class MLPHead(NetworkHead):
    """A multilayer perceptron: `hidden` layers with ReLU, each followed by dropout, then a linear layer.

    `dropout` is one probability for all hidden layers or one for each. Trained as `NetworkHead` says.
    """

    KIND: ClassVar = "mlp"
    OPTIONS: ClassVar = {
        "hidden": per_layer("sizes of the hidden layers", whole("units", least=1)),
        "dropout": per_layer(
            "share dropped after hidden layers", number("share", least=0, below=1), or_one=True
        ),
        **_OPTIONS,
    }

    def __init__(
        self,
        hidden: tuple[int, ...] = (50, 20),
        dropout: float | tuple[float, ...] = 0.0,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        epochs: int = 50,
        patience: int | None = 5,
        min_delta: float = 1e-3,
        monitor: str = "val_loss",
        standardize: str = "auto",
        compute_precision: str = "auto",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.min_delta = min_delta
        self.monitor = monitor
        self.standardize = standardize
        self.compute_precision = compute_precision
        self.seed = seed
        self.device = device

    def check_options(self) -> None:
        """Refuse options that cannot be used, and a dropout that is not one number or one a hidden layer.

        Raises:
            HeadError: naming the option, what was expected and what was given.
        """
        super().check_options()
        if isinstance(self.dropout, (tuple, list)) and len(self.dropout) != len(self.hidden):
            raise HeadError(
                f"Option dropout has {len(self.dropout)} values for {len(self.hidden)} hidden layers.",
                "Give one value for all of them, or one for each.",
            )

    def _settings(self) -> Settings:
        each = self.dropout if isinstance(self.dropout, (tuple, list)) else [self.dropout] * len(self.hidden)
        return _settings_of(self, tuple(int(n) for n in self.hidden), tuple(float(p) for p in each))


def _settings_of(head: Any, hidden: tuple[int, ...], dropout: tuple[float, ...]) -> Settings:
    return Settings(
        hidden=hidden,
        dropout=dropout,
        optimizer=head.optimizer,
        lr=float(head.lr),
        weight_decay=float(head.weight_decay),
        batch_size=int(head.batch_size),
        epochs=int(head.epochs),
        patience=None if head.patience is None else int(head.patience),
        min_delta=float(head.min_delta),
        monitor=head.monitor,
        standardize=head.standardizes,
        seed=int(head.seed),
        device=head.device,
        precision="bf16" if head.compute_precision == "bf16" else "fp32",
    )
