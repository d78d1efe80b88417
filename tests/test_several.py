"""Several devices: a process each, one cache, the bytes of one device alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from featcache.errors import CacheError, DatasetError, OptionError
from featcache.extraction import memory, several
from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
from tests.kit_images import make_folder, tree


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    folder = make_folder(tmp_path / "photos", train=16, test=4)
    return Request(f"folder:{folder}", "squeezenet1_1", "random:0", image_size=64)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "features", tmp_path / "data", "cpu,cpu", batch_size=2, rows_per_shard=5)


def test_two_devices_make_the_cache_of_one(request_: Request, settings: Settings, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    both = extract(request_, settings, lambda *news: told.append(news))
    one = extract(request_, replace(settings, device="cpu", features_dir=tmp_path / "one"))
    assert tree(both.path) == tree(one.path)
    assert not both.hit and both.images == 60, "no shard is computed twice"
    assert ("train", 48, 48) in told and ("test", 12, 12) in told
    (facts,) = memory.extractions(settings.features_dir, both.path.name)
    assert facts["device"] == "cpu,cpu" and facts["images"] == both.images
    assert extract(request_, settings).hit


def test_what_one_process_meets_is_told_as_if_met_here(request_: Request, settings: Settings) -> None:
    folder = Path(request_.dataset.partition(":")[2])
    (folder / "train" / "bee" / "bad.png").write_bytes(b"GIF89a")
    with pytest.raises(DatasetError, match=r"Cannot read the image train/bee/bad\.png") as error:
        extract(request_, settings)
    assert "--on-bad-image skip" in error.value.hint
    found = extract(request_, replace(settings, on_bad_image="skip"))
    assert found.bad_images == 1


def test_processes_that_end_early_leave_what_they_did(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = several._started

    def killed(*arguments: object) -> object:
        process = real(*arguments)  # type: ignore[arg-type]
        process.kill()
        return process

    monkeypatch.setattr(several, "_started", killed)
    with pytest.raises(CacheError, match=r"processes on cpu,cpu ended before .* \(cpu: -9, cpu: -9\)"):
        extract(request_, settings)
    monkeypatch.setattr(several, "_started", real)
    assert extract(request_, settings).rows == {"train": 48, "test": 12}


def test_every_device_is_looked_at_first(request_: Request, settings: Settings) -> None:
    with pytest.raises(OptionError, match="There is no cuda:77 here"):
        extract(request_, replace(settings, device="cpu,cuda:77"))
    assert not list(settings.features_dir.glob("*--*"))
