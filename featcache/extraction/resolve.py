"""From a request to its parts: the data set, the network with its weights, and the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.backbones import catalogue, weights
from featcache.backbones.preprocess import Statistics, resolve_preprocess
from featcache.backbones.runtime import Extractor
from featcache.extraction.memory import FileState, file_states
from featcache.extraction.request import Request, versions
from featcache.extraction.statistics import training_statistics
from featcache.images.dataset import Dataset
from featcache.images.source import whole_path
from featcache.progress import Progress
from featcache.recipe import Decoding, Preprocess, Recipe, canonical_json, format_of
from featcache.store.plan import Plan, rows_of_shards
from featcache.store.records import cache_key

IGNORED_NAMES = 1000


@dataclass
class Job:
    """All that an extraction needs, opened and checked."""

    request: Request
    dataset: Dataset
    recipe: Recipe
    network: Any  # torch.nn.Module with its weights loaded
    weights_before: list[FileState]  # the state of the weights' files before they were read
    notes: list[str] = field(default_factory=list)
    contained: bool = False  # whether images are decoded in processes of their own

    @property
    def key(self) -> str:
        """The key of the cache."""
        return cache_key(self.recipe.fingerprint, self.dataset.fingerprint)

    def plan(self) -> Plan:
        """Return the plan of the data set."""
        data = self.dataset
        return Plan(data.ids, data.labels, data.splits, data.content_hashes)

    def extractor(self, device: str, precision: str | None = None) -> Extractor:
        """Return the backbone on a device, in the recipe's precision or another."""
        precision = precision or self.recipe.precision
        return Extractor(self.network, self.recipe.nodes, self.recipe.preprocess, precision, device)

    def where(self) -> dict[str, Any]:
        """Return the request with whole paths and the resolved weights, so that a repair finds them again."""
        asked = self.request.to_dict()
        if self.recipe.views is not None:
            asked["augment"] = canonical_json(list(self.recipe.views.policy))
        asked["dataset"] = whole_path(self.request.dataset)
        is_file = self.recipe.weights.name == "file"
        asked["weights"] = str(Path(asked["weights"]).resolve()) if is_file else self.recipe.weights.name
        return asked

    def dataset_record(self) -> dict[str, Any]:
        """Return what `recipe.json` says of the data set; of very many ignored files it names the first."""
        ignored = list(self.dataset.ignored)
        return {
            "name": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "classes": list(self.dataset.classes),
            "rows": self.plan().counts(),
            "ignored": {"count": len(ignored), "first": ignored[:IGNORED_NAMES]},
        }

    def record(self, columns: dict[str, int], shard_rows: int | None) -> dict[str, Any]:
        """Return the content of `recipe.json`, but for the plan's hash."""
        widest = max(columns.values())
        views = 1 if self.recipe.views is None else self.recipe.views.count
        return {
            "key": self.key,
            "recipe": self.recipe.to_dict(),
            "dataset": self.dataset_record(),
            "columns": columns,
            "rows_per_shard": shard_rows or rows_of_shards(widest, self.recipe.store_dtype, views),
            "request": self.where(),
            "versions": versions(),
        }


def resolve(
    request: Request,
    dataset: Dataset,
    progress: Progress,
    contained: bool = False,
    statistics: Statistics | None = None,
) -> Job:
    """Load the weights and decide every value of the recipe.

    Args:
        request: what is asked for.
        dataset: its images.
        progress: told how far reading weights, and measuring the images, is.
        contained: decode images in processes that may die.
        statistics: of the training images, where they are known; else measured if the request wants them.

    Raises:
        BackboneError, WeightsError: the backbone, node or weights are unknown or do not fit.
        DatasetError: no image can be read while measuring `normalize="dataset"`.
    """
    choice = weights.resolve(request.backbone, request.weights)
    weights.check_layers(choice, request.layers)
    weights_before = file_states(choice.files())
    state, identity = weights.load(
        request.backbone, choice, lambda done, total: progress("weights", done, total)
    )
    network = weights.assemble(request.backbone, state)
    nodes = catalogue.resolve_nodes(request.backbone, network, request.layers, request.pool)

    def preprocess(statistics: Statistics | None) -> Preprocess:
        normalize = "none" if request.normalize == "dataset" and statistics is None else request.normalize
        return resolve_preprocess(choice, request.preprocess, request.image_size, normalize, statistics)

    step = preprocess(None)
    if request.normalize == "dataset":
        step = preprocess(
            statistics or training_statistics(dataset, step, request.max_pixels, progress, contained)
        )
    views = request.asked_views()
    recipe = Recipe(
        backbone=request.backbone,
        weights=identity,
        nodes=nodes,
        preprocess=step,
        precision=request.precision,
        store_dtype=request.store_dtype,
        format=format_of(request.store_dtype, views),
        decoding=Decoding(max_pixels=request.max_pixels),
        views=views,
    )
    notes = [*request.notes(), *choice.notes]
    return Job(request, dataset, recipe, network, weights_before, notes, contained)
