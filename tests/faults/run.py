"""All trials by fault on many processes at once: python -m tests.faults.run --jobs 16 [--share .1].

Each test is done in parts, each part in a process forked from this one, which has imported what takes long;
the longest begin first. The table at the end sums the parts. Exit code 1 where a part failed or was not done.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py  # noqa: F401  # imported here once, for all parts
import pytest
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401
from threadpoolctl import threadpool_limits

from tests.faults.processes import fork
from tests.faults.trials import Tally, table

SLICE = 25.0  # seconds of a part, about
# Seconds of each test's full column on one core, about: what has no figure is short and done in one part.
SECONDS = {
    "test_any_harm_to_any_file_is_found": 230.0,
    "test_a_real_disk_of_many_sizes_is_filled": 70.0,
    "test_shards": 110.0,
    "test_records": 220.0,
    "test_killed_before_and_after_every_call_of_one_shard": 110.0,
    "test_killed_before_and_after_every_call_of_one_head": 320.0,
    "test_killed_while_test_predictions_are_added": 110.0,
    "test_killed_at_every_call_of_a_checkpoint": 80.0,
    "test_killed_at_random_moments_by_ones_and_many": 740.0,
    "test_forty_kinds_among_good_ones": 75.0,
    "test_whatever_the_power_leaves_of_two_writers_is_whole": 60.0,
    "test_writers_race_and_readers_read": 250.0,
    "test_two_writers_of_one_ledger_are_killed": 50.0,
    "test_any_damage_is_found_and_repaired": 100.0,
    "test_kills_resumes_and_shuffled_workers": 360.0,
    "test_what_is_not_finite_is_never_stored": 330.0,
    "test_while_a_large_shard_is_built": 375.0,
    "test_the_nth_allocation_fails_while_shards_are_built": 50.0,
    "test_the_nth_allocation_fails_while_images_are_decoded": 40.0,
    "test_heads": 30.0,
    "test_plans": 20.0,
    "test_damage_right_after_reading_is_found": 20.0,
    "test_only_ours_goes_whatever_lies_around": 130.0,
    "test_a_writer_at_work_loses_nothing": 40.0,
    "test_each_costs_one_row": 120.0,
    "test_while_images_are_decoded_and_a_cache_is_filled": 150.0,
    "test_killed_between_all_file_calls_of_sqlite": 1500.0,
    "test_killed_before_every_statement": 100.0,
    "test_two_real_sweeps_writing_one_ledger_are_killed": 100.0,
}
WHOLE = ("test_every_fsync_is_needed",)  # never in parts


@dataclass
class Part:
    """One test, or a part of it."""

    node: str
    number: int = 1
    of: int = 1
    process: int = 0
    code: int | None = None  # None: not done
    begun: float = 0.0
    seconds: float = 0.0
    rows: list[Tally] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The test's name without its module and parameters."""
        return self.node.rpartition("::")[2].partition("[")[0]

    @property
    def due(self) -> float:
        """Seconds it takes, about."""
        return SECONDS.get(self.name, 5.0) / self.of

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Where its output and its table go."""
        stem = "".join(c if c.isalnum() else "-" for c in self.node.rpartition("/")[2])
        return folder / f"{stem}-{self.number}.txt", folder / f"{stem}-{self.number}.json"

    def start(self, folder: Path, environment: dict[str, str]) -> None:
        """Start it."""
        self.begun = time.monotonic()
        self.process = fork(self._run, folder, environment)

    def _run(self, folder: Path, environment: dict[str, str]) -> None:
        os.setsid()  # so that what it started can be stopped with it
        said, rows = self.files(folder)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        part = {"FEATCACHE_FAULTS_PART": f"{self.number}/{self.of}", "FEATCACHE_FAULTS_TABLE": str(rows)}
        os.environ.update(environment | part)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]  # what was read from the environment is read again
        with threadpool_limits(1):
            code = pytest.main([self.node, "--timeout=3000"])
        sys.stdout.flush()
        os._exit(int(code))

    def ended(self, status: int, folder: Path) -> None:
        """Take note of how it ended."""
        self.code, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.begun
        rows = self.files(folder)[1]
        if rows.exists():
            self.rows = [Tally(**row) for row in json.loads(rows.read_text())]


class _Names:
    """A plugin that keeps the names of the tests that were collected."""

    def __init__(self) -> None:
        self.nodes: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.nodes = [item.nodeid for item in session.items]


def nodes(only: Sequence[str]) -> list[str]:
    """Return the tests whose name holds one of these texts, all where there are none."""
    reader, writer = os.pipe()

    def collect() -> None:
        names = _Names()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        pytest.main(["--collect-only", "-q", "tests/faults"], plugins=[names])
        with open(writer, "w", closefd=False) as file:
            json.dump(names.nodes, file)

    process = fork(collect)  # apart, so that the tests' modules are not yet there when the parts begin
    os.close(writer)
    with open(reader) as file:
        found: list[str] = json.load(file)
    os.waitpid(process, 0)
    return [node for node in found if not only or any(text in node for text in only)]


def planned(names: Sequence[str], share: float, pieces: float) -> list[Part]:
    """Return the parts of the tests, longest first."""
    parts = []
    for node in names:
        whole = Part(node)
        of = 1 if whole.name in WHOLE else max(1, round(whole.due * share / pieces))
        parts += [Part(node, number, of) for number in range(1, of + 1)]
    return sorted(parts, key=lambda part: -part.due)


def work(parts: list[Part], jobs: int, folder: Path, environment: dict[str, str], end: float) -> None:
    """Do the parts, `jobs` at a time, until all are done or the time is up."""
    waiting, running = list(parts), dict[int, Part]()
    while waiting or running:
        late = time.monotonic() > end
        while waiting and len(running) < jobs and not late:
            part = waiting.pop(0)
            part.start(folder, environment)
            running[part.process] = part
        if late:
            waiting.clear()
            for part in running.values():
                os.killpg(part.process, signal.SIGKILL)
            end = float("inf")
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                running.pop(process).ended(status, folder)
        time.sleep(0.02)


def summed(parts: Sequence[Part]) -> list[Tally]:
    """Return the rows of all parts, those of one promise and fault added up."""
    found: dict[tuple[str, str], Tally] = {}
    for row in (row for part in parts for row in part.rows):
        total = found.setdefault((row.promise, row.fault), Tally(row.promise, row.fault, outcome=""))
        total.trials, total.seconds = total.trials + row.trials, total.seconds + row.seconds
        for what, count in row.counts.items():
            total.counts[what] = total.counts.get(what, 0) + count
        if row.outcome == "FAILED":
            total.counts["FAILED"] = total.counts.get("FAILED", 0) + 1
    for total in found.values():
        total.outcome = total.said()
    return sorted(found.values(), key=lambda row: (row.promise, row.fault))


def reported(parts: Sequence[Part], folder: Path) -> bool:
    """Print what failed or was not done, each test's seconds, and the table; return whether all is well."""
    wrong = [part for part in parts if part.code not in (0, 5)]
    for part in wrong:
        said = part.files(folder)[0]
        how = "not begun" if part.code is None else f"exit code {part.code}"
        print(f"{how}: {part.node}, part {part.number} of {part.of}")
        if part.code not in (None, -signal.SIGKILL) and said.exists():
            print("\n".join(said.read_text(errors="replace").splitlines()[-40:]))
    seconds: dict[str, list[float]] = {}
    for part in parts:
        seconds.setdefault(part.name, []).append(part.seconds)
    for name, each in sorted(seconds.items(), key=lambda one: -sum(one[1])):
        print(f"{sum(each):8.1f} s  {len(each):3} parts, longest {max(each):6.1f} s  {name}")
    print(table(summed(parts)))
    return not wrong


