"""A sweep: one head for every point of a grid and every seed, chosen among by the validation split alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featcache.errors import HeadError, OptionError
from featcache.heads.base import Head
from featcache.heads.catalogue import create, options
from featcache.heads.neural import NetworkHead
from featcache.store.cache import Cache
from featcache.store.records import HEADS
from featcache.store.table import Table, has_split
from featcache.training import fit, runs
from featcache.training.evaluate import evaluate
from featcache.training.fit import Training
from featcache.training.grid import Grid, combinations
from featcache.training.predictions import Prediction, predict, predict_all
from featcache.training.ranking import Configuration, ranked

if TYPE_CHECKING:
    from featcache.heads.batched import EpochOfMany

MEMORY = 2 << 30  # bytes that heads trained together may take, besides the tables


@dataclass(frozen=True)
class Sweep:
    """What to try: `training` with each combination of `grid` (or `random` of them), each with `seeds` seeds.

    `training.params` holds the options that stay the same; `training.test` asks for an evaluation of the
    chosen head on the test split. Network heads train together as long as they take `memory` bytes at most.
    """

    training: Training
    grid: Grid
    seeds: int = 1
    memory: int = MEMORY
    random: int | None = None


@dataclass(frozen=True)
class News:
    """How far a sweep is: heads done of how many, those in training now, and the best accuracy so far."""

    done: int
    total: int
    alive: int
    best_accuracy: float | None


@dataclass(frozen=True)
class Swept:
    """A finished sweep: configurations, the best first, and the run chosen.

    `best` is of the best configuration's seeds the one with the best validation accuracy. `found` of the
    `heads` had been trained before, `failed` could not be; `together` trained at once, at most.
    """

    configurations: list[Configuration]
    best: dict[str, Any]
    heads: int
    found: int
    failed: int
    together: int
    seconds: float


@dataclass
class _Member:
    """One head of a sweep: where it stands in the grid, and its run's record or what failed."""

    values: dict[str, Any]
    head: Head
    record: dict[str, Any] | None = None
    failure: str | None = None


def sweep(cache: Cache, asked: Sweep, tell: Callable[[News], None] = lambda news: None) -> Swept:
    """Train every head of a sweep that has no run yet, store each as a run, and choose the best.

    A head is stored as soon as it is done, so that an interrupted sweep goes on where it was. Heads are
    compared by their mean validation accuracy over the seeds, equal ones by their mean log-loss.

    Raises:
        HeadError: the head or a value cannot be used, or every head failed.
        OptionError: the sweep cannot be made: no validation split, a seed without use, …
        CacheError: the cache is not finished or has no rows for a split.
        DamagedError: a shard differs from what was committed.
    """
    begin = time.perf_counter()
    members = _members(asked)
    _check(cache, asked)
    found = _find(cache, asked.training, members)
    together = _Trainer(cache, asked, members, tell).run()
    configurations = ranked((member.values, member.record, member.failure) for member in members)
    best = configurations[0].best
    if best is None:
        raise HeadError(f"None of the {len(members)} heads could be trained: {members[0].failure}")
    if asked.training.test and best["test"] is None:
        evaluate(runs.folder_of(cache.path, best["run"]))
        best = runs.read_run(runs.folder_of(cache.path, best["run"]))
    failed = sum(len(configuration.failures) for configuration in configurations)
    seconds = time.perf_counter() - begin
    return Swept(configurations, best, len(members), found, failed, together, seconds)


def _members(asked: Sweep) -> list[_Member]:
    kind, fixed = asked.training.head, dict(asked.training.params)
    both = sorted(set(fixed) & set(asked.grid))
    if both:
        raise OptionError(f"{both[0]} is given both as an option and in the grid.", "Give it once.")
    for name, number in (("seeds", asked.seeds), ("random", asked.random)):
        if number is not None and number < 1:
            raise OptionError(f"{name} must be at least 1, got {number}.")
    if asked.seeds > 1 and "seed" in asked.grid:
        raise OptionError("Seeds are given both as a number and in the grid.", "Give them once.")
    if asked.seeds > 1 and "seed" not in options(kind):
        raise OptionError(f"A {kind} head draws no random numbers: one seed is enough.", "Leave seeds out.")
    members = []
    for values in combinations(asked.grid, asked.random):
        for number in range(asked.seeds):
            head = create(kind, **fixed, **values)
            if asked.seeds > 1:
                head.set_params(seed=head.get_params()["seed"] + number)
            members.append(_Member(values, head))
    return members


def _check(cache: Cache, asked: Sweep) -> None:
    if asked.training.keep_checkpoints:
        raise OptionError("A sweep keeps no checkpoints.", "What is finished is kept: run it again to go on.")
    if asked.training.calibrate:
        raise OptionError("A sweep calibrates no heads.", "Train the chosen one with --calibrate.")
    if not has_split(cache, "val", asked.training.val_fraction):
        raise OptionError(
            f"{cache.name} has no validation split to choose a head by.", "Give --val-fraction .2."
        )
    if asked.training.test and not has_split(cache, "test"):
        raise OptionError(f"{cache.name} has no test split.", "Sweep without --test.")


