"""gc removes what featcache made and nobody needs, and never anything else, whatever lies around it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from featcache import atomic
from featcache.store import claims, litter, records, retention
from featcache.store.cache import Cache
from featcache.store.collect import collect
from featcache.store.recent import FOLDER, mark_used
from featcache.store.removal import Item
from tests.faults import toys
from tests.faults.processes import fork, kill, wait
from tests.faults.test_kills import _write
from tests.faults.trials import draw, numbers, tally
from tests.kit_images import tree

PROMISE = "gc deletes only what featcache made and never the last copy"
ALL_AT_REST, NONE_AT_REST = -5.0, 3600.0
DEAD = f"{atomic.TEMPORARY}{atomic._host()}-999999999-{'0' * 12}"
ELSEWHERE = f"{atomic.TEMPORARY}0123abcd-1-{'0' * 12}"
ALIVE = f"{atomic.TEMPORARY}{atomic._host()}-{os.getpid()}-{'0' * 12}"


def _features(here: Path, rng: random.Random) -> dict[str, Cache]:
    """Make a features folder of a few caches: finished, part of another, unfinished, with a run."""
    whole, part = toys.start(here), toys.start(here, {"train": 12})
    other, started = toys.start(here, store_dtype="float32"), toys.start(here, name="started")
    for cache in (part, whole):
        toys.commit_all(cache)
    if rng.random() < 0.8:
        _commit(other)
    started.commit(started.shards()[0], {"flatten": toys.features(started.shards()[0].rows, toys.WIDTH)})
    for cache in rng.sample((whole, part, other), rng.randint(0, 2)):
        folder = cache.path / records.HEADS / toys.RUN
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    mark_used(here, whole.path.name)
    return {"whole": whole, "part": part, "other": other, "started": started}


def _commit(cache: Cache) -> None:
    for each in cache.todo():
        cache.commit(each, {"flatten": toys.features(each.rows, toys.WIDTH).astype("float32")})
    cache.seal()


def _foreign(here: Path, outside: Path, caches: dict[str, Cache], rng: random.Random) -> set[Path]:
    """Lay around what is not ours: files, links and whole caches, in places and by names like ours."""
    folders = [here, here / FOLDER, here / FOLDER / "requests"]
    for cache in caches.values():
        folders += [cache.path, cache.path / records.SHARDS, cache.path / records.COMMITS]
    names = ["notes.txt", ".tmp-mine", "recipe.json.bak", "train-00000-backup.h5", "train-99999.json.old"]
    names += ["cat.jpg", f"{DEAD}x", ".tmp-0123abcd-x-000000000000", "seal.json~", "train-00000.h5"]
    made = set()
    for _ in range(rng.randint(2, 12)):
        path = rng.choice(folders) / rng.choice(names)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(50))
        made.add(path)
    for _ in range(rng.randint(0, 5)):  # links named like what gc looks for, to canaries elsewhere
        folder = rng.choice(folders)
        name = rng.choice((DEAD, ELSEWHERE, "train-00099-0123456789abcdef.h5", "claims"))
        path = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not path.is_symlink():
            path.symlink_to(outside / "canary")
            made.add(path)
    for _ in range(rng.randint(0, 3)):  # a cache within a cache, or a link to one elsewhere
        folder, name = rng.choice(folders), f"inside-{rng.randrange(10**6)}"
        folder.mkdir(parents=True, exist_ok=True)
        if rng.random() < 0.5:
            shutil.copytree(outside / "features", folder / name)
            made |= {path for path in (folder / name).rglob("*") if not path.is_dir()}
        else:
            (folder / name).symlink_to(outside / "features" / "stranger--resnet18--0123456789")
            made.add(folder / name)
    return made


def _litter(here: Path, caches: dict[str, Cache], rng: random.Random) -> dict[Path, str]:
    """Leave behind what processes that died do; return it with its kind."""
    made: dict[Path, str] = {}
    places = [here, here / FOLDER / "requests", *(cache.path / records.SHARDS for cache in caches.values())]
    for name in (DEAD, ELSEWHERE):
        for place in rng.sample(places, 2):
            place.mkdir(parents=True, exist_ok=True)
            if not (place / name).is_symlink():
                made[place / name] = "dead" if name == DEAD else "elsewhere"
    for name in rng.sample(sorted(caches), 2):
        digits = f"{rng.randrange(16**16):016x}"
        number = 0 if rng.random() < 0.5 else 77
        made[caches[name].path / records.SHARDS / f"train-{number:05d}-{digits}.h5"] = "orphan"
    held = here / FOLDER / "claims"
    if not held.is_symlink():  # else somebody's link has that name, and nobody could claim anything
        for name in (caches["whole"].path.name, "gone--resnet18--0123456789"):
            made[held / name / "train-00000"] = "claim"
    made[here / FOLDER / "begun" / "gone--resnet18--0123456789.json"] = "memory"
    made[here / "cut--resnet18--0123456789" / records.SHARDS / "train-00000-0123456789abcdef.h5"] = "remains"
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(30))
    (here / ALIVE).write_bytes(b"somebody writes this")
    return made


def _state(folder: Path) -> dict[str, bytes | str]:
    """Return every file and link below a folder; links are not followed."""
    found: dict[str, bytes | str] = {}
    for above, folders, files in os.walk(folder):
        for name in (*files, *folders):
            path = Path(above) / name
            if path.is_symlink():
                found[str(path)] = str(path.readlink())
            elif path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def _wish(rng: random.Random, total: int) -> retention.Wish:
    return retention.Wish(
        older_than=rng.choice((None, None, -5.0, 3600.0)),
        max_size=rng.choice((None, None, 0, rng.randrange(total))),
        unfinished=rng.random() < 0.3,
        superseded=rng.random() < 0.3,
    )


def test_only_ours_goes_whatever_lies_around(place: Path) -> None:
    outside = place / "outside"
    toys.commit_all(toys.start(outside / "features", name="stranger"))
    (outside / "features" / "stranger--resnet18--0123456789").symlink_to(
        next((outside / "features").glob("stranger--*"))
    )
    (outside / "canary").write_bytes(b"not yours")
    canaries = _state(outside)
    with tally(
        PROMISE, "foreign files, links and caches nested among litter and caches; options by chance"
    ) as found:
        for trial in numbers(50, 1000):
            rng, here = draw("gc", trial), place / str(trial)
            caches = _features(here, rng)
            foreign = _foreign(here, outside, caches, rng)
            left = _litter(here, caches, rng)
            rest = rng.choice((ALL_AT_REST, NONE_AT_REST))
            last = {name for name in caches if rng.random() < 0.3}  # could not be computed again
            before = _state(here)
            wish = _wish(rng, sum(len(data) for data in before.values()))
            lost = {caches[name].path: "its images are gone" for name in last}
            items, choice = retention.find(here, wish, lambda one, lost=lost: lost.get(one.path, ""), rest)
            assert _state(here) == before  # looking changes nothing
            done = collect(items, choice.copies)
            after = _state(here)
            gone = {Path(name) for name in before.keys() - after.keys()}
            assert after.items() <= before.items() and not gone & foreign
            assert _state(outside) == canaries
            _check_caches(caches, choice, gone, last)
            always = {path for path, kind in left.items() if kind == "dead" or kind == "claim"}
            expected = set(left) if rest == ALL_AT_REST else always
            assert gone - _files(choice.items) == expected - _files(choice.items), sorted(gone ^ expected)
            assert done.bytes == sum(len(before[str(path)]) for path in gone)
            found.add("only that, and all of it")
            shutil.rmtree(here)


def _files(items: list[Item]) -> set[Path]:
    return {path for item in items for path in item.path.rglob("*")} | {
        f.path for i in items for f in i.files
    }


def _check_caches(
    caches: dict[str, Cache], choice: retention.Choice, gone: set[Path], last: set[str]
) -> None:
    """What stays is as it was; what went had no run, and another cache or its images could give it back."""
    went = {item.path for item in choice.items}
    for name, cache in caches.items():
        if cache.path not in went:
            good = [why for part, why in cache.verify() if why and part.name in cache.commits()]
            assert not good and (cache.path / records.RECIPE).exists()
            continue
        assert cache.path / records.RECIPE in gone
        assert not list(cache.path.glob(f"{records.HEADS}/*/run.json")), "a cache that a run needs went"
        copy = choice.copies.get(cache.path)
        assert copy is None or (copy not in went and not [why for _, why in Cache(copy).verify() if why])
        assert name not in last or copy is not None, "the last copy went"


@pytest.mark.timeout(1200)
def test_a_writer_at_work_loses_nothing(place: Path) -> None:
    """Writers are stopped for longer than gc lets files rest, wherever that hits them."""
    counts = {"train": 60, "test": 12}
    toys.commit_all(toys.start(place / "whole", counts))
    whole = tree(next((place / "whole").glob("*--*")))
    with tally(PROMISE, "gc over and over beside 3 writers that are stopped and killed") as found:
        for trial in numbers(5, 100):
            rng, here = draw("beside", trial), place / str(trial)
            here.mkdir()
            collector = fork(_collect, here)
            writers = [fork(_write, here, counts, seed) for seed in range(3)]
            for _ in range(6):
                writer = rng.choice(writers)
                os.kill(writer, signal.SIGSTOP)
                time.sleep(rng.random() * 0.04)
                os.kill(writer, signal.SIGCONT)
            assert kill(writers[0]) in (0, -signal.SIGKILL)
            assert [wait(writer) for writer in writers[1:]] == [0, 0], f"trial {trial}: a writer failed"
            assert wait(collector) == 0, f"trial {trial}: gc failed"
            toys.commit_all(toys.start(here, counts))
            for item in litter.litter(here, ALL_AT_REST):
                assert item.kind != "orphan shard" or litter.still_orphan(item.files[0])
            collect(litter.litter(here, ALL_AT_REST), {})
            assert tree(next(here.glob("*--*"))) == whole
            found.add("finished to the bytes of a cache that was left alone")


def _collect(here: Path) -> None:
    """Collect all the while, of what was at rest for a hundredth of a second, until the cache is sealed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        # A folder in the making has no recipe yet: only a rest of a day tells it from remains.
        collect([item for item in litter.litter(here, 0.01) if item.kind != "remains"], {})
        if any((path / records.SEAL).exists() for path in here.glob("*--*")):
            return
    raise AssertionError("the cache was never finished")


