"""Who is computing which shard: hints that let several processes share the work of one cache.

Nothing depends on them. A claim only makes others look elsewhere first; when nothing is unclaimed, what
is claimed but not committed is computed too, for whoever claimed it may be dead. The store decides who was
first.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featcache.store import keeping
from featcache.store.plan import ShardPlan
from featcache.store.recent import FOLDER


def shared(
    cache: Path, parts: Sequence[ShardPlan], committed: Callable[[ShardPlan], bool], rest: bool = True
) -> Iterator[ShardPlan]:
    """Yield the shards that this process should compute, unclaimed ones first.

    Args:
        cache: the cache's folder.
        parts: the shards that were missing when the process began.
        committed: asked right before a shard is yielded whether somebody has committed it since.
        rest: whether to yield in the end what others have claimed and not committed.
    """
    folder = _folder(cache)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    later = []
    for part in parts:
        if committed(part):
            continue
        if _claim(folder / part.name):
            yield part
        else:
            later.append(part)
    for part in later if rest else ():
        if not committed(part):
            yield part


def forget(cache: Path) -> None:
    """Remove all claims on a finished cache's shards: empty files, and nothing else."""
    if (far := keeping.far_of(cache)) is not None:
        far.forget_claims(cache)
    folder = _folder(cache)
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if stat.S_ISREG((facts := path.lstat()).st_mode) and facts.st_size == 0:
                path.unlink()
        folder.rmdir()


def _folder(cache: Path) -> Path:
    return cache.parent / FOLDER / "claims" / cache.name


def _claim(path: Path) -> bool:
    far = keeping.far_of(path)
    if far is not None and (first := far.claim(path)) is not None:
        return first
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:
        return True  # where no claims can be made, everybody does everything
    return True
