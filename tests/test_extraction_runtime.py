"""Extraction with runtimes: one cache whatever runs, resumed alike, remembered speeds, the offer of bf16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import featcache
from featcache.backbones.kernels import library
from featcache.backbones.runtimes import choose as choosing
from featcache.backbones.runtimes import openvino
from featcache.backbones.runtimes.catalogue import RUNTIMES
from featcache.errors import DatasetError, OptionError
from featcache.extraction import memory, speeds
from featcache.extraction import runtime as taking
from featcache.extraction.dry_run import dry_run
from featcache.extraction.extract import extract
from featcache.extraction.repair import repair
from featcache.extraction.request import RUNTIMES as KNOWN
from featcache.extraction.request import Request, Settings
from featcache.store import records
from featcache.store.cache import Cache
from tests.kit_images import make_folder, tree

SIZE = 64
here = pytest.mark.skipif(
    openvino.importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
compiles = pytest.mark.skipif(not library.compiler(), reason="no C compiler")
NATIVE, OPENVINO = pytest.param("native", marks=compiles), pytest.param("openvino", marks=here)
OTHERS = pytest.mark.parametrize("name", ["winograd", NATIVE, OPENVINO])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def request_(photos: Path) -> Request:
    return Request(f"folder:{photos}", "squeezenet1_1", "random:0", image_size=SIZE)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "features", tmp_path / "data", "cpu", rows_per_shard=5)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def eager_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the choice be made for a handful of images, without waiting."""
    monkeypatch.setattr(taking, "FEW", 1)
    monkeypatch.setattr(taking, "SOON", 0.0)
    monkeypatch.setattr(choosing, "SECONDS", 0.01)


def lose(cache: Path, count: int) -> None:
    """Make a finished cache one that was stopped half-way."""
    (cache / records.SEAL).unlink()
    for record in sorted((cache / records.COMMITS).iterdir())[-count:]:
        record.unlink()


def test_the_option_knows_all_runtimes() -> None:
    assert set(KNOWN) == {"auto", *RUNTIMES}
    with pytest.raises(OptionError, match="Unknown runtime 'tpu'"):
        Settings(runtime="tpu")


@OTHERS
def test_one_cache_whatever_runs(request_: Request, settings: Settings, tmp_path: Path, name: str) -> None:
    wide = replace(request_, store_dtype="float32")
    first = extract(wide, replace(settings, runtime="torch"))
    assert extract(wide, replace(settings, runtime=name)).hit
    other = extract(wide, replace(settings, runtime=name, features_dir=tmp_path / "other"))
    assert (first.runtime, other.runtime) == ("torch", name)
    assert other.to_dict()["runtime"] == name
    assert other.fingerprint == first.fingerprint
    a, b = (Cache(found.path).table("train").X for found in (first, other))
    assert not np.array_equal(a, b), "two engines, to the last bit"
    assert np.abs(a - b).max() < 1e-3 * a.std()
    (facts,) = memory.extractions(tmp_path / "other", other.path.name)
    assert facts["runtime"] == name and facts["device"] == "cpu"


@OTHERS
@pytest.mark.parametrize("batch_size", [3])
def test_what_was_begun_goes_on_with_the_same_runtime(
    request_: Request, settings: Settings, batch_size: int, name: str
) -> None:
    found = extract(request_, replace(settings, runtime=name, batch_size=7))
    before = tree(found.path)
    lose(found.path, 4)
    notes: list[str] = []
    again = extract(request_, replace(settings, batch_size=batch_size), notify=notes.append)
    assert again.runtime == name and again.images > 0
    assert tree(found.path) == before, "not a byte differs, whatever the batch size"
    assert not any("begun with" in note for note in notes)
    next((found.path / records.SHARDS).iterdir()).unlink()
    assert len(repair(found.path, settings)) == 1
    assert tree(found.path) == before