def _find(cache: Cache, training: Training, members: Sequence[_Member]) -> int:
    """Give members the runs they have already, calibrated ones aside; return how many have one."""
    split = {key: value for key, value in training.split_options().items() if key != "node"}
    wanted = {
        "key": cache.key,
        "node": cache.node(training.node),
        "head": training.head,
        "split": split,
        "calibration": None,
    }
    folders = sorted((cache.path / HEADS).glob(f"{training.head}-*/{runs.RUN}"))
    there = [
        record
        for record in runs.readable(path.parent for path in folders)
        if record["val"] is not None and all(record.get(name) == value for name, value in wanted.items())
    ]
    for member in members:
        params = fit.plain_params(member.head)
        member.record = next((record for record in there if record["params"] == params), None)
    return sum(member.record is not None for member in members)


class _Trainer:
    """Trains the members of a sweep that have no run yet, on tables that are read once."""

    def __init__(
        self, cache: Cache, asked: Sweep, members: Sequence[_Member], tell: Callable[[News], None]
    ) -> None:
        self.cache, self.asked, self.members, self.tell = cache, asked, members, tell
        self.training = replace(asked.training, test=False)

    def run(self) -> int:
        """Train; return how many heads were trained at once, at most."""
        todo = [member for member in self.members if member.record is None]
        self._tell(0)
        if not todo:
            return 0
        table, val = fit.read_tables(self.cache, self.training)
        if val is None:
            raise OptionError(f"{self.cache.name} has no validation split.", "Give --val-fraction .2.")
        if isinstance(todo[0].head, NetworkHead):
            return self._together(todo, table, val)
        for member in todo:
            self._alone(member, table, val)
        return 1

    def _alone(self, member: _Member, table: Table, val: Table) -> None:
        self._tell(1)
        begin = time.perf_counter()
        try:
            member.head.fit(table.selection, table.y, val.selection, val.y)
        except HeadError as error:
            member.failure = str(error)
        else:
            seconds = time.perf_counter() - begin
            self._store(member, table, seconds, predict(member.head, val))
        self._tell(0)

    def _together(self, todo: Sequence[_Member], table: Table, val: Table) -> int:
        from featcache.heads.batched import check_data, fit_together  # torch

        data = check_data(table.selection, table.y, val.selection, val.y)
        batches = list(_batches(todo, table.columns, len(data.classes), self.asked.memory))
        for batch in batches:
            heads = [_network(member.head) for member in batch]
            for finished in fit_together(heads, data, self._tell_epoch):
                for number, error in finished:
                    batch[number].failure = None if error is None else str(error)
                done = [batch[number] for number, error in finished if error is None]
                predictions = predict_all([member.head for member in done], val)
                for member, prediction in zip(done, predictions, strict=True):
                    self._store(member, table, member.head.fit_seconds_, prediction)
            self._tell(0)
        return max(map(len, batches))

    def _tell_epoch(self, report: EpochOfMany) -> None:
        self._tell(report.alive, report.best_accuracy)

    def _store(self, member: _Member, table: Table, seconds: float, prediction: Prediction) -> None:
        run = runs.new_id(self.training.head)
        facts = fit.facts_of(self.cache, self.training, run, member.head, table, seconds)
        folder = runs.folder_of(self.cache.path, run)
        member.record = fit.store(self.cache, folder, facts, member.head, [prediction]).record
        member.head.forget()  # it is on disk; many heads' weights need not stay in memory

    def _tell(self, alive: int, best: float | None = None) -> None:
        done = [member for member in self.members if member.record or member.failure]
        known = [member.record["val"]["accuracy"] for member in done if member.record]
        known += [] if best is None else [best]
        self.tell(News(len(done), len(self.members), alive, max(known, default=None)))


def _batches(members: Sequence[_Member], columns: int, classes: int, memory: int) -> Iterator[list[_Member]]:
    """Yield members that can train together, as many as memory allows, in batches of about equal size."""
    from featcache.heads.batched import bytes_of, shared

    groups: dict[Any, list[_Member]] = {}
    for member in members:
        groups.setdefault(shared(_network(member.head)), []).append(member)
    for group in groups.values():
        most = max(1, memory // bytes_of(_network(group[0].head), columns, classes))
        count = -(-len(group) // most)
        for number in range(count):
            yield group[len(group) * number // count : len(group) * (number + 1) // count]


def _network(head: Head) -> NetworkHead:
    if not isinstance(head, NetworkHead):
        raise TypeError(f"expected a network head, got {type(head).__name__}")
    return head
