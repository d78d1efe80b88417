"""Decoding on a device: which files it takes, what it does with them, and that a cache hangs on them alone.

torchvision's decoder on the CPU stands in for the one on a GPU: all but the call itself is the same code.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featcache.backbones import devices
from featcache.backbones.preprocess import fit
from featcache.backbones.runtimes import openvino
from featcache.commands.root import run
from featcache.errors import CacheError, OptionError
from featcache.extraction import device_decoding, machine, pipeline
from featcache.extraction.decoding import Fitting, Processes
from featcache.extraction.device_decoding import JpegDecoder, OnDevice, decoder_for, decoder_name
from featcache.extraction.drift import drift
from featcache.extraction.extract import extract
from featcache.extraction.jpeg_header import plain_size
from featcache.extraction.request import Request, Settings
from featcache.images.catalogue import open_source
from featcache.images.dataset import Dataset
from featcache.images.decode import decode
from featcache.recipe import Preprocess
from featcache.store.cache import Cache
from tests.kit_images import tree

STEP = Preprocess("auto", 56, 48)
FITTING = Fitting(STEP, 1_000_000)


def picture(height: int = 60, width: int = 81, mode: str = "RGB") -> Image.Image:
    """Something smooth: decoders of JPEG differ by more on noise."""
    rng = np.random.default_rng(height * width)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return small.resize((width, height)).convert(mode)


def jpeg(image: Image.Image | None = None, **how: Any) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, "JPEG", **how)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return jpeg(exif=exif)


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


PLAIN = {
    "4:2:0": jpeg(),
    "4:2:2": jpeg(subsampling=1),
    "4:4:4": jpeg(subsampling=0),
    "restarts": jpeg(restart_marker_blocks=2),
    "a comment": jpeg(comment=b"\xff\xda not a scan"),
    "upright": turned(1),
}
FRAME = b"\xff\xc0\x00\x11\x08"
PILLOWS = {
    "grey": jpeg(picture(mode="L")),
    "cmyk": jpeg(picture(mode="CMYK")),
    "progressive": jpeg(progressive=True),
    "kept in rgb": jpeg(keep_rgb=True),
    "turned": turned(6),
    "mirrored": turned(2),
    "cut off": jpeg()[:-40],
    "something behind": jpeg() + b"\0",
    "arithmetic": renamed(jpeg(), FRAME, b"\xff\xc9\x00\x11\x08"),
    "12 bits": renamed(jpeg(), FRAME, b"\xff\xc0\x00\x11\x0c"),
    "no marker": jpeg()[:20] + b"\0" + jpeg()[20:],
    "no JPEG": b"\xff\xd8\xff\xd9",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "nothing": b"",
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_taken(name: str) -> None:
    assert plain_size(PLAIN[name]) == (60, 81)
    assert decode(PLAIN[name]).shape == (60, 81, 3)


@pytest.mark.parametrize("name", PILLOWS)
def test_all_others_are_pillows(name: str) -> None:
    assert plain_size(PILLOWS[name]) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_get_an_answer(start: bytes, at: int, value: int) -> None:
    """Of damaged bytes the answer may be either, but it is one."""
    whole = bytearray(PLAIN["4:2:0"])
    whole[at] = value
    for data in (bytes(whole), bytes(whole[: at + 2]) + b"\xff\xd9", b"\xff\xd8\xff" + start + b"\xff\xd9"):
        size = plain_size(data)
        assert size is None or min(size) > 0


def folder(root: Path, files: dict[str, bytes]) -> Dataset:
    for number, (name, data) in enumerate(sorted(files.items())):
        place = root / "photos" / ("bee" if number % 2 else "cat")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d} {name}.jpg").write_bytes(data)
    return open_source(f"folder:{root / 'photos'}", root).open()


def by_libjpeg(data: bytes) -> NDArray[np.uint8]:
    """The reference: one image, by torchvision's own function, fitted by Pillow."""
    image = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3, False)
    return fit(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), STEP)


@pytest.fixture
def jpegs() -> JpegDecoder:
    return JpegDecoder("cpu")


def decoded(dataset: Dataset, jpeg: Any, first: int, stop: int) -> tuple[NDArray[np.uint8], Any]:
    out = np.full((stop - first, 48, 48, 3), 7, np.uint8)
    hashes = [dataset.content_hashes[row].tobytes() for row in range(first, stop)]
    return out, OnDevice(jpeg)(out, lambda place: dataset.raw(first + place), hashes, FITTING)


