"""The engine of Ray on a real cluster of two nodes: lost actors, nodes and drivers cost time, not bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import DatasetError, OptionError
from featcache.extraction.actor import MARK, Extracting
from featcache.extraction.cluster import Actors, actors_of, check_there
from featcache.extraction.extract import Extraction, extract
from featcache.extraction.joining import task_of
from featcache.extraction.request import Request, Settings, versions
from featcache.store import records
from tests.kit_images import make_folder, tree

# Every node is bound to the loopback interface; read when Ray is imported.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
NODE = {
    "num_cpus": 1,
    "include_dashboard": False,
    "node_ip_address": "127.0.0.1",
    "object_store_memory": 80 << 20,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install featcache[ray]")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        made.other = made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = make_folder(tmp_path_factory.mktemp("ray") / "photos", train=16, test=4)
    return Request(f"folder:{folder}", "squeezenet1_1", "random:0", image_size=64)


@pytest.fixture(scope="module")
def alone(request_: Request, tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    """The cache that one process makes."""
    return extract(request_, settings_in(tmp_path_factory.mktemp("alone"), engine="local"))


def settings_in(folder: Path, **options: Any) -> Settings:
    plain = {"device": "cpu", "batch_size": 2, "rows_per_shard": 2, "workers": 1, "engine": "ray"}
    return Settings(folder / "features", folder / "data", **(plain | options))


def _in_hand(settings: Settings) -> list[int]:
    """The processes of the actors: each leaves a mark while it has images in hand."""
    marks = settings.features_dir.glob(".featcache/decoding/*/.tmp-*")
    return [int(mark.name.split("-")[2]) for mark in marks]


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_stopped_and_killed_drivers_leave_what_the_local_engine_finishes(
    cluster: Any, request_: Request, alone: Extraction, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path, ray_address=cluster.address, ray_actors=1)
    told: list[tuple[str, int, int]] = []

    def stop(*news: Any) -> None:
        told.append(news)
        if news[0] == "train" and news[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(request_, settings, stop)
    (path,) = settings.features_dir.glob("*--*")
    assert told[-1][0] == "train" and 0 < told[-1][1] < 48
    assert not _in_hand(settings), "stopped actors are not taken for dead ones"
    there = len(list((path / records.COMMITS).iterdir()))
    script = (
        "import os, signal; from pathlib import Path\n"
        "from tests.test_ray import Request, extract, settings_in\n"
        "def kill(what, done, total):\n"
        f"    if what == 'train' and done > {2 * there + 2}: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"extract(Request({request_.dataset!r}, 'squeezenet1_1', 'random:0', image_size=64),"
        f" settings_in(Path({str(tmp_path)!r}), ray_address={cluster.address!r}, ray_actors=1), kill)"
    )
    dead = subprocess.run(
        [sys.executable, "-c", script], timeout=120, capture_output=True, cwd=Path(__file__).parents[1]
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()
    assert there < len(list((path / records.COMMITS).iterdir())) < 30
    ended = extract(request_, replace(settings, engine="local", ray_address=None, ray_actors=None))
    assert 0 < ended.images < 60 and tree(ended.path) == tree(alone.path)


def test_killed_actors_and_lost_nodes_change_no_byte(
    cluster: Any, request_: Request, alone: Extraction, tmp_path: Path
) -> None:
    settings, notes = settings_in(tmp_path, ray_address=cluster.address), list[str]()
    lost: list[int] = []

    def lose(what: str, done: int, total: int) -> None:
        """Lose both actors as soon as both are at work: one's process is killed, the other's node removed."""
        if lost or what != "train" or done == 0:
            return
        end = time.monotonic() + 120
        while len(processes := _in_hand(settings)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        (raylet,) = cluster.other.all_processes["raylet"]
        lost.extend(process for process in processes if _parent(process) != raylet.process.pid)
        os.kill(lost[0], signal.SIGKILL)
        cluster.remove_node(cluster.other, allow_graceful=False)

    found = extract(request_, settings, lose, notes.append)
    assert lost and "Ray: 2 actors of 1 CPU each." in notes
    assert tree(found.path) == tree(alone.path) and found.runtime == "torch"
    assert extract(request_, replace(settings, engine="local", ray_address=None)).hit


@pytest.fixture
def task(request_: Request, alone: Extraction, tmp_path: Path) -> dict[str, Any]:
    """What an actor is told, for a cache of which two shards are missing."""
    import shutil

    from featcache.extraction.extract import open_job, source_of
    from featcache.progress import silent
    from featcache.store.cache import Cache

    settings = settings_in(tmp_path, engine="local")
    path = shutil.copytree(alone.path, settings.features_dir / alone.path.name)
    for name in (records.SEAL, "commits/train-00003.json", "commits/test-00000.json"):
        (path / name).unlink()
    mark = tmp_path / "features" / ".featcache" / "seen" / "mark"
    mark.parent.mkdir(parents=True)
    mark.write_text("here")
    job = open_job(request_, source_of(request_, settings), silent)
    return task_of(Cache(path), job, settings) | {
        "threads": 1, "versions": versions(), MARK: (str(mark), "here"),
    }  # fmt: skip


def test_an_actor_computes_what_it_is_told_once(task: dict[str, Any], alone: Extraction) -> None:
    actor = Extracting(task)
    assert actor.begin()["runtime"] == "torch"
    assert actor.shard(0) == {"images": 0}, "somebody has committed it"
    assert actor.shard(3) == {"images": 2} and actor.shard(3) == {"images": 0}
    assert actor.shard(24) == {"images": 2}
    assert actor.end(True)
    path = Path(task["cache"])
    whole = tree(alone.path)
    assert tree(path) == {name: data for name, data in whole.items() if name != records.SEAL}


def test_a_node_that_sees_something_else_is_refused_in_one_sentence(
    task: dict[str, Any], request_: Request
) -> None:
    kind, message, hint = Extracting(task | {MARK: (task[MARK][0], "else")}).begin()["error"]
    assert kind == "CacheError" and "does not see the features folder" in message and "share" in hint
    kind, message, _ = Extracting(task | {MARK: ("/nowhere/at/all", "here")}).begin()["error"]
    assert kind == "CacheError" and "does not see the features folder" in message
    old = task["versions"] | {"torch": "1.0"}
    kind, message, _ = Extracting(task | {"versions": old}).shard(3)["error"]
    assert kind == "CacheError" and f"torch {versions()['torch']}, not 1.0" in message
    elsewhere = make_folder(Path(task["cache"]).parent / "elsewhere", train=2, test=2, seed=5)
    other = {**task["request"], "dataset": f"folder:{elsewhere}"}
    kind, message, _ = Extracting(task | {"request": other}).begin()["error"]
    assert kind == "DatasetError" and "does not see the image" in message


def test_an_image_that_changed_stops_the_actor_and_is_named(task: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    source = Path(task["request"]["dataset"].partition(":")[2])
    photos = shutil.copytree(source, tmp_path / "photos")
    ids = sorted(str(path.relative_to(photos)) for path in (photos / "train").rglob("*.png"))
    (photos / ids[7]).write_bytes((photos / ids[0]).read_bytes() + b"x")
    request = {**task["request"], "dataset": f"folder:{photos}"}
    actor = Extracting(task | {"request": request})
    kind, message, _ = actor.shard(3)["error"]
    assert kind == DatasetError.__name__ and f"The image {ids[7]} changed" in message
    assert actor.shard(24)["error"][1] == message, "its pipeline has ended"
    assert actor.end(False)


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 64, "GPU": 8}, {"CPU": 32, "GPU": 8}], {}, Actors(16, 1, 4)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 16}], {"device": "cpu"}, Actors(20, 0, 4)),
        ([{"CPU": 2}, {"CPU": 7}], {}, Actors(4, 0, 2)),
        ([{"CPU": 2}, {"CPU": 7}], {"workers": 3, "ray_actors": 5}, Actors(5, 0, 3)),
        ([{"CPU": 8}], {"device": "cuda", "ray_actors": 2}, Actors(2, 1, 1)),
        ([{"memory": 8}], {"ray_actors": 3}, Actors(3, 0, 1)),
    ],
)
def test_actors_take_what_the_nodes_have(
    nodes: list[dict[str, float]], options: dict[str, Any], expected: Actors, tmp_path: Path
) -> None:
    plain = {"device": "auto", "workers": None}
    assert actors_of(settings_in(tmp_path, **(plain | options)), nodes) == expected


def test_what_a_cluster_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="The Ray cluster has no GPU"):
        actors_of(settings_in(tmp_path, device="cuda"), [{"CPU": 8}])
    with pytest.raises(OptionError, match="the cluster chooses the devices, got 'cuda:0,cuda:1'"):
        actors_of(settings_in(tmp_path, device="cuda:0,cuda:1"), [{"CPU": 8, "GPU": 2}])
    with pytest.raises(OptionError, match="The Ray cluster has no CPUs"):
        actors_of(settings_in(tmp_path), [])
    with pytest.raises(OptionError, match="used by --engine ray alone"):
        Settings(ray_actors=2)
    with pytest.raises(OptionError, match="Unknown engine 'dask'"):
        Settings(engine="dask")


def test_without_the_extra_the_next_step_is_said(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match="needs Ray, which is not installed") as error:
        extract(request_, settings_in(tmp_path))
    assert 'pip install "featcache[ray]"' in error.value.hint
    assert not list(tmp_path.glob("features/*--*")), "nothing is begun"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379"])
def test_an_address_where_nobody_is_is_refused_at_once(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install featcache[ray]")
    with pytest.raises(OptionError, match=rf"There is no Ray cluster at {address}: ") as error:
        check_there(address)
    assert "ray start --head" in error.value.hint


def test_the_doctor_says_which_ray_or_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from featcache.extraction import machine

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "version", lambda name: f"{name} 2.99")
    assert machine.ray_version() == "ray 2.99"
    monkeypatch.setattr(machine.metadata, "version", absent)
    assert 'pip install "featcache[ray]"' in machine.ray_version()
