"""The ledger: one row a run, over all caches, in SQLite. An index of the run folders, which are the truth."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import CacheError, FeatcacheError, OptionError, unknown
from featcache.training.runs import all_runs, read_run, readable

FILE = "ledger.sqlite"
VERSION = 1
# column → its SQL type and where in a run's record it stands
COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run": ("TEXT PRIMARY KEY", ("run",)),
    "created": ("TEXT", ("created",)),
    "cache": ("TEXT", ("cache",)),
    "dataset": ("TEXT", ("dataset",)),
    "backbone": ("TEXT", ("backbone",)),
    "node": ("TEXT", ("node",)),
    "head": ("TEXT", ("head",)),
    "val_accuracy": ("REAL", ("val", "accuracy")),
    "val_macro_f1": ("REAL", ("val", "macro_f1")),
    "val_log_loss": ("REAL", ("val", "log_loss")),
    "test_accuracy": ("REAL", ("test", "accuracy")),
    "test_macro_f1": ("REAL", ("test", "macro_f1")),
    "test_log_loss": ("REAL", ("test", "log_loss")),
    "epochs": ("INTEGER", ("epochs",)),
    "best_epoch": ("INTEGER", ("best_epoch",)),
    "fit_seconds": ("REAL", ("fit_seconds",)),
    "peak_rss_bytes": ("INTEGER", ("peak_rss_bytes",)),
    "params": ("TEXT", ("params",)),
}
# what a best run can be best by → in which order the best comes first
MEASURES = {
    "val_accuracy": "DESC",
    "val_macro_f1": "DESC",
    "val_log_loss": "ASC",
    "test_accuracy": "DESC",
    "test_macro_f1": "DESC",
    "test_log_loss": "ASC",
    "fit_seconds": "ASC",
}
GROUPS = ("cache", "head", "dataset", "backbone")  # what there can be a best run of each of
_PARAMS = "params."
_CONDITION = re.compile(r"([\w.]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*)")


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
        clauses, values = _conditions(where)
        column = _column(sort.removeprefix("-"))
        order = "DESC" if sort.startswith("-") else "ASC"
        query = f"SELECT * FROM runs WHERE {clauses} ORDER BY {column} IS NULL, {column} {order}, run LIMIT ?"
        return self._found(query, values, limit)

    def best(
        self, by: str, per: str = "cache", where: Sequence[str] = (), limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the best run of each cache, head …, the best of all first; of equals the earliest.

        Args:
            by: one of `MEASURES`; runs without it are left out.
            per: one of `GROUPS`.
            where: as for `runs`; what does not meet it takes no part.
            limit: at most so many.

        Raises:
            OptionError: a condition, `by` or `per` is unknown.
        """
        clauses, values = _conditions(where)
        if by not in MEASURES:
            raise unknown("measure", by, MEASURES)
        if per not in GROUPS:
            raise unknown("group", per, GROUPS)
        order = f"{by} {MEASURES[by]}, created, run"
        placed = f"*, ROW_NUMBER() OVER (PARTITION BY {per} ORDER BY {order}) AS place"
        query = (
            f"SELECT {', '.join(COLUMNS)} FROM "
            f"(SELECT {placed} FROM runs WHERE {clauses} AND {by} IS NOT NULL) "
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
                expected[record["run"]] = _values(record)
        there = self._stored()
        gone = there.keys() - expected.keys() - unreadable.keys()
        wrong = dict.fromkeys(gone, "in the ledger, but there is no such run folder")
        for run, values in expected.items():
            if difference := _difference(there.get(run), values):
                wrong[run] = difference
        return Check(len(expected) + len(unreadable), dict(sorted(wrong.items())), unreadable)

    def _found(self, query: str, values: Sequence[Any], limit: int | None) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self._open() as db:
            rows = db.execute(query, [*values, -1 if limit is None else limit]).fetchall()
        return [{**dict(row), "params": json.loads(row["params"])} for row in rows]

    def _stored(self) -> dict[str, list[Any]]:
        if not self.path.exists():
            return {}
        with self._open() as db:
            rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM runs").fetchall()
        return {row["run"]: list(row) for row in rows}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # The rollback journal, not WAL: it works on network file systems. Writers wait for each other.
            with closing(sqlite3.connect(self.path, timeout=60)) as db:
                db.row_factory = sqlite3.Row
                self._prepare(db)
                with db:
                    yield db
        except sqlite3.Error as error:
            raise CacheError(
                f"Cannot use the ledger {self.path}: {error}.",
                "The runs themselves are safe; move the file away and run: featcache runs --rebuild.",
            ) from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == VERSION:
            return
        if version != 0:
            raise CacheError(
                f"The ledger {self.path} has version {version}; this featcache knows {VERSION}.",
                "Use a newer featcache, or move the file away and run: featcache runs --rebuild.",
            )
        columns = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items())
        with db:
            db.execute(f"CREATE TABLE IF NOT EXISTS runs ({columns})")
            db.execute(f"PRAGMA user_version = {VERSION}")


def _insert(db: sqlite3.Connection, run: Mapping[str, Any]) -> None:
    values = _values(run)
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT OR REPLACE INTO runs ({', '.join(COLUMNS)}) VALUES ({marks})", values)


def _values(run: Mapping[str, Any]) -> list[Any]:
    """Return a run's row of the ledger, in the order of the columns."""
    return [_value(run, where) for _, where in COLUMNS.values()]


def _difference(stored: Sequence[Any] | None, expected: Sequence[Any]) -> str:
    if stored is None:
        return "not in the ledger"
    return "; ".join(
        f"{name}: {there!r} in the ledger, {value!r} in its folder"
        for name, there, value in zip(COLUMNS, stored, expected, strict=True)
        if there != value
    )


def _value(run: Mapping[str, Any], where: Sequence[str]) -> Any:
    value: Any = run
    for key in where:
        value = value.get(key) if isinstance(value, Mapping) else None
    return json.dumps(value, sort_keys=True) if where == ("params",) else value


def _conditions(where: Sequence[str]) -> tuple[str, list[Any]]:
    clauses, values = ["1"], []
    for text in where:
        match = _CONDITION.fullmatch(text.strip())
        if match is None:
            raise OptionError(
                f"Cannot read the condition {text!r}.", "Write it as column=value, e.g. head=mlp."
            )
        column, operator, value = match.groups()
        if operator == "~":
            clauses.append(f"instr({_column(column)}, ?) > 0")
        else:
            clauses.append(f"{_column(column)} {operator} ?")
        values.append(value if operator == "~" else _operand(column, value))
    return " AND ".join(clauses), values


def _column(name: str) -> str:
    """Return a column, or one option out of the column `params`, as SQL."""
    option = name.removeprefix(_PARAMS)
    if option != name and re.fullmatch(r"\w+", option):
        return f"json_extract(params, '$.{option}')"
    if name not in COLUMNS:
        raise OptionError(f"Unknown column {name!r}.", f"Known: {', '.join(COLUMNS)}, params.OPTION.")
    return name


def _operand(column: str, value: str) -> float | str:
    """Return what a column is compared with: a number where it holds numbers."""
    if column.startswith(_PARAMS):
        return _typed(value)
    if COLUMNS[column][0].startswith("TEXT"):
        return value
    found = _typed(value)
    if isinstance(found, str):
        raise OptionError(f"{column} holds numbers, got {value!r}.", "Write e.g. val_accuracy>=.7.")
    return found


def _typed(value: str) -> float | str:
    """Return the number that a text is, else the text: what JSON holds is compared by its type."""
    try:
        return float(value)
    except ValueError:
        return value.replace(" ", "")  # lists, which SQLite writes without blanks
