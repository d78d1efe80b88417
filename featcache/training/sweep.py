"""A sweep: one head for every point of a grid and every seed, chosen among by the validation split alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featcache.errors import HeadError, OptionError
from featcache.heads.catalogue import options
from featcache.store.cache import Cache
from featcache.store.table import has_split
from featcache.training import folds
from featcache.training.chosen import calibrated_copy, tested
from featcache.training.curve import Point
from featcache.training.fit import Training
from featcache.training.grid import Grid
from featcache.training.listener import SILENT, Listener
from featcache.training.members import Member, members_of
from featcache.training.ranking import Configuration, ranked
from featcache.training.search import Points, Search
from featcache.training.subsets import Draw, Fold, Size, Subset, check_folds
from featcache.training.suggestions import TOGETHER, Suggestions
from featcache.training.trainer import News as News
from featcache.training.trainer import Trainer

MEMORY = 2 << 30  # bytes that heads trained together may take, besides the tables


@dataclass(frozen=True)
class Sweep:
    """What to try: `training` with each combination of `grid`, each with `seeds` seeds.

    Of the combinations, or of a grid with ranges, `random` are drawn or `optuna` are suggested one after the
    other, where one is given.

    `training.params` holds the options that stay the same; `training.test` asks for an evaluation of the
    chosen heads on the test split, `training.calibrate` for a calibrated copy of the chosen one. Heads train
    together as long as they take `memory` bytes at most.

    With `sizes` everything is done for `trials` draws of so many training rows: a learning curve. With
    `folds` all training rows validate in turn, and the chosen configuration is trained on all of them.
    `seed` decides what is drawn, dealt and suggested.
    """

    training: Training
    grid: Grid
    seeds: int = 1
    memory: int = MEMORY
    random: int | None = None
    optuna: int | None = None
    sizes: Sequence[Size] = ()
    trials: int = 1
    folds: int | None = None
    seed: int = 0

    def subsets(self) -> list[Subset | None]:
        """Return which rows each configuration is trained on; None: all there are."""
        if self.folds is not None:
            return [Fold(number, self.folds, self.seed) for number in range(self.folds)]
        return [subset for size in self.sizes for subset in self.draws(size)] or [None]

    def draws(self, size: Size) -> list[Subset | None]:
        """Return the draws of a size; all rows can be drawn in one way alone."""
        if size.fraction == 1:
            return [None]
        return [Draw(size, trial, self.seed) for trial in range(self.trials)]


@dataclass(frozen=True)
class Swept:
    """A finished sweep: configurations, the best first, and the run chosen.

    `best` is of the best configuration's runs the one with the best validation accuracy, or what was made of
    it: a calibrated copy, or with folds the head trained on all rows. `found` of the `heads` had been trained
    before, `failed` could not be; `together` trained at once, at most. `curve` has a point for each size;
    then `configurations` and `best` are those of the last one.
    """

    configurations: list[Configuration]
    best: dict[str, Any]
    heads: int
    found: int
    failed: int
    together: int
    seconds: float
    curve: list[Point]


def sweep(
    cache: Cache,
    asked: Sweep,
    tell: Callable[[News], None] = lambda news: None,
    warn: Callable[[str], None] = lambda text: None,
    listener: Listener = SILENT,
) -> Swept:
    """Train every head of a sweep that has no run yet, store each as a run, and choose the best.

    A head is stored as soon as it is done, so that an interrupted sweep goes on where it was. Heads are
    compared by their mean validation accuracy over the seeds, equal ones by their mean log-loss. `tell` hears
    how far it is, `warn` what makes a head take long, before it does, `listener` of the heads trained.

    Raises:
        HeadError: the head or a value cannot be used, or every head failed.
        OptionError: the sweep cannot be made: no validation split, a seed without use, …
        CacheError: the cache is not finished or has no rows for a split.
        DamagedError: a shard differs from what was committed.
    """
    begin = time.perf_counter()
    search = _search(asked)
    asked = _check(cache, asked)
    total = search.count * asked.seeds * len(asked.subsets())
    trainer = Trainer(cache, asked.training, asked.memory, total, tell, warn, listener)
    members: list[Member] = []
    while values := search.ask():
        training = asked.training
        new = [point for point in values if all(member.values != point for member in members)]
        some = members_of(training.head, training.params, new, asked.seeds, asked.subsets())
        trainer.train(some)
        members += some
        search.tell(_ranked(member for member in members if member.values in values))
    points = [_point(asked, size, members) for size in asked.sizes]
    found = points[-1].configurations if points else _ranked(members)
    best = _chosen(cache, asked, found)
    if points and asked.training.test:
        points = [point.tested(cache) if point.best.best else point for point in points]
        found, best = points[-1].configurations, points[-1].best.best or best
    if best["test"] is not None or all(best["run"] != member.run for member in members):
        listener.ends(best["run"], best)  # it has learned more, or was made of others
    failed = sum(member.failure is not None for member in members)
    seconds = time.perf_counter() - begin
    return Swept(found, best, len(members), trainer.found, failed, trainer.together, seconds, points)


def _search(asked: Sweep) -> Search:
    """Return what suggests the configurations; options that contradict each other are refused."""
    training = asked.training
    both = sorted(set(training.params) & set(asked.grid))
    if both:
        raise OptionError(f"{both[0]} is given both as an option and in the grid.", "Give it once.")
    for name in ("seeds", "random", "optuna", "trials"):
        number = getattr(asked, name)
        if number is not None and number < 1:
            raise OptionError(f"{name} must be at least 1, got {number}.")
    if asked.seeds > 1 and "seed" in asked.grid:
        raise OptionError("Seeds are given both as a number and in the grid.", "Give them once.")
    if asked.sizes and asked.folds is not None:
        raise OptionError("A learning curve validates on the validation split.", "Leave --cv out.")
    if training.keep_checkpoints:
        raise OptionError("A sweep keeps no checkpoints.", "What is finished is kept: run it again to go on.")
    if training.calibrate and (asked.sizes or asked.folds is not None):
        raise OptionError(
            "A learning curve or cross-validation calibrates no heads.",
            "Train the chosen one with --calibrate.",
        )
    if asked.optuna is None:
        return Points(asked.grid, asked.random, asked.seed)
    if asked.sizes or asked.random is not None or not asked.grid:
        raise OptionError(
            "Optuna suggests values of a grid, for one number of training rows.",
            "Give --grid, and leave out --random, --few-shot and --fractions.",
        )
    together = TOGETHER if "epochs" in options(training.head) else 1
    return Suggestions(asked.grid, asked.optuna, asked.seed, together)


def _check(cache: Cache, asked: Sweep) -> Sweep:
    """Refuse what the cache has no rows for; return the sweep with the split that it needs."""
    if asked.folds is not None:  # every training row is in a fold
        check_folds(asked.folds, len(cache.plan.range_of("train")))
        asked = replace(asked, training=replace(asked.training, val_fraction=0.0))
    elif not has_split(cache, "val", asked.training.val_fraction):
        raise OptionError(
            f"{cache.name} has no validation split to choose a head by.",
            "Give --val-fraction .2, or --cv 5 where there are few rows.",
        )
    if asked.training.test and not has_split(cache, "test"):
        raise OptionError(f"{cache.name} has no test split.", "Sweep without --test.")
    return asked


def _ranked(members: Iterable[Member]) -> list[Configuration]:
    return ranked((member.values, member.record, member.failure) for member in members)


def _point(asked: Sweep, size: Size, members: Iterable[Member]) -> Point:
    draws = asked.draws(size)
    return Point(size, _ranked(member for member in members if member.subset in draws))


def _chosen(cache: Cache, asked: Sweep, found: Sequence[Configuration]) -> dict[str, Any]:
    """Return the run chosen, or what is to be made of it."""
    first, training = found[0], asked.training
    if first.best is None:
        raise HeadError(f"None of the heads could be trained: {first.failures[0]}")
    best = first.best
    if asked.folds is not None:
        if first.failures:
            raise HeadError(f"No configuration could be trained on every fold: {first.failures[0]}")
        best = folds.refit(cache, training, first)
    elif training.calibrate:
        best = calibrated_copy(cache, best)
    return tested(cache, best) if training.test and not asked.sizes else best
