"""The ledger: killed at every file call and statement of SQLite, and while two real sweeps write into it."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featcache.commands.root import run as command
from featcache.store.cache import Cache
from featcache.training import runs
from featcache.training.ledger import FILE, Ledger
from tests.faults import sqlite_calls, toys
from tests.faults.processes import apart, fork, kill, wait
from tests.faults.test_kills import ATOMIC
from tests.faults.trials import FULL, draw, numbers, tally
from tests.kit_caches import separable_cache

FIRST, SECOND = "ridge-00000001", "ridge-00000002"
Work = Callable[[], object]


def _facts(cache: Cache, run: str) -> dict[str, Any]:
    return {**toys.facts(cache), "run": run}


def _store(cache: Cache, run: str) -> dict[str, Any]:
    """Write a run's folder, which comes before its line in the ledger."""
    return runs.write_run(
        runs.folder_of(cache.path, run),
        _facts(cache, run),
        b"head",
        [],
        {"val/row": toys.PREDICTIONS["val/row"]},
    )


def _ways(cache: Cache) -> Iterator[tuple[str, Work, set[str], set[str]]]:
    """Yield what writes into the ledger, and the runs that are in it before and afterwards.

    Each time the ledger is as the work finds it.
    """
    ledger, records = Ledger(cache.path.parent), [_store(cache, run) for run in (FIRST, SECOND)]
    yield "the first run recorded", partial(ledger.record, records[0]), set(), {FIRST}
    ledger.record(records[0])
    yield "another run recorded", partial(ledger.record, records[1]), {FIRST}, {FIRST, SECOND}
    yield "the ledger rebuilt", ledger.rebuild, {FIRST}, {FIRST, SECOND}


def _told(place: Path, start: Callable[[], list[str]], work: Work) -> int:
    """Return how many calls some work makes, in a process of its own."""
    counted = place / "counted"

    def counting() -> None:
        made = start()
        work()
        counted.write_text("\n".join(made))

    assert apart(counting) == 0
    return len(counted.read_text().splitlines())


def _die(start: Work, work: Work) -> None:
    kept = start()
    work()
    del kept


def _check_after(cache: Cache, allowed: Sequence[set[str]], capfd: pytest.CaptureFixture[str]) -> str:
    """What a kill left opens, and is what was there before or what was to be; the next commands mend it."""
    ledger, asked = Ledger(cache.path.parent), ["runs", "--features-dir", str(cache.path.parent), "--check"]
    there = {row["run"] for row in ledger.runs()}
    assert there in allowed
    found = ledger.check()
    assert found.differing == dict.fromkeys({FIRST, SECOND} - there, "not in the ledger")
    assert command(asked) == bool(found.differing) and not found.unreadable
    assert command([*asked, "--rebuild"]) == 0
    assert {row["run"] for row in ledger.runs()} == {FIRST, SECOND}
    capfd.readouterr()
    return "as it was" if there == allowed[0] else "recorded"


@contextmanager
def _each_way(place: Path) -> Iterator[Iterator[tuple[Cache, str, Work, list[set[str]], Work]]]:
    """Give what writes into the ledger, and what puts the ledger back."""
    cache = toys.start(place / "features")
    ledger, kept = cache.path.parent / FILE, place / "kept.sqlite"

    def put_back() -> None:
        for path in ledger.parent.glob(f"{FILE}*"):
            path.unlink()  # a journal of the last trial too
        if kept.exists():
            shutil.copy(kept, ledger)

    def each() -> Iterator[tuple[Cache, str, Work, list[set[str]], Work]]:
        for what, work, *allowed in _ways(cache):
            if ledger.exists():
                shutil.copy(ledger, kept)
            yield cache, what, work, allowed, put_back
            put_back()

    yield each()


