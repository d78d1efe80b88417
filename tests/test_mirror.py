"""Caches in an object store: written and read through a mirror, by one and by several machines."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import atomic, objects
from featcache.errors import CacheError, DamagedError, OptionError
from featcache.objects import Objects
from featcache.store import keeping, mirror, oneatatime, opening, records
from featcache.store.cache import Cache
from featcache.store.claims import shared
from featcache.store.roster import Roster
from featcache.training import runs
from featcache.training.fit import Training, train
from featcache.training.ledger import Ledger
from tests import kit_objects
from tests.kit_caches import empty_cache, features, fill, plan, separable_cache
from tests.kit_images import tree


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with kit_objects.serving() as address:
        yield address


def _url(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if kind == "memory":
        yield f"{kit_objects.new_memory()}/features"
    else:
        kit_objects.use_server(monkeypatch, request.getfixturevalue("server"))
        yield f"{kit_objects.new_bucket()}/deep/features"
    kit_objects.forget()


@pytest.fixture(params=["memory", "s3"])
def any_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a store in memory and of a server: for what the server, or its library, may do otherwise."""
    yield from _url(request.param, request, monkeypatch)


@pytest.fixture
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from _url("memory", request, monkeypatch)


def _rows(cache: Cache) -> np.ndarray:
    return np.asarray(cache.table("train", val_fraction=0).X)


def test_a_cache_is_written_and_read_by_another_machine(any_url: str, tmp_path: Path) -> None:
    plain = fill(empty_cache(tmp_path / "plain", {"train": 20, "test": 5}))
    here = kit_objects.other_machine(any_url, tmp_path / "a")
    cache = fill(empty_cache(here, {"train": 20, "test": 5}))
    assert tree(cache.path) == tree(plain.path), "the mirror holds the very bytes of a folder's cache"
    assert kit_objects.names(any_url) == sorted(f"{cache.name}/{name}" for name in tree(plain.path))
    there = kit_objects.other_machine(any_url, tmp_path / "b")
    assert there != here
    found = Cache(there / cache.name)
    assert not list(there.rglob("*.h5")), "shards come when they are read"
    assert found.sealed() == plain.sealed()
    assert np.array_equal(_rows(found), _rows(plain))
    assert [path.name[:5] for path in there.rglob("*.h5")] == ["train"] * 3
    assert tree(found.path / records.COMMITS) == tree(plain.path / records.COMMITS)
    assert keeping.shown(found.path) == f"{any_url}/{cache.name}"


def _commit(cache: Cache, part: Any, more: float = 0) -> bool:
    return cache.commit(part, {"flatten": features(part.rows, 16) + np.float16(more)})


def test_two_machines_share_the_shards_of_one_cache(url: str, tmp_path: Path) -> None:
    a, b = (
        empty_cache(kit_objects.other_machine(url, tmp_path / name), {"train": 64}, rows_per_shard=8)
        for name in "ab"
    )
    todo = a.todo()
    assert len(todo) == 8 == len(b.todo())
    mine = shared(a.path, todo, lambda part: part.name in a.commits(), rest=False)
    theirs = shared(b.path, todo, lambda part: part.name in b.commits(), rest=False)
    done: list[str] = []
    for part in mine:
        done.append(part.name)
        assert _commit(a, part)
        if (other := next(theirs, None)) is not None:
            done.append(other.name)
            assert _commit(b, other)
    assert sorted(done) == [part.name for part in todo], "each was computed once"
    assert b.seal() == a.seal()
    assert not [name for name in kit_objects.names(url) if "claims" in name]
    plain = fill(empty_cache(tmp_path / "plain", {"train": 64}, rows_per_shard=8))
    assert np.array_equal(_rows(b), _rows(plain))


def test_of_two_that_commit_one_shard_the_store_decides(any_url: str, tmp_path: Path) -> None:
    a, b = (empty_cache(kit_objects.other_machine(any_url, tmp_path / name), {"train": 4}) for name in "ab")
    part = a.todo()[0]
    assert _commit(a, part) is True
    assert _commit(b, part, more=1) is False
    a.seal()
    assert b.commits() == a.commits(), "the loser has the winner's record"
    assert np.array_equal(_rows(b), _rows(a))
    loser = [name for name in kit_objects.names(any_url) if name.endswith(".h5")]
    assert len(loser) == 2, "and deletes nothing"


