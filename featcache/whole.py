"""Whole networks from the options to a stored run: fine-tuning and the runs of `training` put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from featcache import metrics
from featcache.errors import OptionError, RunError
from featcache.finetuning import fit
from featcache.finetuning.job import Job, Start, open_dataset, prepare, whole_places
from featcache.finetuning.options import Finetuning, Place
from featcache.finetuning.predicting import test
from featcache.finetuning.predictor import NetworkPredictor
from featcache.finetuning.running import check_processes, devices_of, require_lightning
from featcache.heads.state import EpochReport, LayerRow, TrainingState
from featcache.images.sample import SPLITS
from featcache.progress import Progress, silent
from featcache.store.cache import Cache
from featcache.store.roster import Roster
from featcache.training import checkpoints, networks, runs
from featcache.training.listener import SILENT, Listener, heard
from featcache.training.predictions import Prediction


@dataclass
class Finetuned:
    """A finished run of a whole network: its record and its folder."""

    record: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Watch:
    """What may be told while a network trains; see `featcache.finetuning.fit.Watch`."""

    layers: Callable[[list[LayerRow]], None] = lambda rows: None
    epoch: Callable[[EpochReport], None] = lambda report: None
    keeps: Callable[[str], None] = lambda run: None  # told the run's id where it keeps checkpoints
    progress: Progress = silent
    listener: Listener = SILENT


@dataclass(frozen=True)
class Asked:
    """What a run begins with: the options that were given, the run whose head it starts from, its weights."""

    given: Mapping[str, Any] = field(default_factory=dict)
    from_run: str | None = None
    weights: str | None = None  # of the backbone of `from_run`, if they were moved


def finetune(asked: Asked, place: Place, watch: Watch = Watch()) -> Finetuned:
    """Train a whole network and store the run.

    Raises:
        FeatcacheError: see its subclasses; nothing half-written is visible.
    """
    require_lightning()
    start, fixed = _start(asked, place)
    options = Finetuning(**{**asked.given, **fixed})
    options = whole_places(options)
    job = _job(options, place, start, watch)
    roster = job.roster(place)
    kept = {**options.to_dict(), "weights_at": asked.weights}
    folder = networks.begin(roster, job.kind, job.layout.network, kept, place.keep_checkpoints)
    if place.keep_checkpoints:
        watch.keeps(folder.name)
    return _trained(job, place, roster, folder, watch, None)


def finetune_once(asked: Asked, place: Place, watch: Watch = Watch()) -> tuple[Finetuned, bool]:
    """Return the run that was asked for, and whether it was there already.

    One that was interrupted is gone on with. The test split is evaluated where there is one.

    Raises:
        FeatcacheError: as `finetune`.
    """
    _, fixed = _start(asked, place)
    options = Finetuning(**{**asked.given, **fixed, "test": False})
    options = whole_places(options)
    dataset = open_dataset(options, place, watch.progress)
    options = replace(options, test=bool((dataset.splits == SPLITS.index("test")).any()))
    home = Roster.path_of(place.features_dir, dataset.name, dataset.fingerprint)
    if (folder := networks.find_like(home, options.to_dict(), finished=True)) is not None:
        return Finetuned(runs.read_run(folder), folder), True
    if (folder := networks.find_like(home, options.to_dict(), finished=False)) is not None:
        return resume(folder.name, place, watch), False
    return finetune(
        Asked({**asked.given, "test": options.test}, asked.from_run, asked.weights), place, watch
    ), False


def resume(name: str, place: Place, watch: Watch = Watch(), epochs: int | None = None) -> Finetuned:
    """Go on with an interrupted training from its last checkpoint, or with a finished one for more epochs.

    Raises:
        RunError: there is no such run, it kept no checkpoints, or it is finished.
        FeatcacheError: as `finetune`.
    """
    require_lightning()
    folder, plain, state = networks.begun(place.features_dir, name)
    options = Finetuning.from_dict(plain)
    if networks.is_finished(folder) and epochs is None:
        raise RunError(f"The run {folder.name} is finished.", "Give --epochs to train it for longer.")
    if epochs is not None and options.schedule == "cosine" and epochs != options.epochs:
        raise OptionError(
            f"The cosine of {folder.name} ends after {options.epochs} epochs.", "Go on without --epochs."
        )
    options = options if epochs is None else replace(options, epochs=epochs)
    start = None
    if options.from_run is not None:
        start, _ = _start(Asked(from_run=options.from_run, weights=plain.get("weights_at")), place)
    job = _job(options, place, start, watch)
    roster = Roster(folder.parent.parent)
    if roster.record["dataset"]["fingerprint"] != job.dataset.fingerprint:
        raise RunError(
            f"The images of {options.dataset} are not those that {folder.name} began with.",
            "Put them back, or train anew.",
        )
    return _trained(job, place, roster, folder, watch, state)


def predictor(folder: Path, device: str = "auto") -> NetworkPredictor:
    """Return a run's network, ready for new images.

    Raises:
        DamagedError: the run is damaged.
    """
    record = runs.read_run(folder)
    weights = runs.read_file(folder, record, networks.WEIGHTS)
    return NetworkPredictor(record, weights, Roster(folder.parent.parent).classes, device)


def evaluate(folder: Path, device: str = "auto") -> dict[str, Any]:
    """Return a run's record with per-class tables and confusion matrices, as is done of heads.

    The validation split's are those of the stored predictions. The test split is predicted where the run
    has not seen it yet, and added to the run.

    Raises:
        DatasetError: the images are not there any more, or are others.
        DamagedError: the run is damaged.
    """
    record, roster = runs.read_run(folder), Roster(folder.parent.parent)
    if record["test"] is None and len(roster.plan.range_of("test")):
        record = networks.add_test(roster, folder, record, _tested(folder, roster, device))
    stored = runs.read_predictions(folder, record)
    details = {}
    for split in ("val", "test"):
        if record[split] is not None:
            labels, proba = stored[f"{split}/label"], stored[f"{split}/proba"]
            details[split] = {
                "per_class": metrics.per_class(labels, proba, roster.classes),
                "confusion": metrics.confusion_matrix(labels, proba).tolist(),
            }
    return {**record, "details": details}


def _tested(folder: Path, roster: Roster, device: str) -> Prediction:
    """Predict the test rows with a run's network."""
    found = test(roster, predictor(folder, device))
    return Prediction(found.split, found.rows, found.labels, found.proba, found.seconds)