@pytest.mark.timeout(1200)
def test_killed_between_all_file_calls_of_sqlite(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sqlite = sqlite_calls.library()
    if sqlite is None:
        pytest.skip(
            "SQLite is a part of this Python, or this is no x86-64 Linux: its calls cannot be replaced"
        )
    names = sqlite_calls.ALL if FULL else sqlite_calls.CHANGING
    watched: list[sqlite_calls.Watch] = []  # kept, for SQLite goes on calling it

    def start(at: int = 0, after: bool = False) -> list[str]:
        watched.append(sqlite_calls.Watch(sqlite, names, at, after))
        return watched[-1].made

    with (
        tally(ATOMIC, "SIGKILL between all file calls of SQLite, a run recorded") as found,
        _each_way(place) as ways,
    ):
        for cache, what, work, allowed, put_back in ways:
            calls = _told(place, start, work)
            assert calls > 2, what
            for _ in numbers(1, 50):
                for at in range(1, calls + 1):
                    for after in (False, True) if FULL else (True,):  # before one is after another
                        put_back()
                        dying = partial(_die, partial(start, at, after), work)
                        assert apart(dying) == -signal.SIGKILL, f"{what}: call {at} of {calls} was not made"
                        found.add(_check_after(cache, allowed, capfd))


@pytest.mark.timeout(1200)
def test_killed_before_every_statement(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def start(at: int = 0) -> list[str]:
        made: list[str] = []

        def each(statement: str) -> None:
            made.append(statement.partition("\n")[0])
            if len(made) == at:
                signal.raise_signal(signal.SIGKILL)

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            db = connect(*arguments, **options)
            db.set_trace_callback(each)
            return db

        sqlite3.connect = traced  # type: ignore[assignment]  # in a process that ends soon
        return made

    with (
        tally(ATOMIC, "SIGKILL before every SQL statement and commit, a run recorded") as found,
        _each_way(place) as ways,
    ):
        for cache, what, work, allowed, put_back in ways:
            statements = _told(place, start, work)
            assert statements > 4, what
            for _ in numbers(1, 50):
                for at in range(1, statements + 1):
                    put_back()
                    assert apart(partial(_die, partial(start, at), work)) == -signal.SIGKILL, f"{what}: {at}"
                    found.add(_check_after(cache, allowed, capfd))


GRIDS = ("alpha=1e-3,1e-2,.1", "alpha=1,10,100"), ("lr=1e-3,1e-2", "lr=.1,.3")


def _sweep(features: Path, head: str, grid: str) -> int:
    """What `featcache sweep` does, in this process."""
    asked = ["sweep", "--head", head, "--grid", grid, "--features-dir", str(features), "--json"]
    return command(asked + (["--epochs", "3"] if head == "linear" else []))


def _swept(features: Path, head: str, grid: str) -> None:
    assert _sweep(features, head, grid) == 0


def _on_disk(features: Path) -> dict[str, Any]:
    return {record["run"]: record for record in runs.readable(runs.all_runs(features))}


@pytest.mark.timeout(1200)
def test_two_real_sweeps_writing_one_ledger_are_killed(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    separable_cache(place / "toys", n=60, test=12)
    with tally(
        ATOMIC, "two real sweeps of one features folder writing one ledger, killed, begun again"
    ) as found:
        for head, grids in zip(
            ("ridge", "linear"), GRIDS, strict=True
        ):  # what is made and imported once is there
            shutil.copytree(place / "toys", place / f"{head}-warm")
            _swept(place / f"{head}-warm", head, grids[0])
            shutil.copytree(place / "toys", place / head)
            begin = time.monotonic()
            sweeps = [fork(_swept, place / head, head, grid) for grid in grids]
            assert [wait(process) for process in sweeps] == [0, 0]
            assert len(_on_disk(place / head)) == sum(grid.count(",") + 1 for grid in grids)
            assert command(["runs", "--features-dir", str(place / head), "--check"]) == 0
            lasted = time.monotonic() - begin
            for trial in numbers(1, 25):
                rng, features = draw("sweeps", head, trial), place / f"{head}{trial}"
                shutil.copytree(place / "toys", features)
                found.add(_kill_sweeps(features, head, grids, lasted, rng))
                shutil.rmtree(features)
    capfd.readouterr()


def _kill_sweeps(features: Path, head: str, grids: tuple[str, ...], lasted: float, rng: Any) -> str:
    """Kill two sweeps over and over, look at the ledger each time, and let them come to their end."""
    asked, seen, short = ["runs", "--features-dir", str(features), "--check"], {}, 0
    for _ in range(3):
        sweeps = [fork(_swept, features, head, grid) for grid in grids]
        time.sleep(rng.random() * lasted)
        assert {kill(process) for process in sweeps} <= {0, -signal.SIGKILL}
        there = _on_disk(features)
        assert seen.items() <= there.items(), "a run was lost or changed"
        seen, found = there, Ledger(features).check()  # which opens it
        assert not found.unreadable and set(found.differing.values()) <= {"not in the ledger"}
        assert len(found.differing) <= 2, "more than the one run that each sweep had in hand"
        short += bool(found.differing)
        if found.differing:
            assert command(asked) == 1 and command([*asked, "--rebuild"]) == 0
        assert command(asked) == 0
    sweeps = [fork(_swept, features, head, grid) for grid in grids]
    assert [wait(process) for process in sweeps] == [0, 0]
    assert command(asked) == 0
    there = _on_disk(features)
    assert seen.items() <= there.items()
    name = "alpha" if head == "ridge" else "lr"
    wanted = sorted(float(value) for grid in grids for value in grid.partition("=")[2].split(","))
    assert sorted(record["params"][name] for record in there.values()) == wanted, "each head once"
    return "no run lost, each once; a rebuild mended the ledger" if short else "no run lost, each once"
