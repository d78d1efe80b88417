"""Object storage that fails, loses a reply or is left at any call: nothing committed is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import objects
from featcache.errors import FeatcacheError
from featcache.objects import Objects
from featcache.store import keeping
from featcache.store.cache import Cache
from featcache.training import runs
from tests import kit_objects
from tests.kit_caches import empty_cache, fill
from tests.kit_images import tree

ROOT = Path(__file__).parents[1]
CALLS = ("find", "info", "cat_file", "pipe_file", "rm_file")


class Left(BaseException):
    """The process ends here: nothing in it may catch this, as nothing catches a kill."""


class Faulty:
    """A file system that fails at its n-th call.

    `how`: "error" before the call is done; "lost" after it, so that only the reply is missing; "left" and
    "left after": the process ends before or after it.
    `lasting`: so do all calls after it.
    """

    def __init__(
        self, inner: Any, at: int, how: str, calls: Sequence[str] = CALLS, lasting: bool = False
    ) -> None:
        self._inner, self._at, self._how, self.count = inner, at, how, 0
        self._calls, self._lasting = calls, lasting

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._inner, name)
        if name not in self._calls:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count != self._at and not (self._lasting and self.count > self._at):
                return real(*arguments, **options)
            if self._how in ("lost", "left after"):
                real(*arguments, **options)
            raise Left if self._how.startswith("left") else OSError("the network is down")

        return call


def _work(url: str, place: Path) -> Cache:
    """Open, create, fill, seal, and store a run: all of it goes on where it was."""
    cache = fill(empty_cache(keeping.local(url, place), {"train": 20}))
    folder = runs.folder_of(cache.path, "mlp-00000000")
    if not (folder / runs.RUN).exists():
        runs.write_run(folder, {"run": folder.name}, b"a head", [], {"val/row": np.arange(3)})
    return cache


def _stored(url: str) -> dict[str, bytes | None]:
    store = Objects(url)
    return dict(store.get_all(name for name in store.list() if not name.startswith(".featcache/")))


def _committed(url: str) -> dict[str, bytes | None]:
    return {name: data for name, data in _stored(url).items() if name.endswith(".json")}


def _check_whole(url: str) -> None:
    """Check that whatever is committed names objects that are there."""
    store = Objects(url)
    there = store.list()
    for name, data in _committed(url).items():
        if "/commits/" in name and data is not None:
            shard = name.partition("/commits/")[2].removesuffix(".json")
            assert any(f"/shards/{shard}-" in other for other in there), f"{name} is ahead of its shard"
        if name.endswith("run.json"):
            assert name.replace("run.json", "head.safetensors") in there


@pytest.mark.parametrize("how", ["error", "lost", "left", "left after"])
def test_a_fault_at_any_call_loses_nothing_that_was_committed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[str], Any] = objects._file_system
    whole = tree(_work(f"{kit_objects.new_memory()}/whole", tmp_path / "whole").path)
    cuts = 0
    for at in range(1, 200):
        url, first = f"{kit_objects.new_memory()}/features", tmp_path / f"{at}"
        faulty = Faulty(real("memory://x"), at, how)
        monkeypatch.setattr(objects, "_file_system", lambda place, faulty=faulty: faulty)
        try:
            _work(url, first)
        except (FeatcacheError, Left) as error:
            cuts += 1
            if isinstance(error, FeatcacheError):
                assert "the network is down" in error.message and error.hint
        kit_objects.forget()
        monkeypatch.setattr(objects, "_file_system", real)
        _check_whole(url)
        before = _committed(url)
        cache = _work(url, first if at % 2 else tmp_path / f"{at} on another machine")
        after = _committed(url)
        assert {name: after[name] for name in before} == before, f"call {at}"
        assert {name.partition("/")[2]: data for name, data in _stored(url).items()} == whole, f"call {at}"
        assert Cache(cache.path).sealed() is not None
        assert all(not wrong for _, wrong in cache.verify())
        kit_objects.forget()
        if faulty.count < at:
            break
    assert cuts > 15 and faulty.count < at


# --- processes ---


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with kit_objects.serving() as address:
        yield address


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    kit_objects.use_server(monkeypatch, server)
    yield f"{kit_objects.new_bucket()}/features"
    kit_objects.forget()


_RACE = """
import sys, time
from pathlib import Path
import numpy as np
from featcache.store import keeping
from tests.kit_caches import empty_cache, features
url, place, more = sys.argv[1:]
cache = empty_cache(keeping.local(url, Path(place)), {"train": 4})
part = cache.shards()[0]
print("ready", flush=True)
sys.stdin.readline()
print(cache.commit(part, {"flatten": features(part.rows, 16) + np.float16(more)}), flush=True)
"""


def _started(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_of_two_processes_at_one_shard_one_wins(url: str, tmp_path: Path) -> None:
    both = [_started(_RACE, url, str(tmp_path / name), name) for name in ("1", "2")]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in both]
    assert sorted(said) == ["False", "True"]
    cache = Cache(next(keeping.local(url, tmp_path / "3").glob("toys--*")))
    cache.seal()
    rows = np.asarray(cache.table("train", val_fraction=0).X)
    assert rows[0, 0] == said.index("True") + 1, "the rows are the winner's"


_FILL = """
import sys
from pathlib import Path
from featcache.store import keeping
from tests.kit_caches import empty_cache, features
cache = empty_cache(keeping.local(sys.argv[1], Path(sys.argv[2])), {"train": 240})
for part in cache.todo():
    cache.commit(part, {"flatten": features(part.rows, 16)})
    print(part.name, flush=True)
"""


def test_a_killed_writer_is_gone_on_from_by_another_machine(url: str, tmp_path: Path) -> None:
    process = _started(_FILL, url, str(tmp_path / "a"))
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(3)]
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache = empty_cache(keeping.local(url, tmp_path / "b"), {"train": 240})
    left = [part.name for part in cache.todo()]
    assert 0 < len(left) <= 27 and not set(told) & set(left)
    fill(cache)
    plain = fill(empty_cache(tmp_path / "plain", {"train": 240}))
    assert np.array_equal(cache.table("train").X, plain.table("train").X)
    assert tree(cache.path / "commits") == tree(plain.path / "commits")
