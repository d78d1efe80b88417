"""Drift: does this machine compute the features that a cache holds?

A cache made elsewhere, or with other versions, may be extended here only if its rows and ours are of one
kind. Random rows are embedded again, by the cache's own recipe, and compared with what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import fit
from featcache.backbones.runtime import Extractor
from featcache.errors import CacheError, OptionError
from featcache.extraction.extract import open_job, source_of
from featcache.extraction.pipeline import default_batch_size
from featcache.extraction.request import Request, Settings, versions
from featcache.extraction.resolve import Job
from featcache.progress import Progress, silent
from featcache.recipe import Decoding
from featcache.store.cache import Cache
from featcache.store.quantised import OFFSET, SCALE, name_of
from featcache.store.records import Commit
from featcache.store.shard import FEATURES

COSINES = {"fp32": 0.999999, "tf32": 0.99999, "bf16": 0.999, "fp16": 0.999}
"""Precision → the least cosine between a row stored and the row computed again."""

DEVIATIONS = {"fp32": 1e-3}
"""Precision → the largest difference, in standard deviations of its column; others are not held to one."""

LEAST = 0.01  # of the typical deviation: a column that hardly varies is measured by this instead of its own
FEWEST = 2  # rows, for there to be a deviation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NodeDrift:
    """How far the rows of a node are from those stored, beyond what rounding to the stored type explains."""

    cosine: float  # the smallest over the rows
    difference: float  # the largest over rows and columns, in standard deviations of the column
    worst: str  # id of the row of the largest difference
    column: int  # and its column


@dataclass(frozen=True)
class Drift:
    """What `drift` found."""

    cache: str
    rows: int
    nodes: dict[str, NodeDrift]
    least_cosine: float
    largest_difference: float | None  # None: not held to one
    versions: dict[str, list[str | None]]  # of libraries that differ: then, now

    @property
    def within(self) -> bool:
        """Whether every node is within the tolerance."""
        limit = np.inf if self.largest_difference is None else self.largest_difference
        return all(
            node.cosine >= self.least_cosine and node.difference <= limit for node in self.nodes.values()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the documented keys of `featcache doctor --drift --json`."""
        return {**asdict(self), "within": self.within}


def drift(
    path: Path,
    settings: Settings,
    rows: int = 100,
    seed: int = 0,
    dataset: str | None = None,
    weights: str | None = None,
    progress: Progress = silent,
) -> Drift:
    """Embed random rows of a cache again and return how far they are from what it holds.

    Args:
        path: the cache's folder; it need not be finished.
        settings: device, batch size, where data sets are.
        rows: how many, at least two; all there are where the cache has fewer.
        seed: of the choice.
        dataset: where the images are now, if not where they were.
        weights: where the weights are now, if not where they were.
        progress: told the images done.

    Raises:
        OptionError: fewer than two rows are asked for.
        CacheError: the images or weights are not those of the cache, or it has too few rows.
        DamagedError: a shard differs from what was committed.
    """
    if rows < FEWEST:
        raise OptionError(f"A drift is measured on at least {FEWEST} rows, got {rows}.")
    cache = Cache(path)
    _check_decoder(cache)
    request = Request.from_dict(cache.record["request"])
    request = replace(request, dataset=dataset or request.dataset, weights=weights or request.weights)
    job = open_job(request, source_of(request, settings), progress)
    if job.key != cache.key:
        raise CacheError(
            f"The images or weights found now are not those {cache.name} was made from.",
            "Say where they are with --dataset and --weights.",
        )
    commits = list(cache.commits().values())
    chosen = _chosen(commits, rows, seed)
    if len(chosen) < FEWEST:
        raise CacheError(f"{cache.name} has {len(chosen)} good rows: too few to compare.", "Extract first.")
    extractor = job.extractor(settings.device)
    fresh = _embedded(job, extractor, chosen, settings.batch_size, progress)
    nodes = {}
    for node in cache.nodes:
        stored, rounding = _stored(cache, commits, chosen, node)
        nodes[node] = _compared(stored, fresh[node], rounding, [cache.plan.ids[row] for row in chosen])
    precision = cache.recipe.precision
    limits = COSINES[precision], DEVIATIONS.get(precision)
    return Drift(cache.name, len(chosen), nodes, *limits, _other_versions(cache))