def test_each_file_by_its_own_decoder(tmp_path: Path, jpegs: JpegDecoder) -> None:
    """Plain ones by the device, others by Pillow; each as if it were alone, and bad ones told by place."""
    good = {name: PILLOWS[name] for name in ("grey", "cmyk", "progressive", "kept in rgb", "turned")}
    sizes = {f"size {n}": jpeg(picture(40 + 9 * n, 90)) for n in range(4)}
    dataset = folder(tmp_path, {**PLAIN, **good, **sizes, "bad": b"nothing of the kind"})
    out, found = decoded(dataset, jpegs, 0, len(dataset))
    (bad,) = (row for row in range(len(dataset)) if "bad" in dataset.ids[row])
    assert [place for place, _ in found.bad] == [bad] and not out[bad].any()
    for row, image in enumerate(out):
        data = dataset.raw(row)
        if row != bad:
            plain = plain_size(data) is not None
            assert plain == (not any(name in dataset.ids[row] for name in good))
            assert np.array_equal(image, by_libjpeg(data) if plain else fit(decode(data), STEP))
    one, _ = decoded(dataset, jpegs, 3, 4)
    assert np.array_equal(one[0], out[3])


class Fails:
    """A decoder that refuses files of one size, and with them whatever is decoded at the same time."""

    device = "cpu"

    def __init__(self) -> None:
        self.inner, self.calls = JpegDecoder("cpu"), []

    def __call__(self, files: list[bytes]) -> list[torch.Tensor]:
        self.calls.append(len(files))
        if any(plain_size(data) == (50, 50) for data in files):
            raise RuntimeError("nvjpegDecodeBatched failed: 8")
        return self.inner(files)

    drain = JpegDecoder.drain


def test_a_refused_file_goes_to_pillow_and_spoils_no_other(tmp_path: Path) -> None:
    dataset = folder(tmp_path, {"a": jpeg(), "b": jpeg(picture(50, 50)), "c": jpeg(), "d": jpeg()})
    device = Fails()
    out, found = decoded(dataset, device, 0, 4)
    assert not found.bad and device.calls == [4, 1, 1, 1, 1]
    for row, image in enumerate(out):
        data = dataset.raw(row)
        refused = plain_size(data) == (50, 50)
        assert np.array_equal(image, fit(decode(data), STEP) if refused else by_libjpeg(data))


def test_a_decoder_that_gives_another_size_is_not_believed(tmp_path: Path) -> None:
    class Small(Fails):
        def __call__(self, files: list[bytes]) -> list[torch.Tensor]:
            return [image[:, :-1] for image in self.inner(files)]

    dataset = folder(tmp_path, {"a": jpeg(), "b": jpeg()})
    out, found = decoded(dataset, Small(), 0, 2)
    assert not found.bad and np.array_equal(out[1], fit(decode(jpeg()), STEP))


def test_a_failing_device_is_no_property_of_a_file(tmp_path: Path) -> None:
    class Broken(Fails):
        def drain(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    dataset = folder(tmp_path, {"a": jpeg(picture(50, 50)), "b": jpeg()})
    with pytest.raises(RuntimeError, match="illegal"):
        decoded(dataset, Broken(), 0, 2)


def test_no_memory_for_too_many_pixels_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_decoding, "CALL_PIXELS", 60 * 81 * 2 + 1)
    device = Fails()
    out, _ = decoded(folder(tmp_path, {str(n): jpeg() for n in range(5)}), device, 0, 5)
    assert device.calls == [2, 2, 1] and np.array_equal(out[4], by_libjpeg(jpeg()))


def test_too_many_pixels_are_refused_alike(tmp_path: Path, jpegs: JpegDecoder) -> None:
    dataset = folder(tmp_path, {"a": jpeg(), "b": jpeg()})
    out = np.zeros((2, 48, 48, 3), np.uint8)
    hashes = [row.tobytes() for row in dataset.content_hashes]
    found = OnDevice(jpegs)(out, dataset.raw, hashes, Fitting(STEP, 4000))
    assert len(found.bad) == 2 and "too large" in found.bad[0][1]


def test_a_changed_file_stops_the_task(tmp_path: Path, jpegs: JpegDecoder) -> None:
    dataset = folder(tmp_path, {"a": jpeg(), "b": jpeg(), "c": jpeg()})
    assert dataset.content_hashes.any()
    Path(dataset.file(2) or "").write_bytes(jpeg(picture(50, 50)))
    _, found = decoded(dataset, jpegs, 0, 3)
    assert found.changed == 2


def test_a_decoder_is_found_by_its_name_or_refused() -> None:
    assert decoder_for("pillow", "cpu") is None
    name = decoder_name("cpu")
    found = decoder_for(name, "cpu")
    assert found is not None and found.name == name
    with pytest.raises(OptionError, match=r"torchvision 0\.1"):
        decoder_for("libjpeg of torchvision 0.1", "cpu")
    with pytest.raises(OptionError, match="nvjpeg"):
        decoder_for("nvjpeg of torchvision 0.26, compute capability 9.0", "cpu")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_decoding, "gpu_decoder_name", lambda device="auto": decoder_name("cpu"))


