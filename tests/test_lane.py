"""The lane: what the extractor gives, cast and checked, whatever the batch; the same on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featcache.backbones import catalogue, weights
from featcache.backbones.lane import Lane
from featcache.backbones.runtime import Extractor
from featcache.errors import BackboneError, OptionError
from featcache.recipe import Preprocess

SIZE = 64
STEP = Preprocess("squash", SIZE, SIZE, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def network(name: str) -> nn.Module:
    return weights.assemble(name, weights.load(name, weights.resolve(name, "random:0"))[0])


def extractor(name: str = "squeezenet1_1", precision: str = "fp32", device: str = "cpu") -> Extractor:
    net = network(name)
    return Extractor(net, catalogue.resolve_nodes(name, net), STEP, precision, device)


def images(n: int, size: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(size // 8, 1).repeat(size // 8, 2))


def room(source: Extractor, n: int, dtype: str = "float16") -> dict[str, NDArray[Any]]:
    return {node: np.full((n, width), np.nan, dtype) for node, width in source.columns.items()}


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_rows_are_those_of_the_extractor(device: str, dtype: str) -> None:
    source = extractor(device=device)
    lane = Lane(source, dtype, 4)
    for n in (4, 3, 9, 1):  # whole, not full, several, one
        rows = room(source, n, dtype)
        assert lane.submit(images(n, seed=n), rows).wait()
        wanted = source(images(n, seed=n))
        for node, values in rows.items():
            np.testing.assert_allclose(values, wanted[node].astype(dtype), rtol=2e-3, atol=1e-3)
            assert cosine(values, wanted[node]) > 0.999999


@pytest.mark.parametrize("device", DEVICES)
def test_many_batches_under_way_do_not_mix(device: str) -> None:
    source = extractor(device=device)
    lane = Lane(source, "float32", 4)
    sent = [
        (images(n, seed=i), room(source, n, "float32")) for i, n in enumerate([4, 2, 7, 4, 1, 4, 4, 3, 4, 4])
    ]
    flights = [lane.submit(pixels, rows) for pixels, rows in sent]
    assert all(flight.wait() for flight in reversed(flights))
    assert flights[0].wait(), "waiting again changes nothing"
    for pixels, rows in sent:
        for node, values in source(pixels).items():
            np.testing.assert_allclose(rows[node], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_batch_gives_the_same_bytes(device: str) -> None:
    source = extractor("resnet18", device=device)
    rows = []
    for lane in (Lane(source, "float16", 8), Lane(source, "float16", 8)):
        for other in (1, 2):
            lane.submit(images(8, seed=other), room(source, 8)).wait()
            rows.append(room(source, 5))
            lane.submit(images(5), rows[-1]).wait()
    assert all(np.array_equal(rows[0][node], each[node]) for each in rows for node in each)


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_of_another_size_are_resized_on_the_device(device: str) -> None:
    asked: list[tuple[int, int]] = []

    def resize(source: tuple[int, int]) -> Any:
        asked.append(source)
        return lambda pixels: pixels.repeat_interleave(SIZE // source[0], 1).repeat_interleave(
            SIZE // source[1], 2
        )

    source = extractor(device=device)
    lane, small = Lane(source, "float32", 3, resize), images(5, 16)
    rows, wanted = room(source, 5, "float32"), room(source, 5, "float32")
    assert lane.submit(small, rows).wait()
    assert lane.submit(small.repeat(4, 1).repeat(4, 2), wanted).wait()
    assert set(asked) == {(16, 16)}
    for node in rows:
        np.testing.assert_allclose(rows[node], wanted[node], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("value", "half", "full"), [(1.0, True, True), (1e5, False, True), (float("nan"), False, False)]
)
def test_what_is_not_finite_is_told(device: str, value: float, half: bool, full: bool) -> None:
    source = extractor(device=device)
    clean = source.rows

    def spoilt(pixels: Tensor) -> dict[str, Tensor]:
        third = torch.tensor([2], device=pixels.device)
        return {node: values.index_fill(0, third, value) for node, values in clean(pixels).items()}

    source.rows = spoilt  # type: ignore[method-assign]
    for dtype, finite in (("float16", half), ("float32", full)):
        assert Lane(source, dtype, 4).submit(images(4), room(source, 4, dtype)).wait() is finite


class _Narrow(Extractor):
    """An extractor on a device whose memory holds only a few images."""

    fits = 3

    def rows(self, pixels: Tensor) -> dict[str, Tensor]:
        if len(pixels) > self.fits:
            raise torch.OutOfMemoryError(f"{len(pixels)} images are too many")
        return super().rows(pixels)


@pytest.mark.parametrize("device", DEVICES)
def test_out_of_memory_halves_the_batch_and_goes_on(device: str) -> None:
    net = network("squeezenet1_1")
    source = _Narrow(net, catalogue.resolve_nodes("squeezenet1_1", net), STEP, "fp32", device)
    lane, rows = Lane(source, "float32", 16), room(source, 10, "float32")
    assert lane.submit(images(10), rows).wait()
    assert lane.batch_size == 2
    wanted = extractor(device=device)(images(10))
    for node, values in wanted.items():
        np.testing.assert_allclose(rows[node], values, rtol=1e-4, atol=1e-4)
    source.fits = 0
    with pytest.raises(BackboneError, match="One image does not fit into the memory"):
        Lane(source, "float32", 4).submit(images(2), room(source, 2, "float32"))


def test_tf32_is_for_gpus() -> None:
    with pytest.raises(OptionError, match="cpu has no TensorFloat-32") as error:
        extractor(precision="tf32")
    assert "fp32" in error.value.hint


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["vgg11", "resnet18", "squeezenet1_1", "mobilenet_v3_small", "vit_b_32"])
@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.999999), ("tf32", 0.99999), ("bf16", 0.999), ("fp16", 0.9999)]
)
def test_a_gpu_lane_agrees_with_the_cpu(name: str, precision: str, least: float) -> None:
    step = Preprocess("squash", 224, 224, "bilinear", STEP.mean, STEP.std) if name == "vit_b_32" else STEP
    net = network(name)
    nodes, pixels = catalogue.resolve_nodes(name, net), images(5, step.crop)
    wanted = Extractor(net, nodes, step)(pixels)
    source = Extractor(net, nodes, step, precision, "cuda")
    rows = room(source, 5, "float32")
    assert Lane(source, "float32", 4).submit(pixels, rows).wait()
    assert all(cosine(rows[node], wanted[node]) >= least for node in wanted)
