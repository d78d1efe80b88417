"""Kernels in C: the convolutions and poolings they say they are, on every kind of processor at hand."""

from __future__ import annotations

import copy
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional

from featcache.backbones import fused, graph
from featcache.backbones.fused import FusedConvolution
from featcache.backbones.kernels import direct, library, pointwise, pooling, resizing, winograd
from featcache.backbones.kernels.base import NativeConvolution, kernels
from featcache.backbones.kernels.convolutions import native
from featcache.backbones.kernels.direct import DirectKernel
from featcache.backbones.kernels.pointwise import PointwiseKernel
from featcache.backbones.kernels.pooling import PoolingKernel, can_pool, replace_pooling
from featcache.backbones.kernels.winograd import WinogradKernel
from featcache.backbones.runtimes.catalogue import RUNTIMES, make
from featcache.backbones.runtimes.check import disagreement
from featcache.backbones.winograd import replace_convolutions
from featcache.errors import BackboneError
from tests import kit_runtimes as kit
from tests.test_winograd import convolution, exact, maps

pytestmark = pytest.mark.skipif(not library.compiler(), reason="no C compiler")
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86-64")

TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 0.1}
"""Of the deviation of the exact result, largest difference; eager torch has up to 2e-5, and up to .05."""


def dtypes() -> list[torch.dtype]:
    has = not RUNTIMES["native"].absent("cpu", "bf16")
    return [torch.float32, *([torch.bfloat16] if has else [])]


DTYPES = pytest.mark.parametrize("dtype", dtypes(), ids=str)