@here
def test_another_runtime_than_it_was_begun_with_is_said(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extract(request_, replace(settings, runtime="openvino"))
    lose(found.path, 2)
    notes: list[str] = []
    assert extract(request_, replace(settings, runtime="torch"), notify=notes.append).runtime == "torch"
    assert any("was begun with openvino; the rest is made with torch" in note for note in notes)
    speeds.begin(settings.features_dir, found.path.name, "openvino")
    lose(found.path, 2)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    notes.clear()
    assert extract(request_, settings, notify=notes.append).runtime == "torch"
    assert any("openvino cannot be used here: it is not installed" in note for note in notes)
    assert any("the rest is made with torch" in note for note in notes)


@OTHERS
def test_a_cache_made_anew_is_not_bound_by_what_was_there(
    request_: Request, settings: Settings, name: str
) -> None:
    import shutil

    found = extract(request_, replace(settings, runtime=name))
    shutil.rmtree(found.path)
    assert extract(request_, settings).runtime == "torch"  # so few images: auto takes torch


@OTHERS
def test_speeds_are_remembered(
    request_: Request, settings: Settings, eager_to_measure: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(choosing, "WORTH_TRYING", {name: 0.0})
    plan = dry_run(request_, settings)
    assert plan["runtime"] in ("torch", name)
    assert not settings.features_dir.exists(), "a dry run writes nothing"
    first = extract(request_, settings)
    (kept,) = (settings.features_dir / ".featcache" / "speeds").iterdir()
    measured = records.read(kept)
    assert set(measured["speeds"]) == {"torch", name}
    assert measured["facts"]["backbone"] == "squeezenet1_1" and measured["facts"]["crop"] == SIZE
    best = max(measured["speeds"], key=lambda each: measured["speeds"][each]["rate"])
    assert (
        measured["speeds"][first.runtime]["rate"] * choosing.WORTH_TAKING >= measured["speeds"][best]["rate"]
    )

    def never(*arguments: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(choosing, "rate", never)
    extract(replace(request_, store_dtype="float32"), settings)
    kept.write_bytes(b"{")
    with pytest.raises(AssertionError, match="measured again"):
        extract(replace(request_, store_dtype="float32", normalize="half"), settings)


def test_bf16_is_offered_with_what_was_measured(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "_has_bf16", lambda device: True)
    notes: list[str] = []
    extract(request_, settings, notify=notes.append)
    assert not any("bf16 would" in note for note in notes), "seconds of work are not worth a probe"
    monkeypatch.setattr(taking, "FEW", 1)
    extract(replace(request_, limit=2), settings, notify=notes.append)
    assert not any("bf16 would" in note for note in notes), "nor are seconds of many images"
    monkeypatch.setattr(taking, "OFFER", 0.0)
    monkeypatch.setattr(taking, "PROBE", 0.05)
    monkeypatch.setattr(taking, "GAIN", 0.0)
    extract(replace(request_, normalize="half"), settings, notify=notes.append)
    (offer,) = [note for note in notes if "--precision bf16 would be" in note]
    assert "measured just now" in offer and "cache of its own" in offer
    extract(replace(request_, normalize="none"), settings, notify=notes.append)
    assert "measured here before" in notes[-1]
    assert offer.partition(" images/s")[0] == notes[-1].partition(" images/s")[0]
    count = len(notes)
    extract(replace(request_, precision="bf16", normalize="imagenet"), settings, notify=notes.append)
    assert not any("would be" in note for note in notes[count:])


def test_bf16_is_offered_beside_a_runtime_that_has_none(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FEW", 1), ("OFFER", 0.0), ("PROBE", 0.05), ("GAIN", 1e-9)):
        monkeypatch.setattr(taking, name, value)
    monkeypatch.setattr(taking, "_has_bf16", lambda device: True)
    notes: list[str] = []
    assert extract(request_, replace(settings, runtime="winograd"), notify=notes.append).runtime == "winograd"
    assert any("--precision bf16 would be" in note for note in notes)


def test_bf16_is_not_offered_without_hardware_or_gain(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "FEW", 1)
    monkeypatch.setattr(taking, "OFFER", 0.0)
    monkeypatch.setattr(taking, "PROBE", 0.05)
    notes: list[str] = []
    monkeypatch.setattr(taking, "_has_bf16", lambda device: False)
    extract(request_, settings, notify=notes.append)
    monkeypatch.setattr(taking, "_has_bf16", lambda device: True)
    monkeypatch.setattr(taking, "GAIN", 1e9)
    extract(replace(request_, normalize="half"), settings, notify=notes.append)
    assert not any("would be" in note for note in notes)


@pytest.mark.parametrize("name", ["winograd", NATIVE])
def test_the_same_bytes_with_one_thread_and_two(
    request_: Request, settings: Settings, tmp_path: Path, name: str
) -> None:
    wide = replace(request_, backbone="resnet18", store_dtype="float32")
    made, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            own = replace(settings, runtime=name, features_dir=tmp_path / str(threads))
            made.append(extract(wide, own).path)
    finally:
        torch.set_num_threads(before)
    assert tree(made[0]) == tree(made[1])


# -- streams ------------------------------------------------------------------------------------------------


def test_several_streams_give_the_same_cache(
    request_: Request, settings: Settings, tmp_path: Path, two_threads: None
) -> None:
    wide = replace(request_, store_dtype="float32")
    found = extract(wide, settings)
    again = extract(wide, replace(settings, features_dir=tmp_path / "again"))
    assert tree(found.path) == tree(again.path)
    torch.set_num_threads(1)
    alone = extract(wide, replace(settings, features_dir=tmp_path / "alone"))
    a, b = (Cache(one.path).table("train").X for one in (found, alone))
    assert np.abs(a - b).max() < 1e-4 * a.std()


def test_streams_stop_at_a_bad_image_and_lose_nothing(
    settings: Settings, tmp_path: Path, two_threads: None
) -> None:
    folder = make_folder(tmp_path / "photos")
    (folder / "train" / "cat" / "007.png").write_bytes(b"no image")
    asked = Request(f"folder:{folder}", "squeezenet1_1", "random:0", image_size=SIZE)
    with pytest.raises(DatasetError, match=r"train/cat/007\.png"):
        extract(asked, settings)
    done = extract(asked, replace(settings, on_bad_image="skip"))
    assert done.bad_images == 1 and done.rows == {"train": 24, "test": 12}
    assert done.images < 36, "shards before the bad image were kept"


def test_the_python_interface_takes_a_runtime(photos: Path, tmp_path: Path) -> None:
    cache = featcache.extract(
        f"folder:{photos}", backbone="squeezenet1_1", weights="random:0", image_size=SIZE, runtime="torch",
        features_dir=tmp_path,
    )  # fmt: skip
    assert memory.extractions(tmp_path, cache.name)[0]["runtime"] == "torch"