def _check_decoder(cache: Cache) -> None:
    decoder = cache.recipe.decoding.decoder
    if decoder != Decoding().decoder:
        raise CacheError(
            f"The images of {cache.name} were decoded by {decoder}; drift is measured on Pillow's pixels.",
            "Extract a few images again with --limit, and compare.",
        )


def _chosen(commits: Sequence[Commit], count: int, seed: int) -> list[int]:
    """Return rows that are stored and good, in order."""
    bad = {row for commit in commits for row, _ in commit.bad}
    there = [row for commit in commits for row in range(commit.first, commit.last + 1) if row not in bad]
    picked = np.random.default_rng(seed).permutation(len(there))[:count]
    return sorted(there[place] for place in picked.tolist())


def _embedded(
    job: Job, extractor: Extractor, rows: Sequence[int], batch_size: int | None, progress: Progress
) -> dict[str, Floats]:
    """Return node → (n, D), computed now."""
    size, parts = batch_size or default_batch_size(extractor), []
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        images = [job.dataset.image(row, job.request.max_pixels) for row in some]
        pixels = np.stack([fit(image, job.recipe.preprocess) for image in images])
        parts.append(extractor(pixels))
        progress("drift", first + len(some), len(rows))
    return {node: np.concatenate([part[node] for part in parts]).astype(np.float64) for node in parts[0]}


def _stored(cache: Cache, commits: Sequence[Commit], rows: Sequence[int], node: str) -> tuple[Floats, Floats]:
    """Return the rows (n, D) as they are stored, and how far rounding may have moved each value."""
    values, roundings = [], []
    for commit in sorted(commits, key=lambda commit: commit.first):
        own = [row - commit.first for row in rows if commit.first <= row <= commit.last]
        if not own:
            continue
        blocks, alone = cache.blocks(commit), len(cache.columns) == 1
        found = blocks[name_of(FEATURES, node, alone)].map()[own]
        if cache.recipe.store_dtype == "int8":
            scale = np.asarray(blocks[name_of(SCALE, node, alone)].map(), dtype=np.float64)
            offset = np.asarray(blocks[name_of(OFFSET, node, alone)].map(), dtype=np.float64)
            values.append(found.astype(np.float64) * scale + offset)
            roundings.append(np.broadcast_to(scale / 2, found.shape))
        else:
            values.append(found.astype(np.float64))
            roundings.append(np.spacing(np.abs(found)).astype(np.float64) / 2)
    return np.concatenate(values), np.concatenate(roundings)


def _compared(stored: Floats, fresh: Floats, rounding: Floats, ids: Sequence[str]) -> NodeDrift:
    """Compare (n, D) with (n, D), leaving out of every difference what rounding alone may explain."""
    apart = fresh - stored
    apart = np.sign(apart) * np.maximum(np.abs(apart) - rounding, 0)
    deviation = stored.std(axis=0)
    typical = float(np.sqrt(np.mean(deviation**2))) or 1.0
    measured = np.abs(apart) / np.maximum(deviation, LEAST * typical)
    row, column = (int(i) for i in np.unravel_index(int(measured.argmax()), measured.shape))
    cosine = float(_cosines(fresh - apart, fresh).min())
    return NodeDrift(cosine, float(measured[row, column]), ids[row], column)


def _cosines(a: Floats, b: Floats) -> Floats:
    """Return the cosine of each pair of rows; of two that are zero 1, of one that is 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    products = np.einsum("ij,ij->i", a, b)
    return np.where(same, 1.0, products / np.where(lengths > 0, lengths, 1.0))


def _other_versions(cache: Cache) -> dict[str, list[str | None]]:
    then, now = dict(cache.record["versions"]), versions()
    names = sorted(then.keys() | now.keys())
    return {name: [then.get(name), now.get(name)] for name in names if then.get(name) != now.get(name)}
