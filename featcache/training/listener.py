"""Who hears of runs while they train: what begins, every epoch, and what came of it.

Training calls a listener and knows nothing else of it; those that write to TensorBoard and MLflow are in
`featcache.live`. A listener is told in the process that was asked to train, never in another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class Listener(Protocol):
    """What a listener is told. None of it may change what is trained, and none of it may raise."""

    def begins(self, run: str, facts: Mapping[str, Any], again: bool = False) -> None:
        """Hear that a run begins, or goes on (`again`); see `featcache.training.facts.begun`."""
        ...

    def epoch(self, run: str, row: Mapping[str, Any]) -> None:
        """Hear of a finished epoch: its row of the history; see `featcache.heads.state.EpochReport`."""
        ...

    def ends(self, run: str, record: Mapping[str, Any]) -> None:
        """Hear that a run is stored, with its whole record, or has more in it than it had, such as a test.

        A run that was made at once, of others, never began.
        """
        ...

    def breaks(self, run: str) -> None:
        """Hear that a run failed or was stopped."""
        ...


class Silent:
    """Hears nothing."""

    def begins(self, run: str, facts: Mapping[str, Any], again: bool = False) -> None:
        """Do nothing."""

    def epoch(self, run: str, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def ends(self, run: str, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def breaks(self, run: str) -> None:
        """Do nothing."""


SILENT: Listener = Silent()


@contextlib.contextmanager
def heard(listener: Listener, run: str, facts: Mapping[str, Any], again: bool = False) -> Iterator[None]:
    """Tell a listener that a run begins, and that it breaks if what is done within fails."""
    listener.begins(run, facts, again)
    try:
        yield
    except BaseException:
        listener.breaks(run)
        raise
