"""A features folder of a stranger under every command: its ledger, memories, runs and names."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featcache.commands.root import run as command
from featcache.errors import FeatcacheError
from featcache.heads import saving
from featcache.store import records, sharing
from featcache.store.cache import Cache
from featcache.store.recent import FOLDER, last_used, mark_used
from featcache.training import runs
from featcache.training.ledger import Ledger
from tests.faults import damage, fuzzing, strangers, toys
from tests.faults.processes import apart
from tests.faults.test_fuzz import FUZZ
from tests.faults.test_strangers import HOSTILE, _folder, _link, _pipe, _refused, _set
from tests.faults.trials import draw, numbers, tally

FACTS = {"images": 3, "seconds": 1.5, "total_seconds": 2.5, "device": "cpu", "batch_size": 3}


@pytest.fixture
def outside(place: Path) -> Path:
    strangers.make_canaries(place / "outside")
    return place / "outside"


@pytest.fixture
def cache(place: Path) -> Cache:
    made = toys.start(place / "features")
    toys.commit_all(made)
    toys.write_run(made, toys.head_bytes(made))
    Ledger(made.path.parent).rebuild()
    mark_used(made.path.parent, made.name)
    told = _facts_of(made)
    told.parent.mkdir(parents=True)
    told.write_bytes(strangers.signed({"format": 1, **FACTS}))
    return made


def _facts_of(cache: Cache) -> Path:
    return cache.path.parent / FOLDER / "extractions" / cache.name / "20260101T000000Z-1.json"


def _said(cache: Cache, *words: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it said. Whatever it raises is a failure."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = command([*words, "--features-dir", str(cache.path.parent)])
    return code, said.getvalue()


def _commands(cache: Cache) -> list[list[str]]:
    looks = [["ls"], ["info"], ["info", cache.name], ["verify"], ["runs"], ["runs", "--check"], ["gc"]]
    return [*looks, ["runs", "--rebuild"], ["runs", "--best-by", "val_accuracy"], ["evaluate", toys.RUN]]


@pytest.mark.timeout(1200)
def test_changed_records_under_every_command(cache: Cache) -> None:
    """With fitting checksums: a command does what it is for, or says in one sentence why not."""
    run = runs.folder_of(cache.path, toys.RUN) / runs.RUN
    paths = [run, run, _facts_of(cache), cache.path / records.RECIPE, cache.path / records.SEAL]
    files = damage.snapshot(cache.path.parent)
    trials = numbers(240, 10_000)

    def work() -> None:
        for trial in trials:
            rng = draw("commands", trial)
            path = rng.choice(paths)
            record = json.loads(files[path])
            record.pop("sha256")
            record = fuzzing.changed_value(record, rng)
            if not isinstance(record, dict):
                continue
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if path.name == records.RECIPE:
                    ours = records.sha256_of(record["recipe"]), record["dataset"]["fingerprint"]
                    record["key"] = records.cache_key(*ours)
                path.write_bytes(strangers.signed(record))
            words = rng.choice(_commands(cache))
            code, said = _said(cache, *words)
            assert code in (0, 1), f"trial {trial}: {words}: {said}"
            assert code == 0 or said.count("Error: ") == 1, f"trial {trial}: {words}: {said}"
            damage.restore(cache.path.parent, files)

    with tally(FUZZ, "records changed, with fitting checksums, under every command that reads them") as found:
        assert apart(work) == 0
        for _ in trials:
            found.add("done, or one sentence")


def _sql(*statements: str) -> Callable[[Path, Path], None]:
    def make(path: Path, outside: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for statement in statements:
                db.execute(statement)

    return make


_ENDLESS = "WITH RECURSIVE n(run) AS (SELECT 1 UNION ALL SELECT run + 1 FROM n) SELECT run FROM n"
LEDGERS: dict[str, Callable[[Path, Path], None]] = {
    "a view that never ends": _sql("DROP TABLE runs", f"CREATE VIEW runs AS {_ENDLESS}"),
    "a trigger": _sql("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM runs; END"),
    "a table more": _sql("CREATE TABLE more (x)"),
    "other columns": _sql("DROP TABLE runs", "CREATE TABLE runs (x)"),
    "another version": _sql("PRAGMA user_version = 99"),
    "text": lambda path, outside: (path.write_bytes(b"no database " * 500), None)[1],
    "a link to a database": lambda path, outside: _replaced(path, outside / "secret", _link),
    "a link to nowhere": lambda path, outside: _replaced(path, outside / "new.sqlite", _link_to),
    "a pipe": lambda path, outside: _replaced(path, outside, _pipe),
    "a folder": lambda path, outside: _replaced(path, outside, _folder),
}


def _replaced(path: Path, outside: Path, put: Callable[[Path, Path], None]) -> None:
    path.unlink()
    put(path, outside if put is not _link else outside.parent)


def _link_to(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def test_ledgers_that_are_none(cache: Cache, outside: Path) -> None:
    path, good = cache.path.parent / "ledger.sqlite", (cache.path.parent / "ledger.sqlite").read_bytes()
    record = runs.read_run(runs.folder_of(cache.path, toys.RUN))

    def each() -> Iterator[tuple[str, Callable[[], object]]]:
        for name, make in LEDGERS.items():
            for what in ("runs", "record"):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                path.write_bytes(good)
                make(path, outside)
                ledger = Ledger(path.parent)
                yield f"{name}, {what}", ledger.runs if what == "runs" else partial(ledger.record, record)

    with tally(HOSTILE, "ledgers: views, triggers, links, pipes; read and written") as found:
        _refused(outside, each(), found)


@pytest.mark.parametrize("params", ["no JSON", "[" * 100_000, "3", None, b"\xff"])
def test_options_in_the_ledger_that_are_none(cache: Cache, params: Any) -> None:
    with contextlib.closing(sqlite3.connect(cache.path.parent / "ledger.sqlite")) as db, db:
        db.execute("UPDATE runs SET params = ?", [params])
    assert [row["params"] for row in Ledger(cache.path.parent).runs()] == [{}]
    assert _said(cache, "runs")[0] == 0


PUT: dict[str, Callable[[Path, Path], object]] = {
    "a pipe": _pipe,
    "a link": _link,
    "a folder": _folder,
    "brackets": lambda path, outside: path.write_bytes(b"[" * 9000),
    "100 MB": lambda path, outside: (path.touch(), os.truncate(path, 10**8)),
    "a list": lambda path, outside: path.write_bytes(b"[1]"),
    "a path": lambda path, outside: path.write_bytes(b'{"cache": "../../outside"}'),
}


@pytest.mark.parametrize("put", PUT)
def test_memories_that_are_none(cache: Cache, outside: Path, put: str) -> None:
    """They may be forgotten: what stands in their place is passed over, and nothing waits for it."""
    home = cache.path.parent / FOLDER

    def work() -> None:
        with strangers.unread(outside):
            assert last_used(home.parent) is None
            assert sharing.why_not_several(cache.path)  # one at a time, to be safe
            for words in (["info", cache.name], ["ls"], ["gc"]):
                assert _said(cache, *words)[0] == 0, words

    for path in (home / "last.json", home / sharing.KNOWN, _facts_of(cache)):
        path.unlink(missing_ok=True)
        PUT[put](path, outside)
    assert apart(work) == 0


def test_runs_that_lie_elsewhere_or_speak_of_others(cache: Cache, outside: Path) -> None:
    folder = runs.folder_of(cache.path, toys.RUN)
    heads, files = folder.parent, damage.snapshot(folder)

    def speaks(of: str) -> Callable[[], None]:
        return lambda: strangers.resign(folder / runs.RUN, partial(_set, run=of))

    def elsewhere(path: Path) -> Callable[[], None]:
        def move() -> None:
            shutil.move(path, outside.parent / path.name)
            path.symlink_to(outside.parent / path.name)

        return move

    made = {name: speaks(name) for name in ("../../outside", "/etc/passwd", "ridge-00000000", "", "a\nb-01")}
    made |= {"a link to a run": elsewhere(folder), "heads is a link": elsewhere(heads)}

    def each() -> Iterator[tuple[str, Callable[[], object]]]:
        for name, make in made.items():
            make()
            yield name, partial(runs.read_run, folder)
            if not folder.is_symlink() and not heads.is_symlink():
                damage.restore(folder, files)
            elif folder.is_symlink():
                folder.unlink()
                shutil.move(outside.parent / folder.name, folder)

    with tally(HOSTILE, "runs that are links, or speak of another run") as found:
        _refused(outside, each(), found)
    with pytest.raises(FeatcacheError, match="link to elsewhere"):
        Cache(cache.path)


def test_a_run_that_a_stranger_wrote_stops_no_other(cache: Cache) -> None:
    """One record of a wrong type cost the whole ledger: neither rebuilt nor checked."""
    other = runs.folder_of(cache.path, "ridge-00000001")
    shutil.copytree(runs.folder_of(cache.path, toys.RUN), other)
    good = (other / runs.RUN).read_bytes()
    for field, value in {"subset": 3, "created": "\ud800", "epochs": 2**70, "val": {"accuracy": "x"}}.items():
        (other / runs.RUN).write_bytes(good)
        strangers.resign(other / runs.RUN, partial(_set, **{"run": other.name, field: value}))
        assert _said(cache, "runs", "--rebuild")[0] == 0
        assert [row["run"] for row in Ledger(cache.path.parent).runs()] == [toys.RUN], field
        code, said = _said(cache, "runs", "--check")
        assert code == 1 and f"its field '{field}" in said, said


def test_a_name_with_a_line_end_stays_in_its_line(cache: Cache) -> None:
    forged = cache.path.with_name("x\n\x1b[2Jall is well--a--0123456789")
    shutil.copytree(cache.path, forged)
    code, said = _said(cache, "ls")
    assert code == 0 and len(said.splitlines()) == 4 and "\x1b" not in said
    assert r"x\n\x1b[2Jall is well" in said


def test_a_name_that_stands_twice_in_a_record(cache: Cache) -> None:
    """Readers would differ in which of the two holds; the checksum is that of the last."""
    for path in (cache.path / records.RECIPE, cache.path / records.SEAL):
        good = path.read_bytes()
        path.write_bytes(good.replace(b"{", b'{"key": "' + b"0" * 64 + b'",', 1))
        with pytest.raises(FeatcacheError, match="twice"):
            records.read(path)
        path.write_bytes(good)


@pytest.mark.parametrize("put", [_pipe, _folder])
def test_a_head_that_is_no_file(place: Path, put: Callable[[Path, Path], None]) -> None:
    put(place / "head.safetensors", place)

    def work() -> None:
        for read in (saving.loads, saving.context_of):
            with pytest.raises(FeatcacheError):
                read(place / "head.safetensors")

    assert apart(work) == 0
