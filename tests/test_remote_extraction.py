"""From images in object storage to features in object storage, and to heads, by the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import featcache
from featcache import objects
from featcache.commands.root import run
from featcache.errors import DatasetError
from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
from featcache.objects import Objects
from featcache.store import keeping
from featcache.store.cache import Cache
from tests import kit_objects
from tests.kit_images import make_folder, tree
from tests.test_mirror_faults import Faulty

TINY = {"backbone": "pixels", "image_size": 8}
PIXELS = ("--backbone", "pixels", "--image-size", "8")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with kit_objects.serving() as address:
        yield address


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with images in it, below photos/."""
    kit_objects.use_server(monkeypatch, server)
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirrors"))
    url = kit_objects.new_bucket()
    folder = make_folder(tmp_path / "photos", train=6, test=2)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    for name, data in tree(folder).items():
        fs.pipe_file(f"{url}/photos/{name}", data)
    yield url
    kit_objects.forget()


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = run([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_the_commands_work_on_a_bucket_as_on_a_folder(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--features-dir", f"{bucket}/features")
    options = ("--backbone", "pixels", "--image-size", "8", "--dataset", f"folder:{bucket}/photos")
    code, plan, _ = _said(capsys, "extract", *options, *where, "--dry-run")
    assert code == 0 and not plan["hit"] and plan["images"] == 24
    assert kit_objects.names(f"{bucket}/features") == [], "a dry run writes nothing"
    code, made, _ = _said(capsys, "extract", *options, *where)
    assert code == 0 and not made["hit"] and made["rows"] == {"train": 18, "test": 6}
    assert made["cache"].startswith(f"{bucket}/features/folder-photos--pixels--")
    assert _said(capsys, "extract", *options, *where)[1]["hit"]
    here = featcache.extract(f"folder:{tmp_path}/photos", features_dir=tmp_path / "features", **TINY)
    assert here.key == made["fingerprint"], "the cache that the same images on a disk have"

    elsewhere = (*where, "--mirror", str(tmp_path / "other machine"))
    assert _said(capsys, "ls", *elsewhere)[1]["caches"][0]["cache"] == here.name
    code, trained, _ = _said(capsys, "train-head", "--head", "ridge", "--cache", made["cache"], *elsewhere)
    assert code == 0
    assert [row["run"] for row in _said(capsys, "runs", *where)[1]["runs"]] == [trained["run"]]
    assert [row["run"] for row in _said(capsys, "runs", "--rebuild", *where)[1]["runs"]] == [trained["run"]]
    assert _said(capsys, "evaluate", trained["run"], *where)[1]["test"]["accuracy"] >= 0
    image = str(tmp_path / "photos/test/bee/000.png")
    predicted = _said(capsys, "predict", "--run", f"{made['cache']}/heads/{trained['run']}", image, *where)[1]
    assert predicted["images"] == 1 and predicted["run"] == trained["run"]
    checked = _said(capsys, "verify", *elsewhere)[1]
    assert checked["damaged"] == {} and checked["cache"] == made["cache"]
    assert _said(capsys, "info", *elsewhere)[1]["runs"][0]["test_accuracy"] is not None
    assert _said(capsys, "doctor", *where)[1]["safe_for"] == "several processes"
    assert np.array_equal(
        np.asarray(Cache(keeping.local(f"{bucket}/features") / here.name).table("train").X),
        np.asarray(here.table("train").X),
    )


def test_what_is_not_done_on_object_storage_is_refused_in_one_sentence(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = _said(capsys, "gc", "--features-dir", f"{bucket}/features")
    assert code == 1 and said["error"] == f"featcache gc does not work on object storage: {bucket}/features."
    code, said, _ = _said(capsys, "ls", "--features-dir", "s3://no-such-bucket/x")
    assert code == 1 and "there is no such bucket" in said["error"]


def test_verify_repairs_an_object(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"{bucket}/features"
    cache = featcache.extract(f"folder:{bucket}/photos", features_dir=where, **TINY)
    store = Objects(where)
    whole = {name: store.get(name) for name in store.list()}
    name = next(name for name in whole if "/shards/train" in name)
    store.put(name, b"x" * len(whole[name] or b""))
    code, said, _ = _said(capsys, "verify", "--features-dir", where)
    assert code == 1 and f"{where}/{name} is damaged" in said["error"]
    code, said, _ = _said(capsys, "verify", "--repair", "--features-dir", where)
    assert code == 0 and said["repaired"] == ["train-00000"], said
    assert {name: store.get(name) for name in store.list()} == whole
    assert cache.sealed() is not None


def test_the_network_goes_down_in_the_middle(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(dataset=f"folder:{bucket}/photos", backbone="pixels", image_size=8)
    settings = Settings(tmp_path / "features", batch_size=2, rows_per_shard=4, on_bad_image="skip", workers=1)
    whole = extract(request, replace(settings, features_dir=tmp_path / "whole")).path
    real = objects._file_system
    # Each of 24 images is read once to be hashed, then once to be decoded, a few batches ahead.
    faulty = Faulty(real(bucket), 24 + 20, "error", calls=("cat_file",), lasting=True)
    monkeypatch.setattr(objects, "_file_system", lambda place: faulty)
    with pytest.raises(DatasetError, match=r"Cannot read s3://.*\.png: the network is down") as caught:
        extract(request, settings)
    assert "goes on" in caught.value.hint
    monkeypatch.setattr(objects, "_file_system", real)
    cache = Cache(next((tmp_path / "features").glob("folder-photos--*")))
    done = cache.commits()
    assert 0 < len(done) < len(cache.shards())
    assert not any(commit.bad for commit in done.values()), "what could not be fetched is no bad image"
    again = extract(request, settings)
    assert tree(again.path) == tree(whole)
    assert {name: Cache(again.path).commits()[name] for name in done} == done


def test_sweep_compare_and_report_on_a_bucket(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--features-dir", f"{bucket}/features")
    assert _said(capsys, "extract", "--dataset", f"folder:{bucket}/photos", *PIXELS, *where)[0] == 0
    code, _, _ = _said(capsys, "sweep", "--head", "ridge", "--grid", "alpha=1,100", *where)
    assert code == 0
    code, listed, _ = _said(capsys, "runs", *where)
    names = [run["run"] for run in listed["runs"]]
    assert code == 0 and len(names) == 2
    code, compared, _ = _said(capsys, "compare", *names, *where)
    assert code == 0 and len(compared["runs"]) == 2
    assert run(["report", *names, "--text", *where]) == 0
    assert "ridge" in capsys.readouterr().out


def test_ray_is_refused_on_a_bucket(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    asked = ("extract", "--dataset", f"folder:{bucket}/photos", *PIXELS, "--engine", "ray")
    code, said, _ = _said(capsys, *asked, "--features-dir", f"{bucket}/features")
    assert code == 1 and "--engine ray does not work on object storage" in said["error"]
    assert kit_objects.names(f"{bucket}/features") == []
