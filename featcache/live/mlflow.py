"""Runs as MLflow shows them, through its own client: a server by its address, or what else it writes to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from featcache.errors import OptionError
from featcache.live import values
from featcache.version import VERSION

EXTRA = "pip install 'featcache[mlflow]'"
EXPERIMENT = "featcache"
TAG = "featcache.run"
_AT_ONCE = 1000  # numbers in one request, at most: MLflow's own limit
_REST = 10  # times as long as sending took: how long it rests, so that heads train nine tenths of the time
# An address that does not answer must not hold up training for minutes, and stdout is for data.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Mlflow:
    """Logs runs to the experiment "featcache", or that of MLFLOW_EXPERIMENT_NAME.

    Epochs are sent as they come, or several together where sending takes long.

    Args:
        uri: an MLflow tracking URI: http://…, databricks, a folder, …

    Raises:
        OptionError: MLflow is not installed, or there is no store at the address.
    """

    def __init__(self, uri: str) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise OptionError("--mlflow needs MLflow, which is not installed.", EXTRA) from error
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        try:
            with _mannered():
                self._client = MlflowClient(tracking_uri=uri)
                found = self._client.get_experiment_by_name(name)
                self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        except Exception as error:
            raise OptionError(
                f"Cannot log to MLflow at {uri}: {_first_words(error)}", _hint(error)
            ) from error
        self._runs: dict[str, str] = {}  # our run → MLflow's id
        self._waiting: dict[str, list[Any]] = {}
        self._rests_until = 0.0

    def begins(self, run: str, facts: Mapping[str, Any], again: bool = False) -> None:
        """Make the run, or find it where one goes on, and send its options."""
        with _mannered():
            there = self._found(run) if again else None
            if there is None:
                tags = {TAG: run, "featcache.version": VERSION}
                made = self._client.create_run(self._experiment, run_name=run, tags=tags)
                there = made.info.run_id
                self._send(there, params=values.options(facts))
            else:
                self._client.update_run(there, status="RUNNING")
            self._runs[run] = there

    def epoch(self, run: str, row: Mapping[str, Any]) -> None:
        """Send an epoch's numbers, now or with the next ones."""
        self._waiting.setdefault(run, []).extend(self._metrics(values.epoch(row), int(row["epoch"])))
        begin = time.monotonic()
        if begin >= self._rests_until:
            self._flush()
            took = time.monotonic() - begin
            self._rests_until = time.monotonic() + _REST * took

    def ends(self, run: str, record: Mapping[str, Any]) -> None:
        """Send what came of the run, and finish it."""
        known = self._runs.get(run)
        if known is None:
            self.begins(run, record, again=True)
        step = int(record.get("epochs") or 0)
        self._waiting.setdefault(run, []).extend(self._metrics(values.results(record), step))
        self._finish(run, "FINISHED")

    def breaks(self, run: str) -> None:
        """Finish the run as one that failed."""
        if run in self._runs:
            self._finish(run, "FAILED")

    def close(self) -> None:
        """Finish what is still open."""
        for run in list(self._runs):
            self.breaks(run)

    def _finish(self, run: str, status: str) -> None:
        with _mannered():
            self._flush(run)
            self._client.set_terminated(self._runs.pop(run), status)

    def _flush(self, only: str | None = None) -> None:
        """Send what waits, of all runs or of one."""
        with _mannered():
            for run in [only] if only is not None else list(self._waiting):
                metrics = self._waiting.pop(run, [])
                for start in range(0, len(metrics), _AT_ONCE):
                    self._send(self._runs[run], metrics=metrics[start : start + _AT_ONCE])

    def _send(self, run_id: str, metrics: Any = (), params: Mapping[str, values.Plain] | None = None) -> None:
        from mlflow.entities import Param

        told = [Param(name, str(value)) for name, value in (params or {}).items()]
        self._client.log_batch(run_id, metrics=list(metrics), params=told)

    def _found(self, run: str) -> str | None:
        """Return MLflow's id of a run that was logged before."""
        there = self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{run}'", max_results=1)
        return str(there[0].info.run_id) if there else None

    @staticmethod
    def _metrics(numbers: Mapping[str, float], step: int) -> list[Any]:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        return [Metric(name, value, now, step) for name, value in numbers.items()]


@contextlib.contextmanager
def _mannered() -> Iterator[None]:
    """Let MLflow wait for an answer for seconds and print nothing, unless its own variables say otherwise."""
    ours = {name: value for name, value in _MANNERS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _first_words(error: Exception) -> str:
    """Return the first sentence of what MLflow says, without the trail of what caused it."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = text.partition(". ")[0].partition(" failed with exception")
    said = f"{first[0]} failed" if first[1] else first[0].rstrip(".")
    return f"{said[:200]}."


def _hint(error: Exception) -> str:
    if "MLFLOW_ALLOW_FILE_STORE" in str(error):
        return "Give the address of an MLflow server, or set MLFLOW_ALLOW_FILE_STORE=true to write a folder."
    if isinstance(error, ImportError):
        return "For stores other than a server: pip install mlflow."
    return "Is the server up, and the address right?"
