"""The batch size: as many images as pay, evenly over a shard, and kept once it was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.extraction import batch_size, memory
from featcache.extraction.extract import extract
from featcache.extraction.repair import repair
from featcache.extraction.request import Request, Settings
from tests.kit_images import make_folder, tree


@given(size=st.integers(1, 5000), rows=st.integers(1, 5000))
def test_even_batches_fill_a_shard_in_as_few_steps(size: int, rows: int) -> None:
    even = batch_size.even(size, rows)
    assert 1 <= even <= size
    assert -(-rows // even) == -(-rows // size)
    assert even * -(-rows // even) - rows < -(-rows // even), "no batch could be smaller by one"


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({32: 100, 64: 180, 128: 260, 256: 262, 512: 400}, 128),
        ({32: 100, 64: 101}, 32),
        ({32: 100, 64: 180, 128: 0}, 64),
        ({32: 0, 64: 0}, 1),
        ({32: 1, 64: 2, 128: 4}, 128),
    ],
)
def test_the_batch_grows_while_the_rate_does(rates: dict[int, float], chosen: int) -> None:
    tried: list[int] = []

    def rate(size: int) -> float:
        tried.append(size)
        return rates[size]

    assert batch_size.best(rates, rate) == chosen
    assert (
        tried == sorted(tried) and len(tried) <= list(rates).index(chosen) + 2
        if chosen > 1
        else tried == [32]
    )


class _Gpu:
    device = "cuda:0"


class _Recipe:
    fingerprint, row_dtype = "f" * 64, "float16"


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    measured: list[int] = []

    def rate(extractor: Any, recipe: Any, size: int) -> float:
        measured.append(size)
        return 100.0 + min(size, 200)

    monkeypatch.setattr(batch_size, "_rate", rate)
    first = batch_size.batch_size(None, _Gpu(), _Recipe(), 1336, tmp_path)  # type: ignore[arg-type]
    assert first == 223 and measured == [32, 64, 122, 223]
    assert batch_size.batch_size(None, _Gpu(), _Recipe(), 1336, tmp_path) == first  # type: ignore[arg-type]
    assert len(measured) == 4
    assert batch_size.batch_size(100, _Gpu(), _Recipe(), 1336, tmp_path) == 96  # type: ignore[arg-type]
    for path in (tmp_path / memory.FOLDER / "batches").iterdir():
        path.write_text('{"format": 1, "size": "many"}')
    batch_size.batch_size(None, _Gpu(), _Recipe(), 1336, tmp_path)  # type: ignore[arg-type]
    assert len(measured) == 8


def test_a_cache_goes_on_with_the_batches_it_was_made_with(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    asked = Request(f"folder:{folder}", "squeezenet1_1", "random:0", image_size=48)
    settings = Settings(tmp_path / "features", tmp_path, "cpu", batch_size=7, rows_per_shard=11)
    found = extract(asked, settings)
    (facts,) = memory.extractions(settings.features_dir, found.path.name)
    assert facts["batch_size"] == 6, "11 rows are two batches"
    before = tree(found.path)
    next((found.path / "shards").iterdir()).unlink()
    assert len(repair(found.path, replace(settings, batch_size=None))) == 1
    assert tree(found.path) == before