def _start(asked: Asked, place: Place) -> tuple[Start | None, dict[str, Any]]:
    """Return what a run begins with, and the options that follow from it."""
    if asked.from_run is None:
        return None, {}
    folder = runs.find_run(place.features_dir, asked.from_run)
    if networks.is_network(folder):
        raise RunError(
            f"{folder.name} is a whole network already.", "Start from a run of featcache train-head."
        )
    record, cache = runs.read_run(folder), Cache(folder.parent.parent)
    subset = record.get("subset")
    if subset and "fold" in subset:
        raise RunError(
            f"{folder.name} validated on a fold, whose rows it could not have here.",
            "Start from a run that was trained on all training rows.",
        )
    request = cache.record["request"]
    fixed = {"from_run": folder.name, "network": cache.recipe.backbone, **record["split"]}
    fixed |= {name: request[name] for name in ("dataset", "limit", "max_pixels") if name in request}
    head = runs.read_file(folder, record, runs.HEAD)
    return Start(cache, head, record["node"], asked.weights), fixed


def _job(options: Finetuning, place: Place, start: Start | None, watch: Watch) -> Job:
    devices = devices_of(place.device)
    if len(devices) > 1:
        check_processes()
    if len(devices) > 1 and not place.keep_checkpoints:
        raise OptionError(
            "Training on several devices needs checkpoints: what was learned comes back through them.",
            "Give --keep-checkpoints 1.",
        )
    return prepare(options, place, start, watch.progress)


def _trained(
    job: Job, place: Place, roster: Roster, folder: Path, watch: Watch, state: TrainingState | None
) -> Finetuned:
    """Train, and store the run."""

    def told(report: EpochReport) -> None:
        watch.epoch(report)
        watch.listener.epoch(folder.name, report.metrics)

    last = place.keep_checkpoints
    keep = partial(checkpoints.keep, folder, last=last) if last else None
    hooks = fit.Watch(watch.layers, told, watch.progress, keep, lambda: checkpoints.latest(folder))
    with heard(watch.listener, folder.name, _facts(job, roster), again=state is not None):
        done = fit.train(job, place, hooks, state)
        found = [Prediction(f.split, f.rows, f.labels, f.proba, f.seconds) for f in done.found]
        record = networks.store(roster, folder, done.facts, done.weights, done.history, found)
    watch.listener.ends(folder.name, record)
    return Finetuned(record, folder)


def _facts(job: Job, roster: Roster) -> dict[str, Any]:
    """Return what is known of a run before it is trained."""
    asked = job.asked
    return {
        "dataset": job.dataset.name,
        "cache": roster.name,
        "backbone": job.layout.network,
        "head": job.kind,
        "params": asked.params(),
        "split": asked.split(),
    }
