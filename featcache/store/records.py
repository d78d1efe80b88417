"""The JSON records of a cache: recipe, commits, seal. Light: a warm hit reads these and nothing else.

Every record carries the sha256 of its own content, so a damaged byte is found, and is read with limits:
a cache may come from anyone.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache import limits
from featcache.errors import CacheError, DamagedError
from featcache.recipe import canonical_json, check_format, sha256_of
from featcache.store import expected, keeping

RECIPE = "recipe.json"
PLAN = "plan.npz"
ROSTER = "roster.json"
SEAL = "seal.json"
SHARDS = "shards"
COMMITS = "commits"
HEADS = "heads"

# Neither does a link lead elsewhere nor a pipe hold us up.
_READ_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)
SHARD_NAME = re.compile(r"(train|val|test)-\d{5,9}")
FILE_NAME = re.compile(r"(train|val|test)-\d{5,9}-[0-9a-f]{16}\.h5")


def cache_key(recipe_fingerprint: str, dataset_fingerprint: str) -> str:
    """Return the key of one data set under one recipe, 64 hexadecimal digits."""
    return sha256_of({"recipe": recipe_fingerprint, "dataset": dataset_fingerprint})


def folder_name(dataset: str, backbone: str, key: str) -> str:
    """Return the cache's folder name: data set, backbone and the first ten digits of the key."""
    return f"{dataset}--{backbone}--{key[:10]}"


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON text with its own sha256 in it; equal records give equal bytes.

    Raises:
        CacheError: it would be larger than what `read` accepts.
    """
    whole = {**record, "sha256": sha256_of(record)}
    data = (json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()
    if len(data) > (most := limits.RECORD_BYTES()):
        raise CacheError(f"A record of {len(data)} bytes is larger than the {most} that are ever read.")
    return data


def read(path: Path) -> dict[str, Any]:
    """Read and check a record.

    Raises:
        DamagedError: the file is no regular file, too large, no JSON, or differs from its own sha256.
        FormatError: the record is of an unknown format.
        FileNotFoundError: there is no such file.
    """
    return keeping.undamaged(path, lambda: _read(path))


def _read(path: Path) -> dict[str, Any]:
    data = read_regular(path, limits.RECORD_BYTES())
    try:
        record = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_object)
        if not isinstance(record, dict):
            raise ValueError("it is no object")
        claimed, found = record.pop("sha256", None), sha256_of(record)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON record ({error})") from error
    if "format" not in record:
        raise damaged(path, "it names no format")
    check_format(record["format"], str(path))
    if claimed != found:
        raise damaged(path, "its content differs from its own sha256")
    return record


def read_as(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read a record whose fields must be those of `featcache.store.expected`.

    Raises:
        DamagedError, FormatError, FileNotFoundError: as `read`, or a field is missing or malformed.
    """
    record = read(path)
    if field := expected.wrong(record, fields):
        raise damaged(path, f"its field {field!r} is missing or malformed")
    return record


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; a link, a pipe or a device is refused.

    Raises:
        DamagedError: it is no regular file or larger than the limit.
        CacheError: it may not be read, or the disk fails.
        FileNotFoundError, NotADirectoryError: there is no such file.
    """
    with open_regular(path, limit) as file:
        return file.read()


@contextlib.contextmanager
def open_regular(path: Path, limit: int) -> Iterator[io.FileIO]:
    """Open what `read_regular` reads, for as long as it is wanted; it raises the same."""
    keeping.bring(path)
    try:
        descriptor = os.open(path, _READ_FLAGS)
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise damaged(path, "it is not a regular file")
            if facts.st_size > limit:
                raise damaged(path, f"it has {facts.st_size} bytes, at most {limit} were expected")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise damaged(path, "it is not a regular file") from error
        raise CacheError(
            f"Cannot read {path}: {error.strerror or error}.", "Check its permissions and the disk."
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers would differ in which of the two holds
        raise ValueError("a name stands in it twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def damaged(path: Path, why: str) -> DamagedError:
    """Return the error that names a damaged file and says what mends it."""
    return DamagedError(f"{keeping.shown(path)} is damaged: {why}.", _mend(path))


def _mend(path: Path) -> str:
    """Say what mends a file of a cache."""
    if path.name == RECIPE:
        return "Move it away and run the same featcache extract again: it is made anew, the shards stay."
    if HEADS in path.parts:
        return "Train the head again."
    folder = path.parent if path.name in (SEAL, PLAN, SHARDS, COMMITS) else path.parent.parent
    return f"Run: featcache verify {folder.name} --repair."


@dataclass(frozen=True)
class Commit:
    """What makes one shard visible: the file it is, and the rows that could not be computed."""

    key: str
    shard: str  # "train-00003"
    file: str  # "train-00003-<first 16 digits of the hash>.h5"
    size: int  # of the file, in bytes
    xxh3_128: str
    first: int  # first and last row of the plan in this shard
    last: int
    rows: int
    bad: tuple[tuple[int, str], ...] = ()  # (row, reason), in order of row

    def fits(self, first: int, stop: int) -> bool:
        """Return whether it speaks of the rows `first` to `stop` - 1."""
        return (self.first, self.last, self.rows) == (first, stop - 1, stop - first)

    def to_bytes(self) -> bytes:
        """Return the record's bytes."""
        plain = json.loads(canonical_json(self.__dict__))
        return to_bytes({"format": 1, **plain})


