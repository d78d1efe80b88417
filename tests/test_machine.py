"""What a machine lacks is said before anything is read, and by `featcache doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.backbones import devices
from featcache.backbones.runtimes import openvino
from featcache.commands.root import run
from featcache.errors import OptionError
from featcache.extraction import machine
from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings


def folder(root: Path) -> None:
    """Two photos of two classes."""
    for name in ("a", "b"):
        (root / "photos" / name).mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(root / "photos" / name / "1.jpg")


def test_a_machine_says_what_it_extracts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    found = machine.runtimes()
    assert list(found) == ["torch", "native", "winograd", "compile", "openvino"]
    assert torch.__version__.startswith(found["torch"])
    assert found["openvino"] == "no: it is not installed (pip install 'featcache[openvino]')"
    assert machine.precisions_of_devices()["cpu"].startswith("fp32, bf16, fp16")


def test_an_old_gpu_has_fewer_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert devices.precisions("cuda:0") == ("fp32", "fp16")
    with pytest.raises(OptionError, match="cuda:0 has no bfloat16"):
        devices.check_precision("bf16", "cuda:0")
    devices.check_precision("fp16", "cuda:0")


IMPOSSIBLE = [
    ("--runtime openvino", "it is not installed"),
    ("--runtime openvino --precision fp16", "it is not installed"),
    ("--precision tf32", "cpu has no TensorFloat-32"),
    ("--device cuda:7", "no cuda:7 here"),
]


@pytest.mark.parametrize(("options", "why"), IMPOSSIBLE)
@pytest.mark.parametrize("dry", [False, True])
def test_what_cannot_be_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, options: str, why: str, dry: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    folder(tmp_path)
    command = ["extract", *options.split(), *["--dry-run"][: int(dry)], "--backbone", "resnet18"]
    where = ["--dataset", f"folder:{tmp_path / 'photos'}", "--features-dir", str(tmp_path / "features")]
    assert run([*command, *where, "--weights", "nowhere.safetensors"]) == 1
    said = capfd.readouterr().err
    assert why in said and "nowhere" not in said and not (tmp_path / "features").exists()


def test_a_cache_that_is_there_is_found_whatever_this_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made where there was a GPU, moved here with its images: no longer remembered, and yet a hit."""
    folder(tmp_path)
    asked = Request(f"folder:{tmp_path / 'photos'}", "pixels", image_size=16, precision="tf32")
    where = Settings(tmp_path / "features", tmp_path, "cpu")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(devices, "precisions", lambda device: ("fp32", "tf32"))
        made = extract(asked, where)
    assert not made.hit and extract(asked, where).path == made.path and extract(asked, where).hit
    with pytest.raises(OptionError, match="TensorFloat"):
        extract(Request(asked.dataset, "resnet18", "random:0", image_size=16, precision="tf32"), where)