@pytest.mark.usefixtures("stand_in")
def test_a_cache_of_its_own_and_the_same_bytes_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{n}": jpeg(picture(50 + n, 90)) for n in range(9)} | {"grey": PILLOWS["grey"]}
    folder(tmp_path, files)
    asked = Request(f"folder:{tmp_path / 'photos'}", "pixels", image_size=16, decode="gpu")
    found = []
    for number, (workers, together) in enumerate(((1, 64), (3, 2), (2, 1))):
        monkeypatch.setattr(Processes, "images", together)
        where = Settings(tmp_path / str(number), tmp_path, "cpu", batch_size=3 + number, workers=workers)
        found.append(Cache(extract(asked, where).path))
    assert tree(found[0].path) == tree(found[1].path) == tree(found[2].path)
    assert found[0].recipe.decoding.decoder == decoder_name("cpu")
    assert found[0].record["request"]["decode"] == "gpu"
    plain = Cache(extract(Request(asked.dataset, "pixels", image_size=16), where).path)
    assert plain.key != found[0].key and "decode" not in plain.record["request"]
    assert plain.recipe.decoding.decoder == "pillow"
    with pytest.raises(CacheError, match="decoded by libjpeg"):
        drift(found[0].path, where)
    # The stand-in is libjpeg, whose pixels are Pillow's.
    ours, theirs = (cache.table("train", val_fraction=0).X for cache in (found[0], plain))
    assert np.array_equal(ours, theirs)


@pytest.mark.usefixtures("stand_in")
def test_images_that_lie_in_no_files_need_no_decoder(tmp_path: Path) -> None:
    asked = Request("digits", "pixels", image_size=16, limit=3, decode="gpu")
    where = Settings(tmp_path, tmp_path, "cpu")
    ours, theirs = (Cache(extract(each, where).path) for each in (asked, replace(asked, decode="cpu")))
    assert np.array_equal(*(each.table("train", val_fraction=0).X for each in (ours, theirs)))


def test_who_decodes_by_default_moves_no_fingerprint() -> None:
    plain = Request()
    assert plain.to_dict() == Request(decode="cpu").to_dict() and "decode" not in plain.to_dict()
    asked = Request(decode="gpu")
    assert Request.from_dict(asked.to_dict()) == asked and Request.from_dict(plain.to_dict()) == plain


def test_without_a_gpu_it_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder(tmp_path, {"a": jpeg(), "b": jpeg()})
    weights = tmp_path / "not there.safetensors"
    command = f"--backbone resnet18 --decode gpu --features-dir {tmp_path / 'features'}".split()
    code = run(["extract", *command, "--dataset", f"folder:{tmp_path / 'photos'}", "--weights", str(weights)])
    said = capfd.readouterr().err
    assert code == 1 and "NVIDIA GPU" in said and "--decode cpu" in said
    assert not (tmp_path / "features").exists()


def test_the_reader_is_told_by_the_recipe() -> None:
    lane: Any = SimpleNamespace(extractor=SimpleNamespace(device="cpu"), on_gpu=False, resizes=False, depth=1)
    assert pipeline.reading(lane, 4, 1, 100).jpeg is None
    made = pipeline.reading(lane, 4, 1, 100, decoder_name("cpu")).jpeg
    assert made is not None and made.device == "cpu"


def test_a_machine_says_what_it_extracts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    found = machine.runtimes()
    assert list(found) == ["torch", "compile", "openvino"] and torch.__version__.startswith(found["torch"])
    assert found["openvino"] == "no: it is not installed (pip install 'featcache[openvino]')"
    assert machine.decoders() == {"cpu": f"pillow {PIL.__version__}", "gpu": "no: it needs an NVIDIA GPU"}
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
    folder(tmp_path, {"a": jpeg(), "b": jpeg()})
    command = ["extract", *options.split(), *["--dry-run"][: int(dry)], "--backbone", "resnet18"]
    where = ["--dataset", f"folder:{tmp_path / 'photos'}", "--features-dir", str(tmp_path / "features")]
    assert run([*command, *where, "--weights", "nowhere.safetensors"]) == 1
    said = capfd.readouterr().err
    assert why in said and "nowhere" not in said and not (tmp_path / "features").exists()


def test_a_cache_that_is_there_is_found_whatever_this_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made where there was a GPU, moved here with its images: no longer remembered, and yet a hit."""
    folder(tmp_path, {"a": jpeg(), "b": jpeg()})
    asked = Request(f"folder:{tmp_path / 'photos'}", "pixels", image_size=16, precision="tf32")
    where = Settings(tmp_path / "features", tmp_path, "cpu")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(devices, "precisions", lambda device: ("fp32", "tf32"))
        made = extract(asked, where)
    assert not made.hit and extract(asked, where).path == made.path and extract(asked, where).hit
    with pytest.raises(OptionError, match="TensorFloat"):
        extract(Request(asked.dataset, "resnet18", "random:0", image_size=16, precision="tf32"), where)
