"""The backbone at work: evaluation mode, no gradients, inference mode; all of it in this one place."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from featcache.backbones import fused, graph
from featcache.backbones.devices import check_precision, device_facts, float32_as, resolve_device
from featcache.backbones.heap import keep_freed_memory
from featcache.backbones.preprocess import Normalise, writable
from featcache.backbones.runtimes.base import Body, Work
from featcache.backbones.runtimes.streams import in_streams
from featcache.backbones.weights import FEATURES_ONLY
from featcache.errors import BackboneError, WeightsError, unknown
from featcache.recipe import Node, Preprocess

__all__ = ["Extractor", "device_facts", "resolve_device"]

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Extractor:
    """Computes the features of batches of fitted images.

    The network is copied and cut: nothing beyond the last node is computed. Batch norms that follow a
    convolution are folded into it, which changes a feature by less than 1e-5 of its length. fp32 is
    computed in float32: TensorFloat-32 is off. tf32 is float32 with the products of TensorFloat-32, which
    only a GPU has. In bf16 and fp16 the whole network but its batch norms is cast; pooling and output are
    float32. On a GPU bias, addition and ReLU are computed with the convolution before them.

    Args:
        network: with its weights; it is not changed, except that it is left in evaluation mode.
        nodes: where to read, with full names (`catalogue.resolve_nodes`).
        preprocess: of the images that will come; `crop`, `mean` and `std` are used here.
        precision: "fp32", "tf32", "bf16" or "fp16".
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        BackboneError: a node is unknown, or the network cannot take images of the crop's size.
        WeightsError: weights that the nodes need are not finite.
        OptionError: the precision or the device is unknown or not there.
    """

    def __init__(
        self,
        network: nn.Module,
        nodes: tuple[Node, ...],
        preprocess: Preprocess,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        if not nodes:
            raise BackboneError("No layer to read.", "Name one, or take the default of `resolve_nodes`.")
        self.precision, self.device = precision, resolve_device(device)
        check_precision(precision, self.device)
        if self.device == "cpu":
            keep_freed_memory()
        self.dtype, self.crop = PRECISIONS[precision], preprocess.crop
        traced = graph.trace(network)
        for node in nodes:
            full = graph.find(traced, node.name, type(network).__name__)
            if full != node.name:
                raise BackboneError(f"{node.name!r} is a block of layers.", f"Name its last one: {full!r}.")
        network_cut = graph.cut(traced, nodes)
        self._body = _prepared(network_cut, self.dtype, self.device)
        self._run: Callable[[Tensor], dict[str, Tensor]] = self._body
        self._normalise = Normalise(preprocess.mean, preprocess.std, self.device, self.dtype)
        self.columns = self._columns()
        self.runtime = "torch"
        exact = partial(_prepared, network_cut, torch.float32, "cpu")
        self.work = Work(exact, self._body, precision, self.device, self.crop, torch.get_num_threads())
        self.threads_each = self.work.threads_each

    def use(self, body: Body) -> None:
        """Compute with another runtime from now on (`featcache.backbones.runtimes`)."""
        self._run, self.runtime, self._normalise.dtype = body, body.name, body.dtype
        self.threads_each = self.work.threads_of(body)

    def __call__(self, batch: NDArray[np.uint8] | Tensor) -> dict[str, NDArray[np.float32]]:
        """Return node name -> float32 (B, D) for uint8 images (B, crop, crop, 3), as arrays of their own.

        A row does not depend on the others of its batch, nor on their number beyond rounding.

        Raises:
            BackboneError: the batch has another shape or dtype.
        """
        expected = (len(batch), self.crop, self.crop, 3)
        if tuple(batch.shape) != expected or batch.dtype not in (np.dtype(np.uint8), torch.uint8):
            raise BackboneError(f"A batch must be uint8 {expected}, got {batch.dtype} {tuple(batch.shape)}.")
        if len(batch) == 0:
            return {name: np.empty((0, width), np.float32) for name, width in self.columns.items()}
        with frozen(self.precision):
            rows = self.rows(torch.from_numpy(writable(batch)) if isinstance(batch, np.ndarray) else batch)
            return {name: values.cpu().numpy() for name, values in rows.items()}

    def rows(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return node name -> float32 (B, D) on the device for uint8 (B, crop, crop, 3), within `frozen`."""
        return self._run(self._normalise(pixels))

    def forward_only_rate(self, batch_size: int, seconds: float = 2.0) -> float:
        """Return images per second of the network alone, on synthetic input that is on the device already.

        With as many streams as an extraction has. Each runs once to warm up, then for at least `seconds` and
        two batches a stream.
        """
        size = (batch_size, self.crop, self.crop, 3)
        pixels = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with frozen(self.precision):
            images = self._normalise(pixels)

        def call(number: int) -> int:
            """Run one batch."""
            with frozen(self.precision):
                self._run(images)
                self._wait()
            return batch_size

        streams, each = self.work.streams, self.threads_each
        sum(in_streams(call, range(streams), streams, each))
        done, begin = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - begin < seconds:
            done += sum(in_streams(call, range(2 * streams), streams, each))
        return done / (time.perf_counter() - begin)

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def _columns(self) -> dict[str, int]:
        try:
            rows = self._probe()
        except (RuntimeError, AssertionError, ValueError) as error:
            raise graph.wrong_size(self.crop, error) from error
        return {name: int(values.shape[1]) for name, values in rows.items()}

    def _probe(self) -> dict[str, Any]:
        with frozen(self.precision):
            pixels = torch.zeros(1, self.crop, self.crop, 3, dtype=torch.uint8)
            return self.rows(pixels)


@contextlib.contextmanager
def frozen(precision: str) -> Iterator[None]:
    """No gradients, and float32 computed as the precision says, whatever the process has set."""
    with torch.inference_mode(), float32_as("tf32" if precision == "tf32" else "ieee"):
        yield


def _prepared(body: fx.GraphModule, dtype: torch.dtype, device: str) -> fx.GraphModule:
    """Return a copy of the cut network: checked, folded, on the device and in its dtype."""
    _check_finite(body)
    body = copy.deepcopy(body).eval().requires_grad_(False)
    graph.open_sequences(body)
    graph.fold_batch_norm(body)
    if device != "cpu":
        fused.fuse(body)
        fused.replace_pooling(body)
    graph.cast(body, dtype)
    if device != "cpu" and dtype != torch.float32:
        fused.widen_first(body)
    return body.to(device).to(memory_format=torch.channels_last)


def _check_finite(body: nn.Module) -> None:
    for name, tensor in (*body.named_parameters(), *body.named_buffers()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(
                f"The weights hold values that are not finite in {name}, which the layers asked for need.",
                FEATURES_ONLY,
            )
