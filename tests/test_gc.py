"""`featcache gc` as people and programs meet it; what it may remove is in tests/faults/test_gc.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import pytest

from featcache import atomic
from featcache.commands.gc import Age, Most
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run
from featcache.store import records
from featcache.store.recent import FOLDER, USED, last_used, mark_used
from tests.kit_caches import separable_cache
from tests.kit_images import make_folder

DEAD = f"{atomic.TEMPORARY}{atomic._host()}-999999999-{'0' * 12}"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    separable_cache(tmp_path / "features")
    return tmp_path / "features"


def _gc(capfd: pytest.CaptureFixture[str], features: Path, *options: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run(["gc", *options, "--features-dir", str(features)])
    return code, *capfd.readouterr()


def _json(capfd: pytest.CaptureFixture[str], features: Path, *options: str) -> dict[str, Any]:
    code, out, _ = _gc(capfd, features, *options, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0 and set(found) == set(KEYS["gc"])
    return found


def test_it_lists_and_removes_only_when_asked(capfd: pytest.CaptureFixture[str], features: Path) -> None:
    code, out, err = _gc(capfd, features)
    assert (code, out, err) == (0, "There is nothing to remove.\n", "")
    (features / DEAD).write_bytes(b"x" * 1000)
    code, out, _ = _gc(capfd, features)
    assert code == 0 and "1.0 kB" in out and "is dead" in out and "Nothing was removed: add --delete" in out
    assert (features / DEAD).exists()
    found = _json(capfd, features)
    why = "the process that wrote it is dead"
    assert found["items"] == [{"kind": "temporary", "path": DEAD, "bytes": 1000, "why": why}]
    assert not found["deleted"]
    code, out, _ = _gc(capfd, features, "--yes")
    assert code == 0 and out.endswith("Removed: 1.0 kB.\n") and not (features / DEAD).exists()


def test_a_cache_whose_images_are_gone_stays(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photos, features = make_folder(tmp_path / "photos", train=2, test=1), tmp_path / "features"
    options = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "48"]
    extract = ["extract", "--dataset", f"folder:{photos}", *options, "--features-dir", str(features)]
    assert run(extract) == 0
    (cache,) = features.glob("*--*")
    shutil.move(photos, tmp_path / "away")
    found = _json(capfd, features, "--older-than", "0s", "--delete")
    assert found["kept"][0]["cache"] == cache.name and "last copy" in found["kept"][0]["why"]
    shutil.move(tmp_path / "away", photos)
    one = photos / "train" / "bee" / "000.png"
    data = one.read_bytes()
    one.unlink()
    assert "000.png is no longer" in _json(capfd, features, "--older-than", "0s")["kept"][0]["why"]
    one.write_bytes(data)
    code, out, _ = _gc(capfd, features, "--max-size", "1kB")
    assert code == 0 and cache.name in out and cache.exists()
    found = _json(capfd, features, "--max-size", "1kB", "--delete")
    assert found["bytes"] > 1000 and not cache.exists() and found["left_bytes"] == 0
    assert run(extract) == 0 and cache.exists()  # it can be had again


def test_what_cannot_be_reached_is_said(capfd: pytest.CaptureFixture[str], features: Path) -> None:
    (cache,) = features.glob("*--*")
    (cache / records.HEADS / "mlp-01234567").mkdir(parents=True)
    code, out, err = _gc(capfd, features, "--max-size", "0")
    assert code == 1 and f"kept  {cache.name}: 1 run of it needs it." in out and "more than --max-size" in err


def test_how_long_and_how_much_are_read(capfd: pytest.CaptureFixture[str], features: Path) -> None:
    for text, seconds in {"30d": 2_592_000.0, "1.5h": 5400.0, "2 w": 1_209_600.0}.items():
        assert Age().convert(text, None, None) == seconds
    assert [Most().convert(text, None, None) for text in ("20GB", "0", "0 MB", "1KiB")] == [
        20 * 10**9,
        0,
        0,
        1024,
    ]
    for kind, text in ((Age(), "30"), (Age(), "-1d"), (Most(), "auto"), (Most(), "much")):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)
    assert _gc(capfd, features, "--older-than", "soon")[0] == 2


def test_a_folder_without_caches_is_fine(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert _gc(capfd, tmp_path / "nowhere")[:2] == (0, "There is nothing to remove.\n")
    assert not (tmp_path / "nowhere").exists()


def test_the_use_of_a_cache_is_remembered(features: Path) -> None:
    (cache,) = features.glob("*--*")
    mark_used(features, cache.name)
    mark = features / FOLDER / USED / cache.name
    first = mark.stat().st_mtime_ns
    mark_used(features, cache.name)
    assert mark.stat().st_mtime_ns >= first and last_used(features) == cache.name
