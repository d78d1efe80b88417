"""The listeners that were asked for, as one: what fails in them is said once, and training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Listeners:
    """Tells several listeners, each by the name of the option that asked for it."""

    def __init__(self, members: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self._members, self._warn = dict(members), warn

    def begins(self, run: str, facts: Mapping[str, Any], again: bool = False) -> None:
        """Tell all."""
        self._tell(lambda each: each.begins(run, facts, again))

    def epoch(self, run: str, row: Mapping[str, Any]) -> None:
        """Tell all."""
        self._tell(lambda each: each.epoch(run, row))

    def ends(self, run: str, record: Mapping[str, Any]) -> None:
        """Tell all."""
        self._tell(lambda each: each.ends(run, record))

    def breaks(self, run: str) -> None:
        """Tell all."""
        self._tell(lambda each: each.breaks(run))

    def close(self) -> None:
        """Let all finish what is open."""
        self._tell(lambda each: each.close())

    def _tell(self, say: Callable[[Any], None]) -> None:
        """Tell each; one that fails is not told again: no run may be lost to a place that shows it."""
        for name, each in list(self._members.items()):
            try:
                say(each)
            except Exception as error:
                del self._members[name]
                text = " ".join(str(error).split())[:300] or type(error).__name__
                self._warn(f"{name} failed and is told no more; the training goes on: {text}")


@contextmanager
def listening(
    tensorboard: Path | None = None,
    mlflow: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[Listeners]:
    """Yield what tells TensorBoard and MLflow, where they are asked for.

    Args:
        tensorboard: the folder that TensorBoard is pointed at.
        mlflow: an MLflow tracking URI.
        warn: told if one of them fails later on.

    Raises:
        OptionError: what is asked for is not installed, or is not there.
        CacheError: the folder cannot be made.
    """
    members: dict[str, Any] = {}
    if tensorboard is not None:
        from featcache.live.tensorboard import TensorBoard

        members["--tensorboard"] = TensorBoard(tensorboard)
    if mlflow is not None:
        from featcache.live.mlflow import Mlflow

        members["--mlflow"] = Mlflow(mlflow)
    listeners = Listeners(members, warn)
    try:
        yield listeners
    finally:
        listeners.close()