def rounded(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Conv2d:
    """Return a convolution whose weights are numbers of a dtype, but float32."""
    conv.weight.data = conv.weight.data.to(dtype).float()
    return conv


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> None:
    assert got.shape == wanted.shape and got.dtype == dtype
    scale = wanted.std() if scale is None else scale
    most = (got.double() - wanted).abs().max()
    assert most <= TOLERANCE[dtype] * scale.clamp(min=1e-3) + 1e-6, (float(most), float(scale))


# -- convolutions -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)  # compiles at first
@given(
    count=st.integers(1, 4),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    channels=st.sampled_from([16, 48]),
    out=st.sampled_from([32, 48, 80]),
    extras=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    block=st.sampled_from([1, 100_000, 1 << 20]),
    dtype=st.sampled_from(dtypes()),
)
def test_winograd_is_the_convolution(
    count: int, height: int, width: int, pads: tuple[int, int], channels: int, out: int,
    extras: tuple[bool, bool, bool, bool], block: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Of every shape, with and without bias, addend, ReLU and pooling, in blocks of a few tiles or all."""
    bias, relu, adds, pools = extras
    height, width = max(height, 3 - 2 * pads[0]), max(width, 3 - 2 * pads[1])
    conv = rounded(convolution(channels, out, pads, bias), dtype)
    x = maps(count, channels, height, width).to(dtype)
    plain = exact(conv, x)
    addend = maps(*plain.shape, seed=1).to(dtype) if adds else None
    wanted = plain if addend is None else plain + addend.double()
    wanted = wanted.relu() if relu else wanted
    kernel = WinogradKernel(conv, relu, dtype)
    pools = pools and min(plain.shape[2:]) > 1
    kernel.pool = pools
    wanted = functional.max_pool2d(wanted, 2) if pools else wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BLOCK", block)
        got = kernel(x, addend)
    close(got, wanted, dtype, plain.std() if plain.numel() > 1 else plain.abs().max())
    assert got.is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=60)  # compiles at first
@given(
    count=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    window=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 4),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.sampled_from([1, 3, 4, 15]),
    out=st.sampled_from([16, 64, 96]),
    extras=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from(dtypes()),
)
def test_few_channels_directly(
    count: int, sides: tuple[int, int], window: tuple[int, int], stride: int, pads: tuple[int, int],
    channels: int, out: int, extras: tuple[bool, bool, bool], dtype: torch.dtype,
) -> None:  # fmt: skip
    bias, relu, adds = extras
    height, width = (max(a, b - 2 * c) for a, b, c in zip(sides, window, pads, strict=True))
    torch.manual_seed(out)
    conv = nn.Conv2d(channels, out, window, stride, pads, bias=bias).requires_grad_(False)
    rounded(conv, dtype)
    x = maps(count, channels, height, width).to(dtype)
    plain = exact(conv, x)
    addend = maps(*plain.shape, seed=1).to(dtype) if adds else None
    wanted = plain if addend is None else plain + addend.double()
    kernel = native(conv, dtype)
    assert isinstance(kernel, DirectKernel)
    kernel.relu = relu
    got = kernel(x, addend)
    scale = plain.std() if plain.numel() > 1 else plain.abs().max()
    close(got, wanted.relu() if relu else wanted, dtype, scale)


@DTYPES
@pytest.mark.parametrize(
    ("channels", "out", "size"), [(64, 64, 56), (256, 256, 14), (512, 512, 7), (3, 64, 60)]
)
def test_it_rounds_about_as_torch_does(channels: int, out: int, size: int, dtype: torch.dtype) -> None:
    conv, x = rounded(convolution(channels, out), dtype), maps(2, channels, size, size).to(dtype)
    wanted = exact(conv, x)
    kernel, plain = native(conv, dtype), copy.deepcopy(conv).to(dtype)
    assert kernel is not None
    ours, torchs = ((made(x).double() - wanted).square().mean().sqrt() for made in (kernel, plain))
    # Numbers of bfloat16 are exact until they are transformed; torch then rounds but the result.
    assert ours < (4 if dtype == torch.float32 else 8) * torchs < 0.02 * wanted.std()


@settings(deadline=None, max_examples=60)  # compiles at first
@given(
    count=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    stride=st.integers(1, 3),
    channels=st.sampled_from([16, 48]),
    out=st.sampled_from([32, 64, 80, 144]),
    extras=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from(dtypes()),
)
def test_pixels_alone(
    count: int, sides: tuple[int, int], stride: int, channels: int, out: int,
    extras: tuple[bool, bool, bool], dtype: torch.dtype,
) -> None:  # fmt: skip
    bias, relu, adds = extras
    torch.manual_seed(out)
    conv = rounded(nn.Conv2d(channels, out, 1, stride, bias=bias).requires_grad_(False), dtype)
    x = maps(count, channels, *sides).to(dtype)
    plain = exact(conv, x)
    addend = maps(*plain.shape, seed=1).to(dtype) if adds else None
    wanted = plain if addend is None else plain + addend.double()
    kernel = native(conv, dtype)
    assert isinstance(kernel, PointwiseKernel)
    kernel.relu = relu
    got = kernel(x, addend)
    close(got, wanted.relu() if relu else wanted, dtype, plain.std())
    assert torch.equal(kernel(x[:1], None if addend is None else addend[:1]), got[:1])


@DTYPES
@pytest.mark.parametrize("channels", [64, 3])
def test_an_image_has_the_same_bits_in_every_batch(channels: int, dtype: torch.dtype) -> None:
    kernel = native(convolution(channels, 64), dtype)
    assert kernel is not None
    x = maps(7, channels, 30, 30).to(dtype)
    whole = kernel(x)
    for first, stop in ((0, 1), (1, 7), (3, 5)):
        assert torch.equal(kernel(x[first:stop]), whole[first:stop])


@DTYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("channels", [32, 3])
def test_what_is_not_finite_stays_so(channels: int, value: float, dtype: torch.dtype) -> None:
    """Such features are found before they are stored: neither a ReLU nor a pooling may hide them."""
    conv = convolution(channels, 64)
    kernel = native(FusedConvolution(conv), dtype)
    assert isinstance(kernel, NativeConvolution) and kernel.relu
    x = maps(1, channels, 12, 12).to(dtype)
    x[0, 1, 5, 6] = value
    assert not torch.isfinite(kernel(x)[0, :, 4:7, 5:8]).all(dim=0).any()
    if isinstance(kernel, WinogradKernel):
        kernel.pool = True
        assert not torch.isfinite(kernel(x)[0, :, 2:4, 2:4]).any()
    assert torch.isnan(
        PoolingKernel(nn.MaxPool2d(3, 2, 1), dtype)(x.new_full((1, 16, 9, 9), value) * 0)
    ).all()


@DTYPES
@pytest.mark.parametrize("channels", [32, 3])
def test_addends_of_another_shape_or_dtype(channels: int, dtype: torch.dtype) -> None:
    """As torch adds them: spread, and to the wider dtype."""
    conv, x = rounded(convolution(channels, 64), dtype), maps(2, channels, 9, 9).to(dtype)
    kernel = native(FusedConvolution(conv), dtype)
    assert kernel is not None
    for shape, of in (((2, 64, 1, 1), dtype), ((2, 64, 9, 9), torch.float64), ((64, 1, 1), torch.float32)):
        addend = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(of)
        got = kernel(x, addend)
        assert got.dtype == torch.promote_types(dtype, of)
        close(got.to(dtype), (exact(conv, x) + addend.double()).relu(), dtype)


@DTYPES
def test_maps_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    """Their memory would be read as what it is not."""
    for conv in (convolution(32, 64), convolution(3, 64), nn.Conv2d(32, 64, 1)):
        kernel = native(conv, dtype)
        assert kernel is not None
        x = maps(1, conv.in_channels, 8, 8)
        for other in (x.double(), x.half(), x.to("meta", dtype)):
            with pytest.raises(TypeError, match=f"maps must be {dtype} on the CPU, not"):
                kernel(other)
        assert kernel(input=x.to(dtype)).shape == (1, 64, 8, 8)


def test_which_convolutions_are_taken() -> None:
    assert isinstance(native(convolution(16, 32), torch.float32), WinogradKernel)
    assert isinstance(native(nn.Conv2d(3, 16, 7, 2, 3), torch.float32), DirectKernel)
    assert isinstance(native(nn.Conv2d(16, 32, 1, 2), torch.float32), PointwiseKernel)
    for conv in (
        convolution(16, 16), convolution(24, 32), convolution(16, 40), nn.Conv2d(32, 64, 3, stride=2),
        nn.Conv2d(16, 16, 1), nn.Conv2d(24, 64, 1),
        nn.Conv2d(16, 64, 1, padding=1), nn.Conv2d(3, 24, 3), nn.Conv2d(3, 64, 3, stride=(1, 2)),
        nn.Conv2d(3, 64, 3, dilation=2), nn.Conv2d(3, 48, 3, groups=3), nn.Conv2d(3, 64, 3, padding="same"),
        nn.Conv2d(3, 64, 3, padding=1, padding_mode="reflect"), nn.Linear(3, 64),
    ):  # fmt: skip
        assert native(conv, torch.float32) is None, conv


# -- pooling ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)  # compiles at first
@given(
    count=st.integers(1, 3),
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    ceil=st.booleans(),
    dtype=st.sampled_from(dtypes()),
)
def test_pooling_is_torchs(
    count: int,
    height: int,
    width: int,
    window: int,
    stride: int,
    padding: int,
    ceil: bool,
    dtype: torch.dtype,
) -> None:
    padding = min(padding, window // 2)
    height, width = max(height, window - 2 * padding), max(width, window - 2 * padding)
    x = (maps(count, 16, height, width) - maps(count, 16, height, width, seed=1)).to(dtype)
    pool = nn.MaxPool2d(window, stride, padding, ceil_mode=ceil)
    assert can_pool(pool)
    assert torch.equal(PoolingKernel(pool, dtype)(x), pool(x))


def test_other_poolings_and_maps_are_left_to_torch() -> None:
    for pool in (
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(3, 1, 1, dilation=2), nn.MaxPool2d((2, 3)), nn.MaxPool2d(2, stride=(1, 2)),
    ):  # fmt: skip
        assert not can_pool(pool), pool
    kernel = PoolingKernel(nn.MaxPool2d(2), torch.float32)
    for x in (torch.randn(2, 5, 8, 8), torch.randn(16, 8, 8), torch.randn(1, 16, 8, 8).double()):
        assert torch.equal(kernel(x), nn.MaxPool2d(2)(x))


class _Pooled(nn.Module):
    """Poolings that one convolution's kernel may do, and such that it must not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (convolution(32, 32) for _ in range(4))
        self.pool, self.other = nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.pool(torch.relu(self.a(x))))  # the first of them
        seen = torch.relu(self.b(x))
        x = self.pool(seen) + seen.mean()  # read by the mean, too
        x = self.pool(self.c(x)) + self.c(x).mean()  # called twice
        return self.other(torch.relu(self.d(x)))  # another window


def test_which_poolings_a_convolution_does() -> None:
    net, x = _Pooled(), maps(2, 32, 48, 44)
    body, wanted = fx.symbolic_trace(net), copy.deepcopy(net).double()(x.double())
    fused.fuse(body)
    assert replace_convolutions(body, lambda conv: native(conv, torch.float32)) == 4
    assert replace_pooling(body, torch.float32) == 5
    taken = [module for module in body.modules() if isinstance(module, WinogradKernel)]
    assert sum(kernel.pool for kernel in taken) == 1
    assert sum(isinstance(module, PoolingKernel) for module in body.modules()) == 4
    close(body(x), wanted, torch.float32)


@DTYPES
@pytest.mark.parametrize(
    ("backbone", "layers", "convolutions_", "pools"),
    [
        ("vgg11", ("features.1", "features.2", "features.7", "features.9"), 4, 2),
        ("resnet18", ("maxpool", "layer1", "layer4"), 17, 1),
        ("squeezenet1_1", ("features.2", "features.6.cat", "features.12.cat"), 23, 3),
    ],
)
def test_a_network_keeps_its_features(
    backbone: str, layers: tuple[str, ...], convolutions_: int, pools: int, dtype: torch.dtype
) -> None:
    """Nodes asked for between a convolution, its ReLU and a pooling are what they were."""
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    of, x = kit.work(backbone, precision, layers=layers, pool="flatten"), kit.images(3)
    body = of.exact()
    fused.fuse(body)
    assert replace_convolutions(body, lambda conv: native(conv, dtype)) == convolutions_
    assert replace_pooling(body, dtype) == pools
    graph.cast(body, dtype)
    with torch.inference_mode():
        rows = body.to(memory_format=torch.channels_last)(x.to(dtype))
        eager = None if dtype == torch.float32 else of.cast(x.to(dtype))
    assert disagreement(rows, kit.exact(of, x), precision, eager) == ""


# -- compiling --------------------------------------------------------------------------------------------


@pytest.fixture
def afresh() -> Iterator[None]:
    """Compile anew, and forget what is compiled."""
    library._loaded.clear()
    yield
    library._loaded.clear()


@X86
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3"])
def test_processors_with_narrower_vectors(
    processor: str, afresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = int(kernels(torch.float32).panel())
    library._loaded.clear()
    flags = [f"-march={processor}" if flag == "-march=native" else flag for flag in library.FLAGS]
    monkeypatch.setattr(library, "FLAGS", tuple(flags))
    assert int(kernels(torch.float32).panel()) <= widest
    assert int(kernels(torch.float32).panel()) == {"x86-64": 8, "x86-64-v3": 16}[processor]
    for channels in (48, 3):
        conv, x = convolution(channels, 48), maps(3, channels, 13, 10)
        kernel = native(FusedConvolution(conv), torch.float32)
        assert kernel is not None
        close(kernel(x), exact(conv, x).relu(), torch.float32)
    x = maps(1, 32, 9, 9)
    assert torch.equal(PoolingKernel(nn.MaxPool2d(3, 2), torch.float32)(x), functional.max_pool2d(x, 3, 2))
    with pytest.raises(BackboneError, match="no instructions for bfloat16"):
        kernels(torch.bfloat16)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_runtime_says_in_one_sentence_what_the_compiler_says(
    afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", compiler_that(tmp_path, "echo 'x.c:1:2: error: odd' >&2; exit 1"))
    with pytest.raises(
        BackboneError, match=r"native cannot run this backbone: .*cc does not compile .*: odd\. Use "
    ):
        make("native", kit.work("squeezenet1_1"))


def test_a_folder_that_cannot_be_written(
    afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        kernels(torch.float32)


def test_a_compiler_of_another_language_is_told_what_it_reads(
    afresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that arithmetic is exact, whatever $CC asks for: -ffast-math would change the whole process."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    monkeypatch.setenv("CC", "g++ -ffast-math")
    assert kernels(torch.float32).panel() > 0
    assert float(torch.tensor(1e-40) * 1.0) > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_who_is_forked_while_another_thread_compiles_does_not_wait() -> None:
    code = (
        "import os, signal, sys\n"
        "from featcache.backbones.kernels import library\n"
        "library._locks[0].acquire()\n"
        "if os.fork() == 0:\n"
        "    signal.alarm(20)\n"
        "    library.library(('resize.c',))\n"
        "    os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


def test_a_library_is_compiled_once(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernels(torch.float32)
    monkeypatch.setattr(library, "compiler", lambda: pytest.fail("again"))
    assert kernels(torch.float32) is first


def compiler_that(folder: Path, does: str) -> str:
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    return str(script)


BROKEN: list[tuple[Callable[[Path], str], str]] = [
    (lambda folder: "no-such-compiler", "no C compiler"),
    (lambda folder: "'gcc", "no C compiler"),
    (
        lambda folder: compiler_that(folder, "echo 'winograd.c:1:2: error: odd' >&2; exit 1"),
        r"compile .*: odd\.$",
    ),
    (lambda folder: compiler_that(folder, "exit 3"), r"does not compile winograd\.c, .*: it ends with 3\.$"),
    (lambda folder: compiler_that(folder, "printf 'error: \\377' >&2; exit 1"), "compile .*: \ufffd"),
    (lambda folder: compiler_that(folder, 'for last; do :; done; echo no > "$last"'), "cannot be loaded"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize(("made", "why"), BROKEN)
def test_compilers_that_are_missing_or_fail(
    made: Callable[[Path], str], why: str, afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", made(tmp_path))
    with pytest.raises(BackboneError, match=why):
        kernels(torch.float32)
    absent = RUNTIMES["native"].absent("cpu", "fp32")
    assert absent == "" if library.compiler() else "no C compiler" in absent


def test_a_compiler_may_be_named_with_flags(
    afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (command,) = library.compiler()
    monkeypatch.setenv("CC", f"{command} -DNOTHING=1")
    assert library.compiler() == [command, "-DNOTHING=1"]
    assert kernels(torch.float32).panel() > 0


def test_where_the_kernels_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = RUNTIMES["native"]
    assert "not for cuda:0" in kind.absent("cuda:0", "fp32")
    assert "not in fp16" in kind.absent("cpu", "fp16")
    monkeypatch.setattr("featcache.backbones.runtimes.native.cpu_capabilities", dict)
    assert "no AVX-512 instructions for bfloat16" in kind.absent("cpu", "bf16")
    monkeypatch.setattr(library.sys, "platform", "win32")
    assert "no C compiler" in kind.absent("cpu", "fp32")


def test_the_structures_are_those_of_the_sources() -> None:
    """Field by field, in order: a field too many here would shift all that follow."""
    import re

    folder = Path(library.__file__).parent
    for source, name, structure in (
        ("winograd.c", "call", winograd._Call),
        ("direct.c", "direct", direct._Direct),
        ("resize.c", "pass", resizing._Pass),
        ("pointwise.c", "pointwise", pointwise._Pointwise),
    ):
        body = re.search(rf"struct {name} \{{(.*?)\n\}};", (folder / source).read_text(), re.DOTALL)
        assert body is not None
        plain = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
        fields = [word.strip(" *") for line in plain.split(";") for word in line.split(",") if word.strip()]
        assert [field.split()[-1].strip("*") for field in fields] == [
            field[0] for field in structure._fields_
        ]
    assert pooling.STEP == 16 and winograd.GAP == 80
    assert "enum { GAP = 80 };" in (folder / "winograd.c").read_text()
