from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featcache import atomic
from featcache.errors import CacheError, SpaceError


class Failing(atomic.Calls):
    """The system's calls, one of which fails at its n-th use."""

    def __init__(self, name: str, error: int, at: int = 1) -> None:
        self.name, self.error, self.left = name, error, at

    def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
        if name in ("name", "error", "left") or name != self.name:
            return super().__getattribute__(name)
        self.left -= 1
        if self.left == 0:

            def fail(*arguments: object) -> None:
                if name == "close":
                    os.close(arguments[0])  # type: ignore[arg-type]
                raise OSError(self.error, os.strerror(self.error))

            return fail
        return super().__getattribute__(name)


def test_write_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "a"
    atomic.write(target, b"old")
    atomic.write(target, b"new content")
    assert target.read_bytes() == b"new content"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_publish_once_is_won_once(tmp_path: Path) -> None:
    target = tmp_path / "a"
    assert atomic.publish_once(target, b"first") is True
    assert atomic.publish_once(target, b"second") is False
    assert target.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_lost_reply_to_link_is_still_a_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(atomic.Calls):
        def link(self, source: str, target: str) -> None:
            os.link(source, target)
            raise OSError(errno.EEXIST, "File exists")

    monkeypatch.setattr(atomic, "calls", Lost())
    assert atomic.publish_once(tmp_path / "a", b"ours") is True


@pytest.mark.parametrize("name", ["open", "write", "fsync", "close", "rename"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(errno.ENOSPC, SpaceError), (errno.EDQUOT, SpaceError), (errno.EIO, CacheError)],
)
def test_a_failing_call_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: int, expected: type[Exception]
) -> None:
    target = tmp_path / "a"
    atomic.write(target, b"old")
    monkeypatch.setattr(atomic, "calls", Failing(name, error))
    with pytest.raises(expected, match=str(target)):
        atomic.write(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(atomic.Calls):
        def write(self, descriptor: int, data: memoryview) -> int:
            return os.write(descriptor, data[:3])

    monkeypatch.setattr(atomic, "calls", Short())
    atomic.write(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


KILLED = """
import os, signal, sys
from pathlib import Path
from featcache import atomic

class Killing(atomic.Calls):
    def fsync(self, descriptor):
        os.kill(os.getpid(), signal.SIGKILL)

atomic.calls = Killing()
atomic.write(Path(sys.argv[1]), b"never seen")
"""


def test_a_killed_writer_leaves_only_a_temporary_that_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "a"
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.glob(f"{atomic.TEMPORARY}*"))) == 1
    assert atomic.sweep(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_temporaries_of_the_living_are_not_swept(tmp_path: Path) -> None:
    mine = tmp_path / f"{atomic.TEMPORARY}{atomic._host()}-{os.getpid()}-abc"
    other = tmp_path / f"{atomic.TEMPORARY}ffffffff-999999999-abc"
    mine.touch()
    other.touch()
    assert atomic.sweep(tmp_path) == 0
    assert mine.exists() and other.exists()