def read_commit(path: Path) -> Commit:
    """Read one commit record and check that its names are what they must be.

    Raises:
        DamagedError: it is damaged, belongs to another shard, or names a file outside the cache.
    """
    record = read_as(path, expected.COMMIT)
    record.pop("format")
    try:
        commit = Commit(**{**record, "bad": tuple((row, reason) for row, reason in record["bad"])})
    except TypeError as error:
        raise damaged(path, f"it is no commit record ({error})") from error
    if any(not commit.first <= row <= commit.last for row, _ in commit.bad):
        raise damaged(path, "it names bad rows of other shards")
    if commit.shard != path.stem or not SHARD_NAME.fullmatch(commit.shard):
        raise damaged(path, f"it speaks of shard {commit.shard!r}")
    if commit.file != f"{commit.shard}-{commit.xxh3_128[:16]}.h5" or not FILE_NAME.fullmatch(commit.file):
        raise damaged(path, f"it names the file {commit.file!r}")
    return commit


def read_commits(folder: Path, key: str) -> Iterator[Commit]:
    """Read all commit records of a cache in order of name.

    Raises:
        DamagedError: one is damaged or belongs to another cache.
    """
    if (far := keeping.far_of(folder)) is not None:
        far.refresh_commits(folder)
    for path in sorted((folder / COMMITS).glob("*.json")):
        commit = read_commit(path)
        if commit.key != key:
            raise damaged(path, f"it belongs to another cache (key {commit.key[:10]}, here {key[:10]})")
        yield commit


def digest_of(commits: list[Commit]) -> str:
    """Return the sha256 over all commit records, as the seal holds it."""
    return sha256_of([[commit.shard, commit.xxh3_128, commit.size] for commit in commits])


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read a cache's `recipe.json` and check that its key is that of its recipe and data set.

    Raises:
        CacheError: there is no cache in the folder.
        DamagedError: the record is damaged.
        FormatError: it is of an unknown format.
    """
    path = folder / RECIPE
    try:
        record = read_as(path, expected.RECIPE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError(
            f"No cache in {folder}: {RECIPE} is missing.", "featcache ls lists the caches."
        ) from error
    for name in (SHARDS, COMMITS, HEADS):
        if (folder / name).is_symlink():
            raise damaged(folder / name, "it is a link to elsewhere")
    if record["key"] != cache_key(sha256_of(record["recipe"]), record["dataset"]["fingerprint"]):
        raise damaged(path, "its key is not that of its recipe and data set")
    return record


def read_seal(folder: Path) -> dict[str, Any] | None:
    """Return the seal of a finished cache, None where there is none yet.

    Raises:
        DamagedError: the seal is damaged.
    """
    try:
        return read_as(folder / SEAL, expected.SEAL)
    except FileNotFoundError:
        return None
