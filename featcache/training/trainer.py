"""Trains the heads of a sweep that have no run yet, and stores each as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from featcache.costs import Costs, Meter
from featcache.errors import OptionError
from featcache.store.cache import Cache
from featcache.store.records import HEADS
from featcache.store.table import Table
from featcache.training import fit, runs, subsets, views
from featcache.training.facts import begun, facts_of, plain_params
from featcache.training.fit import Training
from featcache.training.listener import SILENT, Listener
from featcache.training.members import Member, batches, by_subset
from featcache.training.pace import Pace
from featcache.training.predictions import Prediction, predict_all

if TYPE_CHECKING:
    from featcache.heads.batched import EpochOfMany


@dataclass(frozen=True)
class News:
    """How far a sweep is: heads done of how many, those in training now, and the best accuracy so far.

    `seconds_left` is what is left at the pace so far if no head stops early; None before there is one.
    """

    done: int
    total: int
    alive: int
    best_accuracy: float | None
    seconds_left: float | None = None


class Trainer:
    """Gives heads their runs: those that the cache has, or else trained ones.

    `training` says what all heads have in common; `found` counts those that had a run before, `together`
    is how many trained at once, at most. `total` is how many heads there will be in all.
    """

    def __init__(
        self,
        cache: Cache,
        training: Training,
        memory: int,
        total: int,
        tell: Callable[[News], None] = lambda news: None,
        warn: Callable[[str], None] = lambda text: None,
        listener: Listener = SILENT,
    ) -> None:
        self.cache, self.memory, self.total = cache, memory, total
        self.training = replace(training, test=False, calibrate=False, subset=None)
        self.found = self.together = 0
        self._tell_news, self._warn, self._listener = tell, warn, listener
        self._members: list[Member] = []
        self._tables: tuple[Table, Table | None] | None = None
        self._pace = Pace()  # its unit is a row seen in an epoch
        self._there: list[dict[str, Any]] | None = None
        self._warned = False

    def train(self, members: Sequence[Member]) -> None:
        """Train those of the members that have no run yet; those that fail get a `failure`.

        Raises:
            CacheError: the cache is not finished or has no rows for a split.
            DamagedError: a shard differs from what was committed.
        """
        self._members += members
        self._find(members)
        self._tell(0)
        todo = by_subset(member for member in members if member.record is None)
        for subset, group in todo.items():
            self._pace.expect(_work(group, len(self._select(subset)[0])))
        for subset, group in todo.items():
            self._train_on(subset, group)

    def _find(self, members: Sequence[Member]) -> None:
        """Give members the runs they have already."""
        if self._there is None:
            self._there = list(self._runs_there())
        for member in members:
            params, subset = plain_params(member.head), subsets.to_record(member.subset)
            same = (r for r in self._there if r["params"] == params and r.get("subset") == subset)
            member.record = next(same, None)
            self.found += member.record is not None

    def _runs_there(self) -> Iterator[dict[str, Any]]:
        """Yield the runs on the same rows, calibrated ones and those chosen by cross-validation aside."""
        split = {key: value for key, value in self.training.split_options().items() if key != "node"}
        wanted = {
            "key": self.cache.key,
            "node": self.cache.node(self.training.node),
            "head": self.training.head,
            "split": split,
            "calibration": None,
            "cv": None,
            "views": views.to_record(self.cache, self.training.head, self.training.view_mode),
        }
        folders = sorted((self.cache.path / HEADS).glob(f"{self.training.head}-*/{runs.RUN}"))
        for record in runs.readable(path.parent for path in folders):
            alike = all(record.get(name) == value for name, value in wanted.items())
            if alike and record["val"] is not None:
                yield record

    def _select(self, subset: subsets.Subset | None) -> tuple[Table, Table]:
        if self._tables is None:
            self._tables = fit.read_tables(self.cache, self.training)
        table, val = subsets.select(*self._tables, subset)
        if val is None:
            raise OptionError(f"{self.cache.name} has no validation split.", "Give --val-fraction .2.")
        return table, val

    def _train_on(self, subset: subsets.Subset | None, members: Sequence[Member]) -> None:
        from featcache.heads.batched import check_data  # torch
        from featcache.heads.together import fit_together

        table, val = self._select(subset)
        self._forewarn(members, table)
        shape = table.selection.shape
        mode = views.resolved(self.cache, self.training.head, self.training.view_mode)
        drawn = views.drawn_of(table, mode) or 1
        data = check_data(table.selection, table.labels, val.selection, val.y, views=drawn)
        for batch in batches(members, shape, len(data.classes), self.memory):
            self.together = max(self.together, len(batch))
            self._tell(len(batch))
            told = partial(self._tell_epoch, batch=batch, rows=len(table))
            with self._heard(batch), Meter() as meter:
                for finished in fit_together([member.head for member in batch], data, told):
                    for number, error in finished:
                        batch[number].failure = None if error is None else str(error)
                        if error is not None:
                            self._listener.breaks(batch[number].run)
                    spent = meter.costs(reads="features", together=len(batch))
                    done = [batch[number] for number, error in finished if error is None]
                    self._store(done, table, val, spent)
            self._pace.finish(_work(batch, len(table)))
            self._tell(0)

    @contextmanager
    def _heard(self, batch: Sequence[Member]) -> Iterator[None]:
        """Give members the ids that their runs will have, and tell that they begin, or break."""
        for member in batch:
            member.run = runs.new_id(self.training.head)
            training = replace(self.training, subset=member.subset)
            self._listener.begins(member.run, begun(self.cache, training, member.head))
        try:
            yield
        finally:
            for member in batch:
                if member.record is None and member.failure is None:
                    self._listener.breaks(member.run)

    def _forewarn(self, members: Iterable[Member], table: Table) -> None:
        if not self._warned:
            text = next(filter(None, (views.forewarning(m.head, table) for m in members)), "")
            self._warned = bool(text)
            if text:
                self._warn(text)

    def _store(self, done: Sequence[Member], table: Table, val: Table, spent: Costs) -> None:
        predictions = predict_all([member.head for member in done], val)
        for member, prediction in zip(done, predictions, strict=True):
            own = replace(spent, fit_seconds=round(member.head.fit_seconds_, 6))
            self._store_one(member, table, prediction, own)

    def _store_one(self, member: Member, table: Table, prediction: Prediction, spent: Costs) -> None:
        training = replace(self.training, subset=member.subset)
        facts = facts_of(self.cache, training, member.run, member.head, table, spent)
        folder = runs.folder_of(self.cache.path, member.run)
        member.record = fit.store(self.cache, folder, facts, member.head, [prediction]).record
        self._listener.ends(member.run, member.record)
        self._there = [*(self._there or []), member.record]
        member.head.forget()  # it is on disk; many heads' weights need not stay in memory

    def _tell_epoch(self, report: EpochOfMany, batch: Sequence[Member], rows: int) -> None:
        for number, row in report.rows.items():
            self._listener.epoch(batch[number].run, row)
        known = [m.epochs if m.record else m.epochs_of(report.epoch) for m in batch]
        self._tell(min(report.alive, len(batch)), report.best_accuracy, rows * sum(known))

    def _tell(self, alive: int, best: float | None = None, running: int = 0) -> None:
        done = [member for member in self._members if member.record or member.failure]
        known = [member.record["val"]["accuracy"] for member in done if member.record]
        known += [] if best is None else [best]
        unknown = (self.total - len(self._members)) / max(1, len(self._members))
        left = self._pace.seconds_left(running, unknown)
        self._tell_news(News(len(done), self.total, alive, max(known, default=None), left))


def _work(members: Iterable[Member], rows: int) -> int:
    return sum(member.epochs * rows for member in members)
