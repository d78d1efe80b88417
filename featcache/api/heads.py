"""Heads: one, many, and how good they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.errors import OptionError
from featcache.live.listeners import listening
from featcache.store.cache import Cache
from featcache.store.folders import find_cache
from featcache.store.keeping import local
from featcache.training import evaluate as evaluation
from featcache.training import fit, networks, runs
from featcache.training import sweep as sweeping
from featcache.training.grid import Range
from featcache.training.subsets import sizes_of

PathLike = str | os.PathLike[str]
_log = logging.getLogger("featcache")


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def train_head(
    cache: Cache | str,
    head: str = "mlp",
    *,
    node: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 42,
    split_mode: str = "random",
    test: bool = False,
    calibrate: bool = False,
    memory_budget: int | None = None,
    view_mode: str | None = None,
    test_views: bool = False,
    tensorboard: PathLike | None = None,
    mlflow: str | None = None,
    features_dir: PathLike = "features",
    **params: Any,
) -> fit.Trained:
    """Train a head on a cache, store the run, and return it: `.record` (metrics, timings) and `.head`.

    `params` are the head's own options, e.g. `hidden=(50, 20), lr=1e-3` (`featcache train-head --help`).
    `memory_budget` is how many bytes of the features may be in memory at once. `view_mode` says what is made
    of augmented views, "random", "all" or "clean"; with `test_views` test predictions are averaged over them.
    `tensorboard`, a folder, and `mlflow`, a tracking URI, show the training while it goes on.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    opened = cache if isinstance(cache, Cache) else Cache(find_cache(local(features_dir), cache))
    training = fit.Training(
        head,
        params,
        node,
        val_fraction,
        split_seed,
        split_mode,
        test,
        calibrate=calibrate,
        memory_budget=memory_budget,
        view_mode=view_mode,
        test_views=test_views,
    )
    with listening(_path(tensorboard), mlflow, _log.warning) as listener:
        return fit.train(opened, training, fit.Watch(listener=listener))


def sweep(
    cache: Cache | str,
    head: str = "mlp",
    grid: Mapping[str, Sequence[Any] | Range] | None = None,
    *,
    seeds: int = 1,
    random: int | None = None,
    optuna: int | None = None,
    few_shot: Sequence[int] = (),
    fractions: Sequence[float] = (),
    trials: int = 5,
    cv: int | None = None,
    draw_seed: int = 0,
    node: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 42,
    split_mode: str = "random",
    test: bool = False,
    calibrate: bool = False,
    memory: int = sweeping.MEMORY,
    memory_budget: int | None = None,
    view_mode: str | None = None,
    tensorboard: PathLike | None = None,
    mlflow: str | None = None,
    features_dir: PathLike = "features",
    tell: Callable[[sweeping.News], None] = lambda news: None,
    **params: Any,
) -> sweeping.Swept:
    """Train a head for every combination of `grid` and every seed, store the runs, and choose the best.

    `grid` maps options to values, e.g. `{"lr": [1e-4, 1e-3], "hidden": [(50, 20), (128,)]}`; `params` are the
    options that stay the same. `random` tries so many combinations instead of all, `optuna` so many that
    Optuna suggests; then a value may be a `featcache.training.grid.Range`. `few_shot` and `fractions` make a
    learning curve of `trials` draws a size (`.curve`), `cv` validates on so many folds. `.configurations` are
    ordered by mean validation accuracy, `.best` is the record of the run chosen. Heads train together within
    `memory` bytes, besides the features, of which `memory_budget` bytes may be in memory at once; `tell`
    hears how far it is, and `tensorboard` and `mlflow` show it as in `train_head`.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    opened = cache if isinstance(cache, Cache) else Cache(find_cache(local(features_dir), cache))
    training = fit.Training(
        head,
        params,
        node,
        val_fraction,
        split_seed,
        split_mode,
        test,
        calibrate=calibrate,
        memory_budget=memory_budget,
        view_mode=view_mode,
    )
    sizes = sizes_of(few_shot, fractions)
    asked = sweeping.Sweep(training, grid or {}, seeds, memory, random, optuna, sizes, trials, cv, draw_seed)
    with listening(_path(tensorboard), mlflow, _log.warning) as listener:
        return sweeping.sweep(opened, asked, tell, listener=listener)


def evaluate(run: str, *, test_views: bool = False, features_dir: PathLike = "features") -> dict[str, Any]:
    """Evaluate a run on its validation and test splits; return its record with per-class details.

    With `test_views` test predictions are averaged over the views of each test image.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    folder = runs.find_run(local(features_dir), run)
    if networks.is_network(folder):
        from featcache import whole

        if test_views:
            raise OptionError(f"{folder.name} is a whole network: it has no views.", "Leave test_views out.")
        return whole.evaluate(folder)
    return evaluation.evaluate(folder, test_views)