def test_a_reader_beside_a_writer_sees_what_is_committed_and_no_more(url: str, tmp_path: Path) -> None:
    writer = empty_cache(kit_objects.other_machine(url, tmp_path / "a"), {"train": 24})
    reader = Cache(kit_objects.other_machine(url, tmp_path / "b") / writer.name)
    for number, part in enumerate(writer.todo()):
        assert len(reader.commits()) == number and reader.sealed() is None
        with pytest.raises(CacheError, match="is not finished"):
            reader.table("train")
        _commit(writer, part)
    writer.seal()
    assert reader.sealed() is not None and len(_rows(reader)) == 24


def test_a_damaged_copy_is_fetched_again(url: str, tmp_path: Path) -> None:
    here = kit_objects.other_machine(url, tmp_path / "a")
    cache = separable_cache(here, n=40, test=0)
    run = train(cache, Training("ridge"))
    whole = tree(cache.path)
    for path in [path for path in cache.path.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.write_bytes(data[:-5] + bytes(byte ^ 1 for byte in data[-5:]))
    again = Cache(cache.path)
    assert again.plan.ids and again.sealed() is not None
    assert len(again.table("train")) == 32
    record = runs.read_run(run.folder)
    for name in record["files"]:
        runs.read_file(run.folder, record, name)
    assert tree(cache.path) == whole


def test_a_damaged_object_is_an_error_that_names_it(any_url: str, tmp_path: Path) -> None:
    cache = fill(empty_cache(kit_objects.other_machine(any_url, tmp_path / "a"), {"train": 4, "test": 4}))
    store = Objects(any_url)
    commit = cache.commits()["train-00000"]
    name = f"{cache.name}/shards/{commit.file}"
    data = store.get(name)
    assert data is not None
    store.put(name, data[:-9] + b"different")
    assert {part.name for part, wrong in cache.verify() if wrong} == {"train-00000"}
    other = Cache(kit_objects.other_machine(any_url, tmp_path / "b") / cache.name)
    for read in (other.table, Cache(other.path).table):
        with pytest.raises(DamagedError, match=f"{any_url}/{name} is damaged: its bytes differ"):
            read("train", val_fraction=0)
    assert len(other.table("test")) == 4, "the others are as good as before"
    store.put(name, data[:-9])
    there = kit_objects.other_machine(any_url, tmp_path / "c")
    with pytest.raises(DamagedError, match=f"{name} is damaged: it has {len(data) - 9} bytes"):
        Cache(there / cache.name).sealed()
    store.remove(name)
    there = kit_objects.other_machine(any_url, tmp_path / "d")
    with pytest.raises(DamagedError, match=f"{name} is damaged: the shard is missing"):
        Cache(there / cache.name).sealed()
    store.put(name, data)
    store.put(f"{cache.name}/recipe.json", b"{}")
    there = kit_objects.other_machine(any_url, tmp_path / "e")
    with pytest.raises(DamagedError, match=r"recipe.json is damaged"):
        Cache(there / cache.name)


def test_what_is_removed_or_mended_elsewhere_is_so_here(any_url: str, tmp_path: Path) -> None:
    from featcache.store import mending

    a = fill(empty_cache(kit_objects.other_machine(any_url, tmp_path / "a"), {"train": 16}))
    there = kit_objects.other_machine(any_url, tmp_path / "b")
    b = Cache(there / a.name)
    assert len(_rows(b)) == 16
    part = a.shards()[0]
    mending.discard(a, part)
    kit_objects.other_machine(any_url, tmp_path / "b")
    assert b.sealed() is None and [each.name for each in b.todo()] == [part.name]
    assert _commit(a, part, more=2)
    assert len(b.todo()) == 0
    b.seal()
    assert np.array_equal(_rows(Cache(b.path)), _rows(a))
    store = Objects(any_url)
    for name in kit_objects.names(any_url):
        store.remove(name)
    kit_objects.other_machine(any_url, tmp_path / "b")
    assert not [path for path in there.rglob("*") if path.is_file() and ".featcache" not in path.parts]


def test_a_path_in_a_mirror_leads_to_the_store_in_any_process(url: str, tmp_path: Path) -> None:
    cache = separable_cache(kit_objects.other_machine(url, tmp_path / "a"), n=40, test=0)
    kit_objects.forget()
    opened = Cache(cache.path)
    run = train(opened, Training("ridge"))
    assert f"{cache.name}/heads/{run.record['run']}/run.json" in kit_objects.names(url)
    shutil.rmtree(tmp_path / "a")
    kit_objects.forget()
    again = Cache(kit_objects.other_machine(url, tmp_path / "a") / cache.name)
    assert len(again.table("train")) == 32, "a mirror can go at any time"


def test_runs_of_all_machines_are_in_every_ledger(any_url: str, tmp_path: Path) -> None:
    here = kit_objects.other_machine(any_url, tmp_path / "a")
    cache = separable_cache(here, n=60, test=20)
    first = train(cache, Training("ridge"))
    there = kit_objects.other_machine(any_url, tmp_path / "b")
    ledger = Ledger(there)
    assert [row["run"] for row in ledger.runs()] == [first.record["run"]]
    second = train(Cache(there / cache.name), Training("linear", {"epochs": 2}, keep_checkpoints=2))
    assert {row["run"] for row in Ledger(here).runs()} == {first.record["run"]}, "not asked again yet"
    kit_objects.other_machine(any_url, tmp_path / "a")
    assert {row["run"] for row in Ledger(here).runs()} == {first.record["run"], second.record["run"]}
    assert not Ledger(here).check().differing
    names = [name for name in kit_objects.names(any_url) if second.record["run"] in name]
    assert [name.rpartition("/")[2] for name in names] == [
        "head.safetensors",
        "history.csv",
        "predictions.npz",
        "run.json",
    ], "checkpoints stay where they are"
    found = runs.find_run(here, f"{any_url}/{cache.name}/heads/{second.record['run']}")
    assert runs.read_predictions(found, runs.read_run(found)).keys() >= {"val/row", "val/proba"}
    from featcache.training.evaluate import evaluate

    evaluate(found)
    kit_objects.other_machine(any_url, tmp_path / "b")
    assert runs.read_run(second.folder)["test"] is not None, "as evaluated on the other machine"
    assert runs.read_predictions(second.folder, runs.read_run(second.folder)).keys() >= {"test/row"}


def test_a_roster_is_kept_in_the_store_too(url: str, tmp_path: Path) -> None:
    dataset = {
        "name": "toys",
        "fingerprint": "a" * 64,
        "classes": ["ape", "bee", "cat"],
        "rows": {"train": 9},
    }
    asked = {"dataset": "digits", "data_dir": "data", "limit": None, "max_pixels": 10}
    made = Roster.create(kit_objects.other_machine(url, tmp_path / "a"), dataset, asked, plan({"train": 9}))
    there = kit_objects.other_machine(url, tmp_path / "b")
    assert Roster(there / made.name).plan.ids == made.plan.ids


@pytest.mark.parametrize(
    "total, free, kept", [(1000, 100, False), (1 << 44, 9 << 30, False), (1 << 44, 11 << 30, True)]
)
def test_shards_that_are_written_are_kept_here_only_where_there_is_room(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, kept: bool
) -> None:
    monkeypatch.setattr(mirror, "FREE_SHARE", 0.1)
    usage = shutil.disk_usage(tmp_path)._replace(total=total, free=free, used=total - free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    cache = fill(empty_cache(kit_objects.other_machine(url, tmp_path / "a"), {"train": 16}))
    assert bool(list(cache.path.rglob("*.h5"))) == kept and len(cache.commits()) == 2
    assert len(_rows(cache)) == 16, "what is read must be here"


# --- stores that do not say who was first ---


class _Deaf:
    """A file system that knows no condition on a write, and either says so or writes all the same."""

    def __init__(self, inner: Any, says: int | None) -> None:
        self._inner, self._says = inner, says

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and self._says is not None:
            raise OSError(self._says, "A header you provided implies functionality that is not implemented")
        self._inner.pipe_file(path, value)


@pytest.mark.parametrize("says", [None, errno.ENOSYS])
def test_where_the_store_does_not_say_who_was_first_one_may_write(
    says: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{kit_objects.new_memory()}/features"
    plain = fill(empty_cache(tmp_path / "plain", {"train": 20}))
    real: Callable[[str], Any] = objects._file_system
    monkeypatch.setattr(objects, "_file_system", lambda place: _Deaf(real(place), says))
    monkeypatch.setattr(oneatatime, "_SETTLE", 0.01)
    a = empty_cache(kit_objects.other_machine(url, tmp_path / "a"), {"train": 20})
    part = a.todo()[0]
    assert f"{a.name}/writer" in kit_objects.names(url)
    with pytest.raises(CacheError, match=f"Another process writes into {url}/{a.name}"):
        empty_cache(kit_objects.other_machine(url, tmp_path / "b"), {"train": 20})
    assert _commit(a, part) and not _commit(a, part, more=1), "a record is never replaced"
    fill(a)
    assert "writer" not in str(kit_objects.names(url)), "the mark is gone with the seal"
    b = Cache(kit_objects.other_machine(url, tmp_path / "b") / a.name)
    assert np.array_equal(_rows(b), _rows(plain))
    kit_objects.forget()


def test_the_mark_of_a_dead_process_is_taken_over_and_that_of_another_machine_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{kit_objects.new_memory()}/features"
    monkeypatch.setattr(objects, "_CREATES", set())
    monkeypatch.setattr(oneatatime, "_SETTLE", 0.01)
    made = fill(empty_cache(tmp_path / "plain", {"train": 4}))
    dead = f"{atomic.TEMPORARY}{atomic._host()}-{2**22 + 1}-{'0' * 12}"
    Objects(url).put(f"{made.name}/writer", dead.encode())
    cache = fill(empty_cache(kit_objects.other_machine(url, tmp_path / "a"), {"train": 4}))
    elsewhere = f"{atomic.TEMPORARY}00000000-{1}-{'0' * 12}"
    Objects(url).put(f"{made.name}/writer", elsewhere.encode())
    kit_objects.forget()
    with pytest.raises(CacheError, match="Another process writes") as caught:
        _commit(Cache(cache.path), cache.shards()[0])
    assert "remove the object" in caught.value.hint
    kit_objects.forget()


# --- names ---


def test_a_url_that_became_a_path_is_refused_and_a_file_url_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="was a URL before it became a path"):
        keeping.local(Path("s3://bucket/x"))
    assert keeping.local(f"file://{tmp_path}") == tmp_path
    assert keeping.local("a/b") == Path("a/b")
    assert keeping.shown(tmp_path) == str(tmp_path)


def test_a_mirror_of_another_server_is_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{kit_objects.new_memory()}/features"
    root = kit_objects.other_machine(url, tmp_path)
    kit_objects.forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert opening.place_of(url, tmp_path) != root
    with pytest.raises(CacheError, match=r"mirrors memory://.* of the server that is the default"):
        keeping.far_of(root)


def test_a_copy_of_a_mirror_or_a_strangers_mark_mirrors_nothing(url: str, tmp_path: Path) -> None:
    cache = fill(empty_cache(kit_objects.other_machine(url, tmp_path / "a"), {"train": 4}))
    before = kit_objects.names(url)
    kit_objects.forget()
    copy = shutil.copytree(cache.path.parent, tmp_path / "copy")
    assert keeping.far_of(copy) is None and keeping.far_of(copy / cache.name) is None
    train(separable := separable_cache(copy, n=40, test=0), Training("ridge"))
    assert separable.sealed() and kit_objects.names(url) == before
    mark = tmp_path / "link" / keeping.FOLDER / keeping.MARK
    mark.parent.mkdir(parents=True)
    mark.symlink_to(cache.path.parent / keeping.FOLDER / keeping.MARK)
    assert keeping.far_of(tmp_path / "link") is None
    assert keeping.far_of(cache.path) is not None


def test_objects_of_others_and_names_that_lead_outside_are_not_seen(url: str, tmp_path: Path) -> None:
    cache = fill(empty_cache(kit_objects.other_machine(url, tmp_path / "a"), {"train": 4}))
    store = Objects(url)
    strange = ["notes.txt", f"{cache.name}/x.json", f"{cache.name}/heads/a/run.json", "ledger.sqlite"]
    for name in (*strange, f"{cache.name}/heads/mlp-00000000/.x", f"{cache.name}/commits/train-1.json"):
        store.put(name, b"not ours")
    there = kit_objects.other_machine(url, tmp_path / "b")
    assert len(_rows(Cache(there / cache.name))) == 4
    assert not [path for path in there.rglob("*") if path.is_file() and path.read_bytes() == b"not ours"]
