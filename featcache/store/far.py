"""What may be behind a features folder: the little that is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol


class Far(Protocol):
    """What is behind a mirrored features folder. Paths are those of the mirror."""

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    def keeps(self, path: Path) -> bool:
        """Return whether a file is part of what is mirrored; others stay on this machine."""
        ...

    def write(self, path: Path, data: bytes | Sequence[memoryview]) -> None:
        """Write a file there and here."""
        ...

    def publish_once(self, path: Path, data: bytes) -> bool:
        """Write a file that must not exist there yet; return whether ours is the one that is there now."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file there and here."""
        ...

    def bring(self, path: Path, again: bool) -> bool:
        """Fetch a file that is not here yet, or once more; return whether it was fetched."""
        ...

    def bring_all(self, paths: Iterable[Path]) -> None:
        """Fetch those of some files that are not here yet, several at once."""
        ...

    def there(self, path: Path) -> bool:
        """Return whether there is such a file."""
        ...

    def size(self, path: Path) -> int | None:
        """Return the size of a file there, None where there is none."""
        ...

    def refresh_commits(self, cache: Path) -> None:
        """Make a cache's commit records here those that are there."""
        ...

    def several(self) -> bool:
        """Return whether several processes may write there at once."""
        ...

    def admit(self, cache: Path) -> bool:
        """Return whether only one process may write into a cache, and it is this one; see `sharing.admit`."""
        ...

    def release(self, cache: Path) -> None:
        """Let others write, where only this process might."""
        ...

    def claim(self, path: Path) -> bool | None:
        """Claim a shard for this process; None where claims are made on this machine."""
        ...

    def forget_claims(self, cache: Path) -> None:
        """Remove all claims on a cache's shards."""
        ...
