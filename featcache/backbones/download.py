"""Fetch a weights file over HTTP: checked while it comes in, and only then given its name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from featcache import atomic, limits
from featcache.errors import WeightsError

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes there are (0: the server does not say)."""

BLOCK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte


def fetch(
    url: str,
    path: Path,
    sha256_prefix: str,
    progress: Progress | None = None,
    *,
    limit: int | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Download a file to `path`, whole and of the right hash or not at all.

    It comes in under a temporary name in the same folder; it is checked for its length and its sha256,
    fsynced and renamed. Several processes may fetch the same file at once: each has its own temporary.

    Raises:
        WeightsError: the server cannot be reached or refuses, the connection breaks or stalls, the file has
            the wrong length or hash or exceeds `limit` bytes (None: `limits.DOWNLOAD_BYTES`), or the disk
            is full. Nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as (file, temporary):
            sha256 = _receive(url, file, progress, limit or limits.DOWNLOAD_BYTES(), timeout)
            if not sha256.startswith(sha256_prefix):
                raise _wrong_hash(url, sha256_prefix, sha256)
            temporary.replace(path)
        atomic.sync_folder(path.parent)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(url, path, error) from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            Path(name).chmod(0o644)  # mkstemp makes it private; the torch cache may be shared
            yield file, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _receive(url: str, file: IO[bytes], progress: Progress | None, limit: int, timeout: float) -> str:
    """Copy a URL's content to an open file, fsynced; return its sha256."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(f"Cannot download {url}: only http and https addresses are fetched.")
    request = urllib.request.Request(url, headers={"User-Agent": "featcache"})
    sha256, done = hashlib.sha256(), 0
    with urllib.request.urlopen(request, timeout=timeout) as response:
        total = int(response.headers.get("Content-Length") or 0)
        if total > limit:
            raise _too_large(url, limit)
        while block := response.read(BLOCK):
            done += len(block)
            if done > limit:
                raise _too_large(url, limit)
            sha256.update(block)
            file.write(block)
            if progress is not None:
                progress(done, total)
    if done < total:
        raise WeightsError(
            f"The download of {url} was cut off after {done} of {total} bytes; nothing was kept.",
            "Run the same command again.",
        )
    file.flush()
    os.fsync(file.fileno())
    return sha256.hexdigest()


def _too_large(url: str, limit: int) -> WeightsError:
    return WeightsError(f"The file at {url} is larger than {limit} bytes; nothing was kept.")


def _wrong_hash(url: str, expected: str, got: str) -> WeightsError:
    return WeightsError(
        f"The file at {url} is not the official one: its sha256 should begin with {expected}, "
        f"got {got[: max(len(expected), 8)]}. The download was removed.",
        "A proxy may have answered in the server's place; try again, or give a file with --weights PATH.",
    )


def _failed(url: str, path: Path, error: Exception) -> WeightsError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return WeightsError(
            f"Cannot store {url} in {path.parent}: {error.strerror}.",
            "Make room, or choose another folder with the environment variable TORCH_HOME.",
        )
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it is also the open response
        reason = f"the server answered {error.code} {error.reason}"
    return WeightsError(
        f"The official weights are not on this machine and cannot be fetched from {url}: {reason}.",
        f"Put the file at {path} yourself, or use --weights PATH or --weights random:0.",
    )
