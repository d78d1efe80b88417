"""From the options of a fine-tuning to its parts: data set, model, preprocessing; all checked first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import catalogue, pixels, statefile, weights
from featcache.backbones.preprocess import Statistics, dataset_statistics, fit, resolve_preprocess
from featcache.errors import BackboneError, DatasetError, HeadError, OptionError, unknown
from featcache.finetuning.model import (
    Layout,
    Model,
    ScoreLayers,
    assemble,
    columns_of,
    is_small,
    scoring_node,
    small_model,
)
from featcache.finetuning.options import SCRATCH, Finetuning, Place
from featcache.heads import saving
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.images.source import whole_path
from featcache.networks import catalogue as small
from featcache.progress import Progress
from featcache.recipe import Preprocess, Weights
from featcache.store import keeping
from featcache.store.cache import Cache
from featcache.store.plan import Plan
from featcache.store.positions import rows_of
from featcache.store.roster import Roster


@dataclass(frozen=True)
class Start:
    """The run that a fine-tuning begins with: its cache, the bytes of its head, and the node it reads."""

    cache: Cache
    head: bytes
    node: str
    weights: str | None = None  # where the backbone's weights are now; None: where they were


@dataclass
class Job:
    """All that a fine-tuning needs, opened and checked."""

    asked: Finetuning
    dataset: Dataset
    plan: Plan
    layout: Layout
    model: Model
    preprocess: Preprocess
    weights: Weights | None  # None: drawn from the seed
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What the run is called: "finetuned", or "scratch" where the weights were drawn."""
        drawn = self.weights is None or self.weights.name.startswith("random:")
        return SCRATCH if drawn and self.asked.from_run is None else "finetuned"

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split, rising."""
        asked = self.asked
        return rows_of(self.plan, split, asked.val_fraction, asked.split_seed, asked.split_mode)

    def roster(self, place: Place) -> Roster:
        """Return the folder that the run will be in."""
        data = self.dataset
        dataset = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "classes": list(data.classes),
            "rows": self.plan.counts(),
        }
        asked = self.asked
        request = {"dataset": asked.dataset, "limit": asked.limit, "max_pixels": asked.max_pixels}
        request["data_dir"] = str(place.data_dir.resolve())
        return Roster.create(place.features_dir, dataset, request, self.plan)


def open_dataset(asked: Finetuning, place: Place, progress: Progress) -> Dataset:
    """Open the data set that is asked for, cut to its limit.

    Raises:
        DatasetError: it cannot be had.
    """
    ours = (place.features_dir, keeping.shown(place.features_dir), place.data_dir)
    source = open_source(asked.dataset, place.data_dir, exclude=ours)
    dataset = source.open(lambda done, total: progress("reading", done, total))
    return dataset if asked.limit is None else dataset.limited(asked.limit)


def whole_places(asked: Finetuning) -> Finetuning:
    """Return the options with whole paths, so that data and weights are found from anywhere."""
    weights_at = asked.weights
    if weights_at.endswith(statefile.SUFFIXES):
        weights_at = str(Path(weights_at).expanduser().resolve())
    return replace(asked, dataset=whole_path(asked.dataset), weights=weights_at)


def prepare(asked: Finetuning, place: Place, start: Start | None, progress: Progress) -> Job:
    """Open the data set and put the model together.

    Raises:
        BackboneError, WeightsError, HeadError, OptionError: the model cannot be had.
        DatasetError: the data set cannot be had, or has too few training rows.
    """
    _check_network(asked, start)
    dataset = open_dataset(asked, place, progress)
    if len(dataset.classes) < 2:
        raise DatasetError(
            f"{dataset.name} has {len(dataset.classes)} class: there is nothing to tell apart."
        )
    plan = Plan(dataset.ids, dataset.labels, dataset.splits, dataset.content_hashes)
    job = (
        _from_run(asked, dataset, plan, start, progress) if start else _fresh(asked, dataset, plan, progress)
    )
    least = 2 * len(place.device.split(","))
    if len(job.rows("train")) < least:
        raise DatasetError(f"{dataset.name} has fewer than {least} training images: too few to train on.")
    if asked.test and not len(job.rows("test")):
        raise OptionError(f"{dataset.name} has no test split.", "Train without --test.")
    return job


def _check_network(asked: Finetuning, start: Start | None) -> None:
    """Refuse a network that cannot be trained, before anything is opened."""
    name = asked.network if start is None else start.cache.recipe.backbone
    if not is_small(name) and name not in catalogue.names():
        error = unknown("network", name, [*catalogue.names(), *small.NETWORKS], BackboneError)
        raise error
    if name == pixels.NAME:
        raise BackboneError(
            f"{name} has nothing to fine-tune.", "Train a head on its cache: featcache train-head."
        )
    if is_small(name) and asked.weights not in ("auto", SCRATCH):
        raise OptionError(
            f"There are no weights of {name}, got {asked.weights!r}.", "Leave --weights out: they are drawn."
        )
    if is_small(name) and asked.hidden:
        raise OptionError(f"{name} has hidden layers of its own.", "Leave --hidden out.")


def _from_run(asked: Finetuning, dataset: Dataset, plan: Plan, start: Start, progress: Progress) -> Job:
    """Return the job that begins with the backbone and the head of a run."""
    recipe = start.cache.recipe
    if tuple(dataset.classes) != start.cache.classes:
        raise HeadError(
            f"The head of {start.cache.name} was trained on other classes than {dataset.name} has.",
            "Fine-tune it on the data set of its cache.",
        )
    head = saving.loads(start.head)
    if head.classes_.tolist() != list(range(len(dataset.classes))):
        raise HeadError(
            f"The head knows {len(head.classes_)} of {len(dataset.classes)} classes: some had no rows.",
            "Begin with a head that was trained on rows of all classes.",
        )
    layers = ScoreLayers.of(head)
    node = next(each for each in recipe.nodes if each.name == start.node)
    layout = Layout(
        recipe.backbone, 3, recipe.preprocess.crop, len(dataset.classes), node.name, node.pool,
        layers.sizes, layers.standardizes, layers.temperature,
    )  # fmt: skip
    where = start.weights or str(start.cache.record["request"].get("weights", "DEFAULT"))
    network = weights.network_of(
        recipe, where, start.cache.name, lambda done, total: progress("weights", done, total)
    )
    model = assemble(layout, network, layers, asked.seed)
    return Job(asked, dataset, plan, layout, model, recipe.preprocess, recipe.weights)


def _fresh(asked: Finetuning, dataset: Dataset, plan: Plan, progress: Progress) -> Job:
    if is_small(asked.network):
        return _small(asked, dataset, plan, progress)
    drawn = asked.weights == SCRATCH
    choice = weights.resolve(
        asked.network, "DEFAULT" if asked.weights in ("auto", SCRATCH) else asked.weights
    )
    step = _preprocess(asked, choice, dataset, progress)
    if drawn:
        identity, network = None, _drawn(asked.network, step.crop, asked.seed)
    else:
        state, identity = weights.load(
            asked.network, choice, lambda done, total: progress("weights", done, total)
        )
        network = weights.assemble(asked.network, state)
    node = scoring_node(asked.network, network)
    weights.check_layers(choice, [] if drawn else [node.name])
    columns = columns_of(network, node, step.crop)
    sizes = (columns, *asked.hidden, len(dataset.classes))
    channels = asked.channels or 3
    layout = Layout(asked.network, channels, step.crop, sizes[-1], node.name, node.pool, sizes)
    model = assemble(layout, network, None, asked.seed)
    return Job(asked, dataset, plan, layout, model, step, identity, list(choice.notes))


def _small(asked: Finetuning, dataset: Dataset, plan: Plan, progress: Progress) -> Job:
    made_for = small.input_of(asked.network)
    transform = weights.Transform(made_for.size, made_for.size, "bilinear", pixels.MEAN, pixels.STD)
    choice = weights.WeightsChoice(SCRATCH, transform)
    step = _preprocess(asked, choice, dataset, progress)
    channels = asked.channels or made_for.channels
    layout = Layout(asked.network, channels, step.crop, len(dataset.classes))
    return Job(asked, dataset, plan, layout, small_model(layout, asked.seed), step, None)


def _drawn(name: str, image_size: int, seed: int) -> Any:
    """Return a backbone with torchvision's own initialisation, drawn from a seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return catalogue.build(name, image_size)


def _preprocess(
    asked: Finetuning, choice: weights.WeightsChoice, dataset: Dataset, progress: Progress
) -> Preprocess:
    """Return the preprocessing, with the training images' own mean and deviation where they are asked for."""
    size, known = asked.image_size, asked.normalize != "dataset"
    step = resolve_preprocess(choice, asked.preprocess, size, asked.normalize if known else "none")
    if known:
        return step
    found = dataset_statistics(_training_images(asked, dataset, step, progress))
    return resolve_preprocess(choice, asked.preprocess, size, asked.normalize, _checked(found))


def _training_images(
    asked: Finetuning, dataset: Dataset, step: Preprocess, progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    rows = np.flatnonzero(dataset.splits == 0).tolist()
    for done, row in enumerate(rows, 1):
        yield fit(dataset.image(row, asked.max_pixels), step)
        progress("statistics", done, len(rows))


def _checked(found: Statistics) -> Statistics:
    if min(found[1]) <= 0:
        raise OptionError("The training images are all of one value.", "Use --normalize weights.")
    return found
