"""The ledger: one row a run, over all caches, in SQLite. An index of the run folders, which are the truth."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import CacheError, FeatcacheError, unknown
from featcache.store import keeping
from featcache.training.columns import COLUMNS, GROUPS, MEASURES, conditions, measure, values_of
from featcache.training.columns import column as column_of
from featcache.training.runs import all_runs, read_run, readable

FILE = "ledger.sqlite"
VERSION = 3
_OLDER = (1, 2)  # whose columns are fewer: an index is made anew from the run folders
_FOREIGN = (
    "SELECT type, name FROM sqlite_master WHERE type <> 'index' AND (type, name) <> ('table', 'runs') "
    "AND name NOT GLOB 'sqlite_*'"
)
_NO_FOLD = "(subset IS NULL OR subset NOT LIKE 'fold %')"


@dataclass(frozen=True)
class Check:
    """What a check found: how many run folders there are, and of which runs something is wrong.

    `differing`: run → how the ledger differs from its folder. `unreadable`: run → why its record is not read.
    """

    runs: int
    differing: Mapping[str, str]
    unreadable: Mapping[str, str]


class Ledger:
    """The ledger of a features folder; made when the first run is recorded.

    Raises:
        CacheError: the file is no ledger, or of an unknown version.
    """

    def __init__(self, features_dir: Path) -> None:
        self.features_dir = features_dir
        self.path = features_dir / FILE

    def record(self, run: Mapping[str, Any]) -> None:
        """Add a run, or replace it where it is known."""
        with self._open() as db:
            _insert(db, run)

    def rebuild(self) -> int:
        """Make the ledger anew from the run folders; return how many runs there are."""
        found = list(readable(all_runs(self.features_dir)))
        with self._open() as db:
            db.execute("DELETE FROM runs")
            for run in found:
                _insert(db, run)
        return len(found)

    def runs(
        self, where: Sequence[str] = (), sort: str = "created", limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return runs as rows.

        Args:
            where: conditions such as "head=mlp", "val_accuracy>=.7", "cache~vgg16" (contains) or, of a head's
                options, "params.lr<=1e-3", "params.hidden=[50,20]"; all must hold.
            sort: a column or params.OPTION, smallest first; "-column" for largest first.
            limit: at most so many.

        Raises:
            OptionError: a condition or column is unknown.
        """
        clauses, values = conditions(where)
        column = column_of(sort.removeprefix("-"))
        order = "DESC" if sort.startswith("-") else "ASC"
        query = f"SELECT * FROM runs WHERE {clauses} ORDER BY {column} IS NULL, {column} {order}, run LIMIT ?"
        return self._found(query, values, limit)

    def best(
        self, by: str, per: str = "cache", where: Sequence[str] = (), limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the best run of each cache, head …, the best of all first; of equals the earliest.

        Args:
            by: one of `MEASURES`, such as "val_ece" or, for short, "ece"; runs without it are left out, and
                so are those of single folds, which validated on other rows.
            per: one of `GROUPS`.
            where: as for `runs`; what does not meet it takes no part.
            limit: at most so many.

        Raises:
            OptionError: a condition, `by` or `per` is unknown.
        """
        clauses, values = conditions(where)
        by = measure(by)
        if per not in GROUPS:
            raise unknown("group", per, GROUPS)
        order = f"{by} {MEASURES[by]}, created, run"
        placed = f"*, ROW_NUMBER() OVER (PARTITION BY {per} ORDER BY {order}) AS place"
        query = (
            f"SELECT {', '.join(COLUMNS)} FROM "
            f"(SELECT {placed} FROM runs WHERE {clauses} AND {by} IS NOT NULL AND {_NO_FOLD}) "
            f"WHERE place = 1 ORDER BY {order} LIMIT ?"
        )
        return self._found(query, values, limit)

    def check(self) -> Check:
        """Compare the ledger with the run folders, column by column; nothing is changed."""
        expected: dict[str, list[Any]] = {}
        unreadable: dict[str, str] = {}
        for folder in all_runs(self.features_dir):
            try:
                record = read_run(folder)
            except FeatcacheError as error:
                unreadable[folder.name] = error.message
            else:
                expected[record["run"]] = values_of(record)
        there = self._stored()
        gone = there.keys() - expected.keys() - unreadable.keys()
        wrong = dict.fromkeys(gone, "in the ledger, but there is no such run folder")
        for run, values in expected.items():
            if difference := _difference(there.get(run), values):
                wrong[run] = difference
        return Check(len(expected) + len(unreadable), dict(sorted(wrong.items())), unreadable)

    def _found(self, query: str, values: Sequence[Any], limit: int | None) -> list[dict[str, Any]]:
        self._catch_up()
        if not os.path.lexists(self.path):
            return []
        with self._open() as db:
            rows = db.execute(query, [*values, -1 if limit is None else limit]).fetchall()
        return [{**dict(row), "params": _params(row["params"])} for row in rows]

    def _stored(self) -> dict[str, list[Any]]:
        self._catch_up()
        if not os.path.lexists(self.path):
            return {}
        with self._open() as db:
            rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM runs").fetchall()
        return {row["run"]: list(row) for row in rows}

    def _catch_up(self) -> None:
        """Make the index anew if runs came or went elsewhere: other machines have ledgers of their own."""
        if keeping.runs_changed(self.features_dir):
            self.rebuild()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Not through a link into somebody's database, and not waiting for what comes out of a pipe.
        if os.path.lexists(self.path) and not stat.S_ISREG(self.path.lstat().st_mode):
            raise _no_ledger(self.path, "it is no regular file")
        try:
            # The rollback journal, not WAL: it works on network file systems. Writers wait for each other.
            with closing(sqlite3.connect(self.path, timeout=60)) as db:
                db.row_factory = sqlite3.Row
                self._check_schema(db)
                self._prepare(db)
                with db:
                    yield db
        except (sqlite3.Error, UnicodeError) as error:
            raise _no_ledger(self.path, str(error)) from error

    def _check_schema(self, db: sqlite3.Connection) -> None:
        """Refuse a file with anything but our table: a view may never end, a trigger does what it likes."""
        if found := db.execute(_FOREIGN).fetchall():
            raise _no_ledger(self.path, f"it holds {_listed(found)}, expected the table runs alone")

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == VERSION:
            return
        if version not in (0, *_OLDER):
            raise CacheError(
                f"The ledger {self.path} has version {version}; this featcache knows {VERSION}.",
                "Use a newer featcache, or move the file away and run: featcache runs --rebuild.",
            )
        columns = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items())
        with db:
            db.execute("BEGIN IMMEDIATE")  # of two processes that find an older ledger one makes it anew
            if int(db.execute("PRAGMA user_version").fetchone()[0]) in _OLDER:
                db.execute("DROP TABLE runs")
            db.execute(f"CREATE TABLE IF NOT EXISTS runs ({columns})")
            db.execute(f"PRAGMA user_version = {VERSION}")
            if version in _OLDER:
                for run in readable(all_runs(self.features_dir)):
                    _insert(db, run)


def _no_ledger(path: Path, why: str) -> CacheError:
    hint = "The runs themselves are safe; move the file away and run: featcache runs --rebuild."
    return CacheError(f"Cannot use the ledger {path}: {why}.", hint)


def _listed(found: Sequence[sqlite3.Row]) -> str:
    return ", ".join(f"the {row['type']} {str(row['name'])[:40]!r}" for row in found[:5])


def _params(text: Any) -> dict[str, Any]:
    """Return a head's options; none where the text, which may be a stranger's, is no JSON object."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _insert(db: sqlite3.Connection, run: Mapping[str, Any]) -> None:
    values = values_of(run)
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT OR REPLACE INTO runs ({', '.join(COLUMNS)}) VALUES ({marks})", values)


def _difference(stored: Sequence[Any] | None, expected: Sequence[Any]) -> str:
    if stored is None:
        return "not in the ledger"
    return "; ".join(
        f"{name}: {there!r} in the ledger, {value!r} in its folder"
        for name, there, value in zip(COLUMNS, stored, expected, strict=True)
        if there != value
    )
