"""What was reported survives power loss, and every fsync is needed for it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from featcache import atomic
from featcache.errors import FeatcacheError
from featcache.store import records
from featcache.store.cache import Cache
from featcache.training import runs
from tests.faults import toys
from tests.faults.powerloss import ROOT, Disk, Recording, Step, lay_out, renamed
from tests.faults.trials import count, draw, numbers, tally
from tests.kit_caches import features

POWER = "… and power loss on a disk that honours fsync"
COUNTS = {"train": 7}


class Lost(Exception):
    """Something that was promised is not there, or something is damaged."""


def _one_writer(place: Path) -> list[Step]:
    """Record one process that makes a cache of two shards, seals it and stores a run."""
    with _recording() as recording:
        here = place / "disk"
        here.mkdir()
        cache = toys.start(here, COUNTS)
        _commit(cache, [0, 1], recording)
        cache.seal()
        recording.note("seal")
        toys.write_run(cache, b"head")
        recording.note("run")
    return renamed(recording.steps, here.parent / "disk")


def _two_writers(place: Path, turns: list[int]) -> list[Step]:
    """Record two processes whose file calls take turns in the given order, and which fill one cache.

    Threads stand in for the processes: each runs until its next call and waits for its turn.
    """
    here, gate = place / "disk", threading.Condition()
    here.mkdir(parents=True)
    order, running = list(turns), {0, 1}

    class Taking(Recording):
        def call(self, number: int, name: str, real: object, *arguments: object) -> object:
            me = int(threading.current_thread().name)
            with gate:
                gate.wait_for(lambda: not order or order[0] == me or order[0] not in running)
                while order and order[0] not in running:
                    order.pop(0)
                if order:
                    order.pop(0)
                try:
                    return super().call(number, name, real, *arguments)
                finally:
                    gate.notify_all()

    errors: list[BaseException] = []

    def work(shards: list[int]) -> None:
        try:
            cache = toys.start(here, COUNTS)
            _commit(cache, shards, recording)
            if not cache.todo():
                cache.seal()
                recording.note("seal")
        except BaseException as error:
            errors.append(error)
        finally:
            with gate:
                running.discard(int(threading.current_thread().name))
                gate.notify_all()

    with _recording(Taking) as recording:
        threads = [
            threading.Thread(target=work, args=(shards,), name=str(name))
            for name, shards in enumerate(([0, 1], [1, 0]))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors, errors
    return renamed(recording.steps, here)


class _recording:
    """Every call recorded, with folders that no process has seen to before."""

    def __init__(self, kind: type[Recording] = Recording) -> None:
        self.recording = kind()

    def __enter__(self) -> Recording:
        self.kept, self.durable = atomic.calls, atomic._durable
        atomic.calls, atomic._durable = self.recording, _EachItsOwn()  # type: ignore[assignment]
        return self.recording

    def __exit__(self, *error: object) -> None:
        atomic.calls, atomic._durable = self.kept, self.durable


class _EachItsOwn(threading.local):
    """A set for each thread: what one process has seen to, the other does not know."""

    def __init__(self) -> None:
        self.held: set[object] = set()

    def __contains__(self, each: object) -> bool:
        return each in self.held

    def add(self, each: object) -> None:
        self.held.add(each)


def _commit(cache: Cache, numbers: list[int], recording: Recording) -> None:
    for number in numbers:
        part = cache.shards()[number]
        if part in cache.todo():
            cache.commit(part, {"flatten": features(part.rows, toys.WIDTH)})
            recording.note(f"shard {part.name}")


def _check_crashes(steps: list[Step], most: int, every: int = 1) -> int:
    """Open every state that power loss may leave at any moment; return how many there were.

    Raises:
        Lost: one of them lacks what was promised, or is damaged.
    """
    disk, opened, seen = Disk(), 0, set()
    for number, step in enumerate([*steps, Step("end")]):
        if number % every == 0 or step.kind in ("note", "end"):
            for files, folders in disk.states(draw("states", number), most):
                state = (tuple(sorted(files.items())), tuple(sorted(folders)), tuple(disk.promises))
                if hash(state) not in seen:
                    seen.add(hash(state))
                    _check(files, folders, disk.promises, f"before call {number}, {step.kind} {step.path}")
                    opened += 1
        if step.kind != "end":
            disk.take(step)
    return opened


def _check(files: dict[str, bytes], folders: set[str], promises: list[str], when: str) -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    target = Path(tempfile.mkdtemp(prefix="featcache-power-", dir=memory)) / "disk"
    lay_out(files, folders, target)
    try:
        _check_opened(target, promises)
    except (FeatcacheError, AssertionError) as error:
        raise Lost(f"{when}: {error}") from error
    finally:
        shutil.rmtree(target.parent)


def _check_opened(target: Path, promises: list[str]) -> None:
    folder = next((path for path in target.glob("*--*") if (path / records.RECIPE).exists()), None)
    if folder is None:
        assert not promises, f"no cache, but {promises} was promised"
        return
    cache = Cache(folder)
    done = cache.commits()
    for name in promises:
        if name.startswith("shard "):
            assert name.removeprefix("shard ") in done, f"{name} is gone"
    assert not [why for part, why in cache.verify() if why and part.name in done]
    sealed = cache.sealed()
    assert sealed is not None or "seal" not in promises, "the seal is gone"
    if sealed is not None:
        toys.check_rows(cache, COUNTS)
    there = list(runs.all_runs(target))
    assert there or "run" not in promises, "the run is gone"
    for run in there:
        record = runs.read_run(run)
        assert runs.read_file(run, record, runs.HEAD) == b"head"
        assert all(runs.read_file(run, record, name) for name in record["files"])


def test_whatever_the_power_leaves_is_whole(tmp_path: Path) -> None:
    steps = _one_writer(tmp_path)
    with tally(
        POWER, "power lost at every file call: unsynced writes dropped, cut, zeroed, reordered"
    ) as found:
        for _ in range(_check_crashes(steps, most=count(64, 4096))):
            found.add("whole")
        assert found.trials > 60


@pytest.mark.timeout(1200)
def test_whatever_the_power_leaves_of_two_writers_is_whole(tmp_path: Path) -> None:
    with tally(POWER, "the same with two writers whose calls take turns by chance") as found:
        for trial in numbers(8, 120):
            rng = draw("turns", trial)
            turns = [rng.randrange(2) for _ in range(200)]
            if trial % 2:  # one of them is held up right after a call of chance
                turns = [0] * rng.randrange(60) + [1] * 200
            steps = _two_writers(tmp_path / str(trial), turns)
            for _ in range(_check_crashes(steps, most=count(12, 256), every=count(3, 1))):
                found.add("whole")


# What a process that writes alone could do without: the records were made durable when each was committed.
# Where two processes write, this one is needed too, as the test after the next shows.
REDUNDANT = ["CACHE/commits"]


def test_every_fsync_is_needed(tmp_path: Path) -> None:
    steps = _one_writer(tmp_path)
    ours = [step.kind == "fsync" and step.path.startswith(ROOT) for step in steps]
    spare = []
    with tally(POWER, "each fsync removed in turn") as found:
        for number in itertools.compress(itertools.count(), ours):
            try:
                _check_crashes(steps[:number] + steps[number + 1 :], most=10)
            except Lost:
                found.add("found to be missing")
            else:
                spare.append(steps[number].path)
                found.add("made durable by another")
    cache = next(step.path for step in steps if step.kind == "mkdir")
    named = [path.replace(cache, "CACHE").replace(toys.RUN, "RUN") for path in spare]
    assert named == REDUNDANT


class _KnowsAll(_EachItsOwn):
    def __contains__(self, each: object) -> bool:
        return True


@pytest.mark.parametrize("without", ["settle", "make_folder"])
def test_what_another_writer_left_undone_is_needed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """One writer is held up after each of its calls; the other must not build on what is not durable."""
    if without == "settle":
        monkeypatch.setattr(atomic, "settle", lambda folder: None)
    else:
        monkeypatch.setattr("tests.faults.test_power_loss._EachItsOwn", _KnowsAll)
    with tally(POWER, f"two writers, the fsync for the other's names removed from {without}") as found:
        for calls in range(100) if without == "make_folder" else range(100, 0, -1):
            try:
                steps = _two_writers(tmp_path / str(calls), [0] * calls + [1] * 200)
                _check_crashes(steps, most=24, every=10**9)
            except Lost:
                found.add("found to be missing")
                return
    raise AssertionError("nobody noticed")


@pytest.mark.parametrize("settled", [True, False])
def test_a_recipe_that_is_linked_and_not_durable_is_made_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """One writer is held up between the link of the recipe and its fsync; another, which has made the folders
    before, finds the recipe and commits a shard."""
    if not settled:
        monkeypatch.setattr(atomic, "settle", lambda folder: None)
    here = tmp_path / "disk"
    here.mkdir()
    with _recording() as recording:
        toys.start(here, COUNTS)
        linked = next(i for i, step in enumerate(recording.steps) if step.target.endswith(records.RECIPE))
        created, atomic._durable = len(recording.steps), _KnowsAll()  # type: ignore[assignment]
        _commit(toys.start(here, COUNTS), [0], recording)
    steps = renamed(recording.steps[: linked + 1] + recording.steps[created:], here)
    with tally(
        POWER, f"the recipe linked by one, used by another, {'' if settled else 'not '}settled"
    ) as found:
        try:
            for _ in range(_check_crashes(steps, most=64)):
                found.add("whole")
        except Lost:
            found.add("found to be missing")
        assert ("found to be missing" in found.counts) is not settled
