"""Train a whole network with Lightning, and predict with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from featcache.backbones.devices import check_precision
from featcache.costs import Costs, Meter
from featcache.finetuning import blocks, images
from featcache.finetuning.augment import Augment
from featcache.finetuning.job import Job
from featcache.finetuning.model import Model
from featcache.finetuning.options import Place
from featcache.finetuning.predicting import Found, predict
from featcache.finetuning.running import devices_of, quiet, repeatable, require_lightning, run
from featcache.finetuning.telling import Teller, relayed
from featcache.heads.state import EpochReport, LayerRow, TrainingState
from featcache.metrics import log_loss
from featcache.progress import Progress, silent
from featcache.version import VERSION

if TYPE_CHECKING:
    from featcache.finetuning.learner import Learner

LIBRARIES = ("lightning", "torch", "torchvision", "numpy", "pillow")


@dataclass(frozen=True)
class Watch:
    """Who is told while a network trains: of its layers before the start, of each epoch, of how far it is.

    `keep` is given the state after each epoch, before `epoch` is told of it. On several devices it is called
    in another process, so it must be a function that can be sent there, and `latest` gives the newest state
    that it kept: what other processes learned comes back through it.
    """

    layers: Callable[[list[LayerRow]], None] = lambda rows: None
    epoch: Callable[[EpochReport], None] = lambda report: None
    progress: Progress = silent
    keep: Callable[[TrainingState], None] | None = None
    latest: Callable[[], TrainingState | None] = lambda: None


@dataclass
class Outcome:
    """What a training came to: the facts of its record, weights, history and predictions."""

    facts: dict[str, Any]
    weights: bytes
    history: list[dict[str, Any]]
    found: list[Found] = field(default_factory=list)


def train(job: Job, place: Place, watch: Watch = Watch(), state: TrainingState | None = None) -> Outcome:
    """Train a model, choose its best epoch on the validation rows, and predict with it.

    Args:
        job: from `prepare`; its model is trained in place.
        place: where to compute.
        watch: see there.
        state: to go on from.

    Raises:
        OptionError: Lightning, a device or a precision is not there.
        DatasetError: an image cannot be read.
        RunError: the training diverged.
    """
    require_lightning()
    devices = devices_of(place.device)
    asked = job.asked
    check_precision(asked.precision, devices[0])
    with quiet(), repeatable(asked.precision, devices), Meter() as meter:
        learner, initial = _learner(job, place, devices, watch, state)
        _fit(learner, devices, watch, meter)
        model = learner.use_best()
        found = _predictions(job, learner, devices[0], watch, meter)
        data = weights_of(model)
        costs = _costs(model, data, devices, meter)
    facts = _facts(job, learner, initial, devices)
    facts |= {"costs": costs.to_record()}
    facts |= {"peak_rss_bytes": costs.peak_ram_bytes or 0, "peak_gpu_bytes": costs.peak_gpu_bytes or 0}
    return Outcome(facts, data, learner.history, found)


def _fit(learner: Learner, devices: list[str], watch: Watch, meter: Meter) -> None:
    """Train for the epochs that are left; those before count with the time they took then."""
    rows, before = len(learner.data.train_rows), list(learner.history)
    meter.add_fit(sum(row["seconds"] for row in before), rows * len(before))
    if learner.left:
        with meter.fitting():
            _run(learner, devices, watch)
        if len(devices) > 1 and (kept := watch.latest()) is not None:
            learner.restore(kept)
    meter.add_fit(0.0, rows * (len(learner.history) - len(before)))


def _run(learner: Learner, devices: list[str], watch: Watch) -> None:
    """Train for the epochs that are left, telling of each in this process."""
    if len(devices) == 1:
        learner.tell = Teller(watch.keep, watch.epoch)
        return run(learner, learner.asked, devices)
    precision = learner.asked.precision
    with relayed(watch.keep, watch.epoch, watch.latest, learner.layers, precision) as sender:
        learner.tell = sender
        return run(learner, learner.asked, devices)


def _predictions(job: Job, learner: Learner, device: str, watch: Watch, meter: Meter) -> list[Found]:
    """Predict the splits that are asked for, where they have rows."""
    found = []
    for split in ("val", "test") if job.asked.test else ("val",):
        if len(job.rows(split)):
            workers = learner.data.workers
            found.append(predict(job, learner.model, split, device, workers, watch.progress))
            meter.add_prediction(found[-1].seconds, len(found[-1].rows))
    return found


def _costs(model: Model, data: bytes, devices: list[str], meter: Meter) -> Costs:
    """Return what was measured; of several devices memory is unknown, as other processes had it."""
    costs = meter.costs(
        reads="images",
        parameters=sum(p.numel() for p in model.parameters()),
        parameters_trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        disk_bytes=len(data),
    )
    if len(devices) == 1:
        return costs
    return replace(costs, peak_ram_bytes=None, ram_before_bytes=None, ram_since=None, peak_gpu_bytes=None)


def _learner(
    job: Job, place: Place, devices: list[str], watch: Watch, state: TrainingState | None
) -> tuple[Learner, dict[str, float] | None]:
    """Return what Lightning will train; of what began with a run, how good it is before the first step."""
    from featcache.finetuning.learner import Data, Learner

    asked, model = job.asked, job.model
    frozen = blocks.choose(model.body, model.head, asked.train)
    rows = blocks.layer_rows((("body", model.body), ("head", model.head)))
    watch.layers(rows)
    workers = _workers(place, devices)
    augment = Augment(asked.augment, asked.seed) if asked.augment else None
    plain = images.Images(job.dataset, job.preprocess, asked.max_pixels, None, devices[0])
    drawn = images.Images(job.dataset, job.preprocess, asked.max_pixels, augment, devices[0])
    data = Data(drawn, plain, job.rows("train"), job.rows("val"), workers)
    learner = Learner(model, frozen, asked, data, rows, watch.progress if len(devices) == 1 else silent)
    initial = None
    if asked.from_run is not None and len(data.val_rows):
        # A GPU that this process has used cannot be used by those that it forks.
        first = devices[0] if len(devices) == 1 else "cpu"
        before = predict(job, model.eval(), "val", first, workers, watch.progress)
        initial = {
            "val_loss": log_loss(before.labels, before.proba),
            "val_accuracy": float((before.proba.argmax(axis=1) == before.labels).mean()),
        }
        learner.start_from(initial)
        model.cpu()
    if state is not None:
        learner.restore(state)
    return learner, initial


def weights_of(model: Model) -> bytes:
    """Return a model's tensors as the bytes of a safetensors file, by their names in it."""
    from safetensors.torch import save

    data: bytes = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    )
    return data


