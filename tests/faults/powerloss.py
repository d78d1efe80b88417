"""Power loss on a disk that honours fsync: the file calls recorded, and the disks they may leave.

The model is that of Pillai and others (All File Systems Are Not Created Equal, OSDI 2014), kept to what POSIX
promises. A write is on disk for sure once its file was fsynced, a name once its folder was; until then each
is there or not, in any order. A file whose last writes are not there is empty, cut off, or has zeros.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.calls import Watched


@dataclass(frozen=True)
class Step:
    """One recorded call, or a promise given at that moment: "note"."""

    kind: str
    path: str = ""
    target: str = ""
    data: bytes = b""
    inode: int = 0


class Recording(Watched):
    """Makes the calls, and keeps what they did; descriptors are told apart by process."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.opened: dict[int, tuple[str, int]] = {}
        self.inodes = itertools.count(1)

    def call(self, number: int, name: str, real: Any, *arguments: Any) -> Any:
        result = real(*arguments)
        if name == "open":
            path, made = str(arguments[0]), bool(arguments[1] & os.O_CREAT)
            self.opened[result] = (path, next(self.inodes) if made else 0)
            if made:
                self.steps.append(Step("create", path, inode=self.opened[result][1]))
        elif name == "write":
            path, inode = self.opened[arguments[0]]
            self.steps.append(Step("write", path, data=bytes(arguments[1][:result]), inode=inode))
        elif name == "fsync":
            path, inode = self.opened[arguments[0]]
            self.steps.append(Step("fsync", path, inode=inode))
        elif name in ("rename", "link"):
            self.steps.append(Step(name, *map(str, arguments)))
        elif name in ("unlink", "mkdir"):
            self.steps.append(Step(name, str(arguments[0])))
        return result

    def note(self, promise: str) -> None:
        """Remember that something was promised to the user at this moment."""
        self.steps.append(Step("note", promise))


@dataclass
class Disk:
    """What is on disk for sure, what may be, and what was promised."""

    names: dict[str, int] = field(default_factory=dict)  # path → inode, as a running system sees it
    content: dict[int, list[bytes]] = field(default_factory=dict)
    synced: dict[int, int] = field(default_factory=dict)  # inode → writes that are on disk for sure
    folders: set[str] = field(default_factory=set)
    sure: list[tuple[str, ...]] = field(default_factory=list)  # changes of names, in order
    maybe: list[tuple[str, ...]] = field(default_factory=list)
    promises: list[str] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Let a call happen."""
        folder = _above(step.path)
        if step.kind == "note":
            self.promises.append(step.path)
        elif step.kind == "create":
            self.content[step.inode], self.synced[step.inode] = [], 0
            self._name(folder, ("+", step.path, str(step.inode)))
        elif step.kind == "write":
            self.content[step.inode].append(step.data)
        elif step.kind == "fsync" and step.inode:
            self.synced[step.inode] = len(self.content[step.inode])
        elif step.kind == "fsync":
            self.sure += [change for change in self.maybe if change[0] == step.path]
            self.maybe = [change for change in self.maybe if change[0] != step.path]
        elif step.kind == "mkdir":
            self._name(folder, ("/", step.path))
        elif step.kind == "unlink":
            self._name(folder, ("-", step.path))
        else:
            inode = str(self.names[step.path])
            gone = step.path if step.kind == "rename" else ""
            self._name(_above(step.target), (">", step.target, inode, gone))

    def _name(self, folder: str, change: tuple[str, ...]) -> None:
        self.maybe.append((folder, *change))
        _apply(change, self.names, self.folders)

    def states(self, rng: random.Random, most: int) -> Iterator[tuple[dict[str, bytes], set[str]]]:
        """Yield the files and folders that may be found after the power is back: all states, or `most`."""
        open_files = [inode for inode, writes in self.content.items() if self.synced[inode] < len(writes)]
        choices = [*([2] * len(self.maybe)), *([4] * len(open_files))]
        total = 1
        for choice in choices:
            total *= choice
        picks: Any = itertools.product(*map(range, choices))
        if total > most:
            ends = [tuple([0] * len(choices)), tuple(choice - 1 for choice in choices)]
            picks = itertools.chain(
                ends, (tuple(map(rng.randrange, choices)) for _ in range(most - len(ends)))
            )
        for pick in picks:
            kept = dict(zip(open_files, pick[len(self.maybe) :], strict=True))
            yield self._state(pick[: len(self.maybe)], kept)

    def _state(self, named: tuple[int, ...], kept: dict[int, int]) -> tuple[dict[str, bytes], set[str]]:
        names: dict[str, int] = {}
        folders: set[str] = set()
        # A folder's changes keep their order on disk; those not yet written are simply not there.
        for change in [*self.sure, *itertools.compress(self.maybe, named)]:
            _apply(change[1:], names, folders)
        files = {path: self._bytes(inode, kept.get(inode, 3)) for path, inode in names.items()}
        return {path: data for path, data in files.items() if _reached(path, folders)}, {
            folder for folder in folders if _reached(folder, folders)
        }

    def _bytes(self, inode: int, how: int) -> bytes:
        """Return a file's bytes with its last writes missing (0), cut (1), zeros (2), or there (3)."""
        sure = b"".join(self.content[inode][: self.synced[inode]])
        last = b"".join(self.content[inode][self.synced[inode] :])
        return sure + (b"", last[: len(last) // 2], bytes(len(last)), last)[how]


def _apply(change: tuple[str, ...], names: dict[str, int], folders: set[str]) -> None:
    kind, path = change[:2]
    if kind == "/":
        folders.add(path)
    elif kind == "-":
        names.pop(path, None)
    else:
        names[path] = int(change[2])
        if kind == ">" and change[3]:
            names.pop(change[3], None)


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _reached(path: str, folders: set[str]) -> bool:
    """Whether the folder of a path is there, and the folder of that, up to what was there from the start."""
    above = _above(path)
    return above in ("", ROOT) or (above in folders and _reached(above, folders))


ROOT = "/disk"  # what the recorded folder is called in a model


def renamed(steps: list[Step], folder: Path) -> list[Step]:
    """Return the steps with the recorded folder called `ROOT`."""

    def moved(path: str) -> str:
        return ROOT + path.removeprefix(str(folder)) if path.startswith(str(folder)) else path

    return [
        step
        if step.kind == "note"
        else Step(step.kind, moved(step.path), moved(step.target), step.data, step.inode)
        for step in steps
    ]


def lay_out(files: dict[str, bytes], folders: set[str], target: Path) -> None:
    """Write a state down, to be opened."""
    target.mkdir()
    for folder in sorted(folders):
        (target / os.path.relpath(folder, ROOT)).mkdir(parents=True)
    for path, data in files.items():
        (target / os.path.relpath(path, ROOT)).write_bytes(data)
