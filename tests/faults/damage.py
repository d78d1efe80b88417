"""Damage of bytes: what disks, copies and people do to files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Files = dict[Path, bytes]
PAGE = 4096


def snapshot(folder: Path) -> Files:
    """Return every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def restore(folder: Path, files: Files) -> None:
    """Make a folder hold these files again, and no others; nothing that is as it was is written."""
    for path in list(folder.rglob("*")):
        if not path.is_dir() and (path.is_symlink() or path not in files):
            path.unlink()
    for path, data in files.items():
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def flip(path: Path, data: bytes, rng: random.Random) -> None:
    """Turn one bit over."""
    harmed = bytearray(data)
    bit = rng.randrange(len(harmed) * 8)
    harmed[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(harmed)


def truncate(path: Path, data: bytes, rng: random.Random) -> None:
    """Cut the end off."""
    path.write_bytes(data[: rng.randrange(len(data))])


def extend(path: Path, data: bytes, rng: random.Random) -> None:
    """Append some bytes."""
    path.write_bytes(data + rng.randbytes(rng.randint(1, 5000)))


def zero(path: Path, data: bytes, rng: random.Random) -> None:
    """Make a page, or all there is of one, zeros."""
    at = rng.randrange(-(-len(data) // PAGE)) * PAGE
    there = data[at : at + PAGE]
    path.write_bytes(data[:at] + bytes(len(there)) + data[at + PAGE :])


def scramble(path: Path, data: bytes, rng: random.Random) -> None:
    """Overwrite a stretch with random bytes."""
    at, size = rng.randrange(len(data)), rng.randint(1, 600)
    there = data[at : at + size]
    path.write_bytes(data[:at] + rng.randbytes(len(there)) + data[at + size :])


def shift(path: Path, data: bytes, rng: random.Random) -> None:
    """Lose one byte in the middle, with all that follows moving up."""
    at = rng.randrange(len(data))
    path.write_bytes(data[:at] + data[at + 1 :])


def delete(path: Path, data: bytes, rng: random.Random) -> None:
    """Remove the file."""
    path.unlink()


def link(path: Path, data: bytes, rng: random.Random) -> None:
    """Put a symbolic link to the same bytes elsewhere in its place."""
    other = path.with_name(f"elsewhere-{rng.randrange(10**9)}")
    path.rename(other)
    path.symlink_to(other)


Harm = Callable[[Path, bytes, random.Random], None]
HARMS: tuple[Harm, ...] = (flip, truncate, extend, zero, scramble, shift, delete, link)


def swap(a: Path, b: Path) -> None:
    """Give two files each other's bytes."""
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
