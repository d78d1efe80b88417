"""Folders that several writers cannot share: refused for several, good for one; what doctor says of them."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featcache import atomic
from featcache.commands.root import run
from featcache.errors import CacheError
from featcache.store import folder_checks, litter, sharing
from featcache.store.cache import Cache
from featcache.store.promises import NOBODY, ONE, SEVERAL, check_promises, safe_for
from tests.faults.processes import apart, fork, kill
from tests.kit_caches import empty_cache, fill
from tests.kit_images import tree


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sharing, "_found", {})
    monkeypatch.setattr(sharing, "_held", {})
    yield


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def _start(folder: Path) -> Cache:
    return empty_cache(folder, {"train": 20})


def _commit(cache: Cache) -> None:
    part = cache.todo()[0]
    cache.commit(part, {"flatten": np.ones((len(part), 16), np.float16)})


def test_an_ordinary_folder_is_for_several(tmp_path: Path) -> None:
    cache = _start(tmp_path)
    assert sharing.admit(cache.path) is False
    assert sorted(path.name for path in cache.path.iterdir()) == [
        "commits",
        "plan.npz",
        "recipe.json",
        "shards",
    ]


def test_without_links_one_process_gets_the_same_bytes(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = fill(_start(tmp_path / "whole"))
    sharing._found.clear()
    request.getfixturevalue("no_links")
    cache = _start(tmp_path / "one")
    assert (cache.path / sharing.MARK).exists()
    assert tree(fill(cache).path) == tree(whole.path)


def test_without_links_a_second_writer_is_refused_until_the_first_is_gone(
    tmp_path: Path, no_links: None
) -> None:
    def first() -> None:
        _commit(_start(tmp_path))
        (tmp_path / "ready").touch()
        time.sleep(60)

    process = fork(first)
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    try:
        with pytest.raises(CacheError, match="cannot be shared by several: it has no hard links") as error:
            _commit(_start(tmp_path))
        assert sharing.MARK in error.value.hint and "doctor" in error.value.hint
    finally:
        kill(process)
    cache = _start(tmp_path)  # the mark of a dead process of this machine is taken over
    assert len(cache.todo()) == len(cache.shards()) - 1
    fill(cache)
    assert cache.sealed() is not None and not list(cache.path.glob(f"{atomic.TEMPORARY}*"))


def test_the_mark_of_another_machine_is_respected(tmp_path: Path, no_links: None) -> None:
    cache = _start(tmp_path)
    sharing.release(cache.path)
    (cache.path / sharing.MARK).write_text(f"{atomic.TEMPORARY}0123abcd-1-{'0' * 12}")
    with pytest.raises(CacheError, match="Another process writes"):
        _commit(Cache(cache.path))
    assert not list((cache.path / "commits").iterdir())
    (cache.path / sharing.MARK).unlink()
    _commit(Cache(cache.path))


def test_records_are_never_replaced_where_there_are_no_links(tmp_path: Path) -> None:
    assert atomic.publish_once(tmp_path / "a", b"first", alone=True)
    assert not atomic.publish_once(tmp_path / "a", b"second", alone=True)
    assert (tmp_path / "a").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_links_that_replace_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def replace(source: object, target: object, **options: object) -> None:
        Path(str(target)).unlink(missing_ok=True)
        real(str(source), str(target))

    monkeypatch.setattr(os, "link", replace)
    (tmp_path / "cache").mkdir()
    assert sharing.why_not_several(tmp_path / "cache") == "link succeeds where the name exists"
    found = check_promises(tmp_path)
    assert "both believe" in found["link fails where the name exists"] and safe_for(found) == ONE


def test_a_full_disk_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "link", full)
    assert sharing.why_not_several(tmp_path / "cache") == ""
    assert not list((tmp_path / "cache").iterdir())


def test_promises_of_this_folder(tmp_path: Path) -> None:
    found = check_promises(tmp_path)
    assert set(found.values()) == {""} and safe_for(found) == SEVERAL and not list(tmp_path.iterdir())
    assert safe_for({**found, "a file can be mapped": "no"}) == NOBODY


def test_a_race_that_nobody_or_two_win_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = folder_checks._RACE.replace("except OSError:", "except OSError:\n        print(name)")
    monkeypatch.setattr(folder_checks, "_RACE", everybody)
    assert "won twice" in folder_checks.one_wins(tmp_path / "trial")
    monkeypatch.setattr(folder_checks, "_SEE", folder_checks._SEE.replace('b"second"', 'b"third"'))
    monkeypatch.setattr(folder_checks, "SECONDS", 0.3)
    assert "did not within" in folder_checks.others_see(tmp_path / "trial")


def test_doctor_says_who_may_write_and_it_is_kept_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["doctor", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["safe_for"] == SEVERAL
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folder_checks, "NAMES", 0)
        patched.setattr(
            "featcache.store.promises._FOR_SEVERAL",
            {"of several processes one wins": lambda place: "two did"},
        )
        assert run(["doctor", str(tmp_path)]) == 0
    assert "it is safe for one process at a time" in capfd.readouterr().out
    cache = _start(tmp_path)
    assert (cache.path / sharing.MARK).exists()  # though its links are as they should be

    def other() -> None:
        with pytest.raises(CacheError, match="of several processes one wins: two did"):
            _commit(Cache(cache.path))

    assert apart(other) == 0
    sharing.release(cache.path)
    assert run(["doctor", str(tmp_path)]) == 0  # it was mended
    _commit(Cache(cache.path))
    assert not (cache.path / sharing.MARK).exists()


def test_gc_finds_the_mark_of_a_dead_process(tmp_path: Path, no_links: None) -> None:
    assert apart(lambda: _commit(_start(tmp_path))) == 0
    assert [item.path.name for item in litter.litter(tmp_path)] == [sharing.MARK]