def test_what_a_run_needs_and_the_last_copy_are_named(place: Path) -> None:
    cache, other = toys.start(place), toys.start(place, store_dtype="float32")
    toys.commit_all(cache)
    _commit(other)
    toys.write_run(cache, toys.head_bytes(cache))
    wish = retention.Wish(max_size=0)
    choice = retention.choose(place, wish, lambda one: "its images are gone")
    assert choice.items == [] and choice.kept == {
        cache.path.name: "1 run of it needs it",
        other.path.name: "it may be the last copy: its images are gone",
    }


def test_a_copy_that_is_damaged_is_none(place: Path) -> None:
    """What stands in for a cache that goes is read whole right before."""
    whole, part = toys.start(place), toys.start(place, {"train": 12})
    toys.commit_all(whole)
    toys.commit_all(part)
    choice = retention.choose(place, retention.Wish(superseded=True), lambda one: "gone")
    assert [item.path for item in choice.items] == [part.path] and choice.copies == {part.path: whole.path}
    path = next((whole.path / records.SHARDS).glob("train-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "bytes differ" in collect(choice.items, choice.copies).left[part.path]
    toys.check_rows(Cache(part.path), {"train": 12})


def test_killed_while_removing_a_cache(place: Path) -> None:
    """Wherever it stops, what is left is a cache that says it is unfinished, or none; the next gc ends it."""
    from tests.faults.calls import Killing, number_of_calls
    from tests.faults.processes import apart

    def choice(here: Path) -> retention.Choice:
        return retention.choose(here, retention.Wish(max_size=0), lambda one: "", ALL_AT_REST)

    def work() -> None:
        collect(choice(here).items, {})

    here = place / "count"
    toys.commit_all(toys.start(here))
    calls = number_of_calls(work)
    assert list(here.iterdir()) == [here / FOLDER] or not list(here.iterdir())
    with tally(PROMISE, "SIGKILL before and after every file call of a cache's removal") as found:
        for at in range(1, len(calls) + 1):
            for after in (False, True):
                here = place / f"{at}-{after}"
                toys.commit_all(toys.start(here))

                def dying(at: int = at, after: bool = after) -> None:
                    atomic.calls = Killing(at, after)
                    work()

                failing = calls[at - 1] == "rmdir" and after  # of a folder that is not there
                assert apart(dying) == -signal.SIGKILL or failing
                for cache in litter.caches_in(here):
                    opened = Cache(cache)
                    assert opened.sealed() is None or at == 1
                    assert not [why for part, why in opened.verify() if why and part.name in opened.commits()]
                found.add("an unfinished cache, or none")
                collect(retention.find(here, retention.Wish(max_size=0), lambda one: "", ALL_AT_REST)[0], {})
                assert not [path for path in here.iterdir() if path.name != FOLDER], list(here.rglob("*"))


def test_a_link_in_place_of_the_claims_stays(place: Path) -> None:
    """Nobody can claim anything then; the cache is made, and gc leaves the link and what it leads to."""
    features, elsewhere = place / "features", place / "elsewhere" / "gone--resnet18--0123456789"
    elsewhere.mkdir(parents=True)
    (elsewhere / "train-00000").write_bytes(b"not yours")
    cache = toys.start(features)
    (features / FOLDER).mkdir(exist_ok=True)
    (features / FOLDER / "claims").symlink_to(elsewhere.parent)
    toys.commit_all(cache)
    before = _state(place)
    collect(litter.litter(features, ALL_AT_REST), {})
    assert _state(place) == before
    (features / FOLDER / "claims").unlink()
    (features / FOLDER / "claims").write_bytes(b"a file")
    assert litter.litter(features, ALL_AT_REST) == []


def test_claims_of_a_cache_being_made_stay(place: Path) -> None:
    cache = toys.start(place)
    assert list(claims.shared(cache.path, cache.shards(), lambda part: False, rest=False))
    assert litter.litter(place) == []
    assert [item.kind for item in litter.litter(place, ALL_AT_REST)] == ["claims"]
