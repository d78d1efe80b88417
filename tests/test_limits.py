"""Limits on strangers' files: each can be set, is kept to, and stands in the documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache import limits
from featcache.commands.root import run
from featcache.errors import BadImageError, CacheError, DamagedError, HeadError, OptionError, WeightsError
from featcache.heads import saving
from featcache.heads.catalogue import create
from featcache.images.stored import read_file
from featcache.store import records
from tests.kit_images import make_folder

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"


@pytest.mark.parametrize("limit", limits.ALL, ids=lambda limit: limit.variable)
def test_each_can_be_set(limit: limits.Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(limit.variable, raising=False)
    assert limit() == limit.default
    for said, means in (("7", 7), ("3k", 3072), (" 2G ", 2 << 30), ("1T", 1 << 40)):
        monkeypatch.setenv(limit.variable, said)
        assert limit() == means
    for said in ("", "0", "-1", "1.5G", "many", "1e9", "9" * 16):
        monkeypatch.setenv(limit.variable, said)
        with pytest.raises(OptionError, match=limit.variable):
            limit()


def test_each_is_documented() -> None:
    """The table in the document is the one of the program."""
    wanted = [f"| `{it.variable}` | {limits.plain(it.default)} {it.unit} | {it.what} |" for it in limits.ALL]
    lines = DOCUMENT.read_text().splitlines()
    assert [line for line in lines if line.startswith("| `FEATCACHE_MAX_")] == wanted


def test_plain() -> None:
    assert [limits.plain(n) for n in (4, 60, 1024, 3 << 20, 64 << 30, 1 << 40)] == [
        "4",
        "60",
        "1K",
        "3M",
        "64G",
        "1T",
    ]


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(1025))
    assert len(read_file(str(path))) == 1025
    monkeypatch.setenv(limits.IMAGE_BYTES.variable, "1K")
    with pytest.raises(BadImageError, match=r"the limit is 1\.02e-06"):
        read_file(str(path))


def test_a_limit_that_is_none_makes_no_image_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_folder(tmp_path / "photos", train=2, test=1)
    monkeypatch.setenv(limits.IMAGE_BYTES.variable, "lots")
    with pytest.raises(OptionError, match="'lots'"):
        read_file(str(next(photos.rglob("*.png"))))
    asked = ["extract", "--dataset", f"folder:{photos}", "--backbone", "pixels", "--image-size", "8"]
    assert run([*asked, "--on-bad-image", "skip", "--features-dir", str(tmp_path / "features")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: The environment variable FEATCACHE_MAX_IMAGE_BYTES is 'lots'")
    assert not (tmp_path / "features").exists()


def test_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seal.json"
    path.write_bytes(b" " * 2000)
    monkeypatch.setenv(limits.RECORD_BYTES.variable, "1K")
    with pytest.raises(DamagedError, match="at most 1024 were expected"):
        records.read(path)
    with pytest.raises(CacheError, match="larger than the 1024"):
        records.to_bytes({"text": "x" * 2000})


def test_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    head = create("ridge").fit(rng.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3)
    path = tmp_path / "head.safetensors"
    path.write_bytes(saving.dumps(head))
    saving.loads(path)
    monkeypatch.setenv(limits.RUN_FILE_BYTES.variable, "100")
    with pytest.raises(HeadError, match="at most 100 are read"):
        saving.loads(path)


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import save_file

    from featcache.backbones.statefile import read_state

    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(4_900_000)}, path)
    read_state(path, 1 << 20, lambda text: None)
    monkeypatch.setenv(limits.WEIGHTS_TIMES.variable, "1")
    with pytest.raises(WeightsError, match=r"unpacks to 19\.6 MB"):
        read_state(path, 1 << 20, lambda text: None)
