"""Train one head on a cache: tables → head → metrics → run folder → ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featcache import atomic
from featcache.costs import Meter, costs_of
from featcache.errors import CacheError, DamagedError, OptionError, RunError
from featcache.heads import saving
from featcache.heads.base import Head
from featcache.heads.catalogue import create, options
from featcache.heads.neural import NetworkHead
from featcache.heads.state import EpochReport, LayerRow, TrainingState
from featcache.recipe import FORMAT
from featcache.store import expected, records
from featcache.store.cache import Cache
from featcache.store.table import Table, has_split
from featcache.training import calibrated, checkpoints, runs, subsets, views
from featcache.training.facts import begun, context_of, facts_of
from featcache.training.ledger import Ledger
from featcache.training.listener import SILENT, Listener, heard
from featcache.training.predictions import Prediction, predict
from featcache.training.spending import completed

CONFIG = "config.json"


@dataclass(frozen=True)
class Training:
    """What to train: the head, its parameters, and the rows it sees."""

    head: str
    params: Mapping[str, Any] = field(default_factory=dict)
    node: str | None = None
    val_fraction: float = 0.2
    split_seed: int = 42
    split_mode: str = "random"
    test: bool = False
    keep_checkpoints: int = 0
    calibrate: bool = False
    memory_budget: int | None = None  # bytes of features in memory; None: as there is room
    subset: subsets.Subset | None = None  # None: all training rows
    view_mode: str | None = None  # of augmented views; None: random for heads trained by epochs, else all
    test_views: bool = False  # whether test predictions are averaged over the views of test images

    def split_options(self) -> dict[str, Any]:
        """Return the options that `cache.table` takes."""
        return {
            "node": self.node,
            "val_fraction": self.val_fraction,
            "split_seed": self.split_seed,
            "split_mode": self.split_mode,
        }


@dataclass
class Trained:
    """A finished run: its record and the head."""

    record: dict[str, Any]
    head: Head
    folder: Path


@dataclass(frozen=True)
class Watch:
    """What may be told while a head trains: its layers before the start, and each epoch after it."""

    layers: Callable[[list[LayerRow]], None] = lambda rows: None
    epoch: Callable[[EpochReport], None] = lambda report: None
    keeps: Callable[[str], None] = lambda run: None  # told the run's id where it keeps checkpoints
    warns: Callable[[str], None] = lambda text: None  # told what makes a training take long, before it starts
    listener: Listener = SILENT


def train(cache: Cache, training: Training, watch: Watch = Watch()) -> Trained:
    """Train a head and store the run.

    The validation split decides when to stop and which epoch is best; the test split is read only at
    the end, and only if asked for.

    Raises:
        HeadError: the head or a parameter is unknown, or the training failed.
        CacheError: the cache is not finished or has no rows for a split.
        DamagedError: a shard differs from what was committed.
    """
    run = runs.new_id(training.head)
    return _train(cache, training, run, watch, None)


def resume(
    features_dir: Path,
    name: str,
    epochs: int | None = None,
    watch: Watch = Watch(),
) -> Trained:
    """Go on with an interrupted training from its last checkpoint.

    Args:
        features_dir: where the caches are.
        name: the run.
        epochs: train up to so many epochs instead of the number first asked for.
        watch: told of the layers and of each epoch.

    Raises:
        RunError: there is no such run, it kept no checkpoints, or it is finished.
    """
    folder = runs.find_run(features_dir, name, unfinished=True)
    try:
        config = records.read_as(folder / CONFIG, expected.TRAINING)
    except FileNotFoundError:
        raise RunError(
            f"The run {folder.name} kept no checkpoints.",
            "Train with --keep-checkpoints 5 to be able to resume.",
        ) from None
    asked = dict(config["training"])
    asked["subset"] = subsets.from_record(asked.get("subset"))
    if (folder / runs.RUN).exists() and epochs is None:
        raise RunError(f"The run {folder.name} is finished.", "Give --epochs to train it for longer.")
    if epochs is not None:
        asked["params"] = {**asked["params"], "epochs": epochs}
    params = asked["params"]
    if isinstance(params.get("hidden"), list):
        params["hidden"] = tuple(params["hidden"])
    try:
        training = Training(**asked)
    except TypeError as error:
        raise DamagedError(f"{folder / CONFIG} is damaged: {error}.", "Train the head again.") from error
    state = checkpoints.latest(folder)
    return _train(Cache(folder.parent.parent), training, folder.name, watch, state)


def _train(cache: Cache, training: Training, run: str, watch: Watch, state: TrainingState | None) -> Trained:
    head = create(training.head, **training.params)
    folder = runs.folder_of(cache.path, run)
    hooks = _hooks(training, folder, watch, state)
    mode = views.resolved(cache, training.head, training.view_mode)
    if training.test and not has_split(cache, "test"):
        raise OptionError(f"{cache.name} has no test split.", "Train without --test.")
    if training.calibrate and not validates(cache, training):
        raise OptionError(f"{cache.name} has no validation rows to calibrate on.", "Give --val-fraction .2.")
    if training.test_views:
        views.check_test(cache, training.test)
    again = state is not None
    with heard(watch.listener, run, begun(cache, training, head), again), Meter() as meter:
        table, val = read_tables(cache, training)
        if isinstance(head, NetworkHead):
            watch.layers(head.layers(table.columns, len(set(table.y.tolist()))))
        if text := views.forewarning(head, table):
            watch.warns(text)
        validation: dict[str, Any] = {} if val is None else {"X_val": val.selection, "y_val": val.y}
        if drawn := views.drawn_of(table, mode):
            hooks["views"] = drawn
        with meter.fitting():
            head.fit(table.selection, table.labels, **validation, **hooks)
        done, notes = calibrated.calibrate(head, val) if training.calibrate and val else (None, [])
        found = [] if val is None else [predict(head, val)]
        if training.test:
            test = cache.table("test", **training.split_options(), views=views.shown(training.test_views))
            found.append(predict(head, test))
            done = calibrated.add_test(done, head, test, found[-1])
    facts = facts_of(cache, training, run, head, table, meter.costs(reads="features"))
    facts |= {"calibration": done, "notes": facts["notes"] + notes}
    trained = store(cache, folder, facts, head, found)
    watch.listener.ends(run, trained.record)
    return trained


def validates(cache: Cache, training: Training) -> bool:
    """Return whether there are rows to validate with: a split, a part of the training rows, or a fold."""
    return isinstance(training.subset, subsets.Fold) or has_split(cache, "val", training.val_fraction)


def read_tables(cache: Cache, training: Training) -> tuple[Table, Table | None]:
    """Return the training and the validation table, None where there is none.

    Raises:
        CacheError: the cache is not finished or has no training rows.
        DamagedError: a shard differs from what was committed.
        OptionError: there are fewer training rows than folds, or there are no views as asked for.
    """
    mode = views.resolved(cache, training.head, training.view_mode)

    def read(split: str, every_view: bool) -> Table:
        table = cache.table(split, **training.split_options(), views=views.shown(every_view))
        return replace(table, budget=training.memory_budget)

    val = read("val", False) if has_split(cache, "val", training.val_fraction) else None
    return subsets.select(read("train", mode in ("random", "all")), val, training.subset)


def _hooks(training: Training, folder: Path, watch: Watch, state: TrainingState | None) -> dict[str, Any]:
    """Return the arguments of `fit` that only heads trained by epochs take."""
    by_epochs = "epochs" in options(training.head)
    if not by_epochs:
        if training.keep_checkpoints:
            raise OptionError(
                f"A {training.head} head is not trained by epochs: there are no checkpoints to keep."
            )
        return {}
    if training.keep_checkpoints:
        atomic.make_folder(folder)
        plain = {"params": dict(training.params), "subset": subsets.to_record(training.subset)}
        config = {"format": FORMAT, "training": {**asdict(training), **plain}}
        atomic.write(folder / CONFIG, records.to_bytes(config))
        watch.keeps(folder.name)

    def each(report: EpochReport) -> None:
        """Keep the state of an epoch, and tell of it."""
        if training.keep_checkpoints:
            checkpoints.keep(folder, report.state(), training.keep_checkpoints)
        watch.epoch(report)
        watch.listener.epoch(folder.name, report.metrics)

    return {"on_epoch": each, "resume": state}


def store(
    cache: Cache, folder: Path, facts: Mapping[str, Any], head: Head, predictions: Sequence[Prediction]
) -> Trained:
    """Write a run with its predictions and their metrics, and put it into the ledger."""
    whole: dict[str, Any] = {"cv": None, **facts, "val": None, "test": None}
    arrays: dict[str, Any] = {}
    for prediction in predictions:
        more = whole[prediction.split] or {}
        whole[prediction.split] = {**prediction.summary(cache.classes), **more}
        arrays |= prediction.arrays()
    data = saving.dumps(head, context_of(cache, facts["node"]))
    whole["costs"] = completed(costs_of(whole), whole, head, data, predictions).to_record()
    record = runs.write_run(folder, whole, data, getattr(head, "history_", []), arrays)
    return Trained(_recorded(cache, record), head, folder)


def _recorded(cache: Cache, record: dict[str, Any]) -> dict[str, Any]:
    """Put a stored run into the ledger; where that fails the run is none the worse, and a note says so."""
    try:
        Ledger(cache.path.parent).record(record)
    except CacheError as error:
        note = f"The run is stored, but not in the ledger: {error.message}"
        return {**record, "notes": [*record["notes"], f"{note} Mend it with: featcache runs --rebuild."]}
    return record


def add_test(
    cache: Cache, folder: Path, record: Mapping[str, Any], found: Prediction, calibration: Any
) -> Any:
    """Add the test split's predictions and metrics to a stored run; return its new record."""
    facts = {**record, "test": found.summary(cache.classes), "calibration": calibration}
    return _recorded(cache, runs.add_predictions(folder, facts, found.arrays()))
