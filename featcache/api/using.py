"""What trained heads are good for: new images, comparisons, reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.store.cache import Cache
from featcache.store.keeping import local
from featcache.training import compare as comparison
from featcache.training import networks, runs

if TYPE_CHECKING:
    from featcache.finetuning.predictor import NetworkPredictor
    from featcache.inference.predictor import Predictor

PathLike = str | os.PathLike[str]


def predictor(
    run: str,
    *,
    weights: PathLike | None = None,
    device: str = "auto",
    features_dir: PathLike = "features",
    progress: Callable[[int, int], None] | None = None,
) -> Predictor | NetworkPredictor:
    """Rebuild backbone and head of a run for new images: `predictor(run)(images)` gives probabilities (N, C).

    Args:
        run: a run's id, the beginning of one, or its folder.
        weights: where the backbone's weights are now; None: where they were.
        device: "auto", "cpu", "cuda" or "cuda:N".
        features_dir: where caches are.
        progress: told of a download: bytes done, bytes in all.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    from featcache.inference.predictor import Predictor

    folder = runs.find_run(local(features_dir), run)
    if networks.is_network(folder):
        from featcache import whole

        return whole.predictor(folder, device)
    record = runs.read_run(folder)
    head = runs.read_file(folder, record, runs.HEAD)
    where = None if weights is None else os.fspath(weights)
    return Predictor(Cache(folder.parent.parent), head, record["node"], where, device, progress)


def compare(*names: str, split: str | None = None, features_dir: PathLike = "features") -> dict[str, Any]:
    """Compare runs on the same rows: intervals, tests and verdicts, see `featcache.training.compare`.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    return comparison.compare([runs.find_run(local(features_dir), name) for name in names], split)


def report(
    *names: str,
    out: PathLike | None = "report.html",
    split: str | None = None,
    details: int = 12,
    dataset: str | None = None,
    data_dir: PathLike = "data",
    features_dir: PathLike = "features",
) -> dict[str, Any]:
    """Report on runs or caches, all there are where none is named; write the page and return its numbers.

    `out` is where the page goes, None for none; `details` how many runs it looks at closely; `dataset` where
    the images are now, if they were moved. The numbers are those of `featcache report --json`.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    from featcache import atomic
    from featcache.reporting.gathering import folders_of, gather
    from featcache.reporting.report import Asked, Report

    folders, named = folders_of(local(features_dir), names)
    made = Report(gather(folders, split, named=named), Asked(Path(data_dir), dataset, details))
    if out is not None:
        path = Path(out).absolute()
        atomic.make_folder(path.parent)
        atomic.write(path, made.html().encode("utf-8", "backslashreplace"))
    return made.values()
