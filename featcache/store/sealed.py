"""Whether a cache is finished, and its shards are as they were committed, without opening one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.store import keeping, records


def check_sealed(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the seal if it agrees with the commit records and every shard has its size; None if unsealed.

    No shard is opened: `featcache verify` reads the bytes, and so does every table before its first use.

    Raises:
        DamagedError: a commit record or a shard is missing, of another size or not the sealed one.
    """
    seal = records.read_seal(folder)
    if seal is None:
        return None
    commits = list(records.read_commits(folder, key))
    if seal.get("key") != key or seal.get("commits") != records.digest_of(commits):
        raise records.damaged(folder / records.SEAL, "it does not agree with the commit records")
    for commit in commits:
        check_size(folder, commit)
    return seal


def check_size(folder: Path, commit: records.Commit) -> Path:
    """Return a shard's path if it is there, a regular file, with the committed size.

    Raises:
        DamagedError: it is missing or not of that size.
    """
    path = folder / records.SHARDS / commit.file
    try:
        size = keeping.size_of(path)
    except OSError as error:
        raise records.damaged(path, f"it cannot be looked at ({error.strerror})") from error
    if size is None:
        raise records.damaged(path, "the shard is missing")
    if size != commit.size:
        raise records.damaged(path, f"it has {size} bytes, {commit.size} were committed")
    return path
