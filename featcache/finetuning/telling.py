"""Telling of epochs where they are trained: here, or, on several devices, in processes of their own.

Listeners, progress and callbacks stay in the process that was asked to train. Others write the state after an
epoch to disk themselves, for it is large, and send the epoch's numbers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from featcache.errors import RunError
from featcache.finetuning.running import processes, quiet, repeatable
from featcache.heads.state import EpochReport, LayerRow, TrainingState

Tell = Callable[[EpochReport], None]
Keep = Callable[[TrainingState], None]


class Teller:
    """Keeps the state after an epoch, then tells of it."""

    def __init__(self, keep: Keep | None, tell: Tell) -> None:
        self._keep, self._tell = keep, tell

    def __call__(self, report: EpochReport) -> None:
        """Keep, then tell."""
        if self._keep is not None:
            self._keep(report.state())
        self._tell(report)


class Sender:
    """Keeps the state after an epoch in the process that trains, and sends the numbers to the one that asked.

    Where it arrives in a new process, that is made as repeatable, and as quiet, as the one it comes from.
    """

    def __init__(self, keep: Keep | None, queue: Any, precision: str) -> None:
        self._keep, self._queue, self._precision = keep, queue, precision

    def __call__(self, report: EpochReport) -> None:
        """Keep, then send."""
        if self._keep is not None:
            self._keep(report.state())
        self._queue.put((report.epoch, report.epochs, dict(report.metrics)))

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        habits = contextlib.ExitStack()
        habits.enter_context(quiet())
        habits.enter_context(repeatable(self._precision, []))
        self._habits = habits  # for as long as the process lives


@contextlib.contextmanager
def relayed(
    keep: Keep | None,
    tell: Tell,
    latest: Callable[[], TrainingState | None],
    layers: Sequence[LayerRow],
    precision: str,
) -> Iterator[Sender]:
    """Yield what tells from another process; here it is heard in a thread.

    Raises:
        Exception: what `tell` raised, after the training.
    """
    queue, failures = processes().SimpleQueue(), []

    def state() -> TrainingState:
        """Return the last state that was kept."""
        found = latest()
        if found is None:
            raise RunError("No state of this training was kept.", "Give --keep-checkpoints 1.")
        return found

    def hear() -> None:
        """Tell of epochs until there are no more."""
        while (news := queue.get()) is not None:
            epoch, epochs, metrics = news
            try:
                tell(EpochReport(epoch, epochs, metrics, layers, state))
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=hear, name="featcache-epochs", daemon=True)
    thread.start()
    try:
        yield Sender(keep, queue, precision)
    finally:
        queue.put(None)
        thread.join()
        queue.close()
    if failures:
        raise failures[0]
