"""Runs as TensorBoard shows them: a folder of event files a run, written by torch's own SummaryWriter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache import atomic
from featcache.errors import OptionError
from featcache.live import values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EXTRA = "pip install 'featcache[tensorboard]'"
MOST_OPEN = 100
"""Writers, each with a file and a thread; runs beyond these are written when they end."""


class TensorBoard:
    """Writes every run into a folder of its own below `folder`.

    Raises:
        OptionError: TensorBoard is not installed.
        CacheError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError("--tensorboard needs TensorBoard, which is not installed.", EXTRA) from error
        self.folder, self._make = folder, SummaryWriter
        atomic.make_folder(folder)
        self._writers: dict[str, SummaryWriter] = {}
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}

    def begins(self, run: str, facts: Mapping[str, Any], again: bool = False) -> None:
        """Open the run's writer, if there are not too many."""
        if len(self._writers) >= MOST_OPEN:
            self._waiting[run] = []
            return
        self._open(run)

    def epoch(self, run: str, row: Mapping[str, Any]) -> None:
        """Write an epoch's curves, to be seen at once."""
        if run in self._writers:
            self._write(self._writers[run], row)
            self._writers[run].flush()
        elif run in self._waiting:
            self._waiting[run].append(row)

    def ends(self, run: str, record: Mapping[str, Any]) -> None:
        """Write options and results, as TensorBoard's table of hyper-parameters knows them."""
        writer = self._writers.get(run) or self._open(run)
        for row in self._waiting.pop(run, []):
            self._write(writer, row)
        writer.add_hparams(values.options(record), values.results(record), run_name=".")
        self.breaks(run)

    def breaks(self, run: str) -> None:
        """Close the run's writer."""
        self._waiting.pop(run, None)
        if (writer := self._writers.pop(run, None)) is not None:
            writer.close()

    def close(self) -> None:
        """Close every writer that is still open."""
        for run in list(self._writers):
            self.breaks(run)

    def _open(self, run: str) -> SummaryWriter:
        self._writers[run] = self._make(log_dir=str(self.folder / run))
        return self._writers[run]

    @staticmethod
    def _write(writer: SummaryWriter, row: Mapping[str, Any]) -> None:
        for tag, value in values.epoch(row).items():
            writer.add_scalar(tag, value, int(row["epoch"]))