def main() -> int:
    """Do as the command line says."""
    options = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    options.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    options.add_argument("--share", type=float, default=1.0, help="of the full column's trials")
    options.add_argument("--seed", type=int, default=1, help="what chance draws from")
    options.add_argument("--minutes", type=float, default=600.0, help="stop by then")
    options.add_argument("--only", action="append", default=[], help="tests with this in their name")
    options.add_argument("--keep", type=Path, help="a folder for the output and the tables of the parts")
    chosen = options.parse_args()
    begin = time.monotonic()
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="featcache-faults-run-"))
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "FEATCACHE_FAULTS": "full",
        "FEATCACHE_FAULTS_SHARE": str(chosen.share),
        "FEATCACHE_FAULTS_SEED": str(chosen.seed),
        "OMP_NUM_THREADS": "1",  # of what the parts start; they themselves are limited below
    }
    parts = planned(nodes(chosen.only), chosen.share, SLICE)
    print(
        f"{len(parts)} parts of {len({part.node for part in parts})} tests on {chosen.jobs} processes",
        flush=True,
    )
    work(parts, chosen.jobs, folder, environment, begin + 60 * chosen.minutes)
    good = reported(parts, folder)
    took = time.monotonic() - begin
    print(f"full × {chosen.share:g}, seed {chosen.seed}: {took:.0f} s on {chosen.jobs} processes")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