def _facts(
    job: Job, learner: Learner, initial: dict[str, float] | None, devices: list[str]
) -> dict[str, Any]:
    """Return what the run's record says, without its metrics and costs."""
    asked, weights, step = job.asked, job.weights, job.preprocess
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": job.dataset.name,
        "backbone": job.layout.network,
        "node": job.layout.node or "",
        "columns": job.layout.sizes[0] if job.layout.sizes else None,
        "head": job.kind,
        "params": asked.params(),
        "split": asked.split(),
        "subset": None,
        "train_rows": len(learner.data.train_rows),
        "epochs": len(learner.history),
        "best_epoch": learner.stopping.best_epoch,
        "calibration": None,
        "fit_seconds": round(sum(row["seconds"] for row in learner.history), 4),
        "network": {
            "layout": job.layout.to_dict(),
            "preprocess": {**asdict(step), "mean": list(step.mean), "std": list(step.std)},
            "weights": None if weights is None else asdict(weights),
            "before": initial,
            "devices": devices,
        },
        "notes": list(job.notes),
        "versions": {"featcache": VERSION, **{name: metadata.version(name) for name in LIBRARIES}},
    }


def _workers(place: Place, devices: list[str]) -> int:
    if place.workers is not None:
        return place.workers
    return 0 if devices == ["cpu"] else max(1, len(os.sched_getaffinity(0)) // len(devices))
