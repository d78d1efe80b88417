"""Disk full, quota, I/O error: one clear error, no crash; with space again, a rerun finishes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from featcache import atomic
from featcache.commands.root import run as command
from featcache.errors import CacheError, FeatcacheError, SpaceError
from featcache.store.cache import Cache
from tests.faults import toys
from tests.faults.calls import Failing, number_of_calls
from tests.faults.processes import apart
from tests.faults.trials import FULL, count, draw, mine, numbers, tally
from tests.kit_images import make_folder, tree

ERRORS = "Disk full, quota, I/O error: one clear error, exit 1, no crash; with space again, rerun finishes"
KINDS: dict[str, tuple[int | None, int]] = {
    "ENOSPC": (errno.ENOSPC, 0),
    "EDQUOT": (errno.EDQUOT, 0),
    "EIO": (errno.EIO, 0),
    "EINTR": (errno.EINTR, 0),
    "EROFS": (errno.EROFS, 0),
    "ESTALE": (errno.ESTALE, 0),
    "a short write of one byte": (None, 1),
    "a short write of a page": (None, 4096),
    "a write of nothing": (None, 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_every_call_may_fail(place: Path, kind: str, lasting: bool) -> None:
    head = b"head" * 2000

    def work(here: Path) -> Cache:
        cache = toys.start(here, {"train": 5})
        toys.commit_all(cache)
        toys.write_run(cache, head)
        return cache

    error, size = KINDS[kind]
    calls = number_of_calls(lambda: work(place / "whole"))
    whole = tree(next((place / "whole").glob("*--*")))
    with tally(ERRORS, f"{kind} at the N-th file call{', and at all after it' if lasting else ''}") as found:
        # Fast: a call of chance in every five, so that all kinds together see every call.
        for at in mine(range(1, len(calls) + 1)):
            if not FULL and draw(kind, lasting, at).random() > 0.4:
                continue
            here = place / str(at)
            failing = Failing(at, error, size, lasting)
            atomic.calls = failing
            try:
                work(here)
            except FeatcacheError as raised:
                _check_error(raised, error)
                found.add("one clear error")
            else:
                assert error is None or failing.failed in ("unlink", "open", "fsync", "close", None), (
                    failing.made
                )
                found.add("done all the same")
            finally:
                atomic.calls = atomic.Calls()
            cache = work(here)
            ours = tree(cache.path)
            left = {name for name in ours if f"/{atomic.TEMPORARY}" in f"/{name}"}
            assert {name: data for name, data in ours.items() if name not in left} == whole
            # Only a temporary that could not be removed may be left.
            assert not left or failing.failed == "unlink" or lasting


def _check_error(raised: FeatcacheError, error: int | None) -> None:
    expected = SpaceError if error in (errno.ENOSPC, errno.EDQUOT) else CacheError
    assert type(raised) is expected, raised
    assert "committed before is safe" in raised.message and raised.hint


def test_the_command_says_it_in_one_sentence_and_exits_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = make_folder(tmp_path / "photos", train=2, test=1)
    arguments = ["extract", "--dataset", f"folder:{photos}", "--backbone", "squeezenet1_1"]
    arguments += ["--weights", "random:0", "--image-size", "64", "--features-dir", str(tmp_path / "features")]
    with tally(ERRORS, "ENOSPC at file calls of featcache extract") as found:
        for at in (2, 12, 40):
            atomic.calls = Failing(at, errno.ENOSPC, lasting=True)
            assert command(arguments) == 1
            said = capfd.readouterr().err
            assert said.count("Error: No space left while writing") == 1 and "Traceback" not in said
            found.add("one sentence and exit code 1")
    atomic.calls = atomic.Calls()
    assert command(arguments) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of a few pages."""
    target = tmp_path / "disk"
    target.mkdir()
    if os.name != "posix" or os.geteuid() != 0 or not _mounted(target, 64):
        pytest.skip("a file system can only be mounted here by root")
    yield target
    subprocess.run(["umount", "--lazy", str(target)], check=True)


def _mounted(target: Path, kib: int, *options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kib}k", *options]), "tmpfs", str(target)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_real_disk_of_many_sizes_is_filled(tmp_path: Path, small_disk: Path) -> None:
    counts = {"train": 300, "test": 60}

    def fill(here: Path) -> None:
        """Make and fill a cache; the only error that may come out is that of a full disk."""
        try:
            toys.commit_all(toys.start(here, counts))
        except SpaceError:
            os._exit(3)

    fill(tmp_path / "whole")
    whole = tree(next((tmp_path / "whole").glob("*--*")))
    pages = sum(-(-len(data) // 4096) + 1 for data in whole.values()) + 10
    sizes = count(10, 200)
    with tally(ERRORS, "a real tmpfs of many sizes, too small for the cache") as found:
        for number in numbers(10, 200):
            kib = 4 * max(1, pages * (number + 1) // (sizes + 1))
            here = small_disk / "features"
            assert _mounted(small_disk, kib, "remount")
            code = apart(fill, here)
            assert code in (0, 3), f"{kib} KiB: exit code {code}"
            for folder in here.glob("*--*"):
                if (folder / "recipe.json").exists():
                    cache = Cache(folder)
                    done = cache.commits()
                    assert not [why for part, why in cache.verify() if why and part.name in done]
            assert _mounted(small_disk, 64 * 1024, "remount")
            assert apart(fill, here) == 0
            assert tree(next(here.glob("*--*"))) == whole
            subprocess.run(["rm", "-rf", str(here)], check=True)
            found.add("full, then finished" if code == 3 else "large enough")
        assert found.counts["full, then finished"] > found.trials // 2
