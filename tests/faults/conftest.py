"""The table at the end, and a quick folder for the trials."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from featcache import atomic
from tests.faults import trials


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not trials.ROWS:
        return
    column = f"full × {trials.SHARE:g}" if trials.FULL else "fast"
    terminalreporter.section(f"promises tried by fault ({column}, seed {trials.SEED})")
    terminalreporter.write_line(trials.table())
    if target := os.environ.get("FEATCACHE_FAULTS_TABLE"):
        rows = json.dumps([vars(row) for row in trials.ROWS])
        text = f"{column}, seed {trials.SEED}\n\n{trials.table()}\n"
        Path(target).write_text(rows if target.endswith(".json") else text)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is one: what a kill leaves does not depend on the disk."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    folder = Path(tempfile.mkdtemp(prefix="featcache-faults-", dir=memory if roomy else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _calls_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test puts in place of the system's calls is taken away again."""
    monkeypatch.setattr(atomic, "calls", atomic.calls)
