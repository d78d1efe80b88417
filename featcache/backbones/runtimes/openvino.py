"""OpenVINO on a CPU (extra `featcache[openvino]`): fused float32 and bfloat16 kernels, ready in seconds.

The float32 network is exported once, for one number of images, and converted; OpenVINO itself computes in
bfloat16 where that is asked for. Each stream is a request of its own, so that several threads may call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, fx, nn

from featcache.backbones.runtimes.base import Body, Work, in_chunks

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBody(Body):
    """The network compiled by OpenVINO."""

    name = "openvino"

    @staticmethod
    def absent(device: str, precision: str) -> str:
        """It is an extra; of its devices only the CPU is used, in float32, or bfloat16 in hardware."""
        if importlib.util.find_spec("openvino") is None:
            return "it is not installed (pip install 'featcache[openvino]')"
        if device != "cpu":
            return f"it computes on the CPU, not on {device}"
        if precision not in HINTS:
            return f"it does not compute in {precision}"
        if precision == "bf16" and not _has_bf16():
            return "this CPU has no bfloat16"
        return ""

    def __init__(self, work: Work) -> None:
        self.dtype, self.chunk = torch.float32, work.chunk
        exact = work.exact()
        self.names = _outputs(exact)
        model = _converted(exact, work)
        config = {
            "NUM_STREAMS": work.streams,
            "INFERENCE_NUM_THREADS": work.streams * work.threads_each,
            "INFERENCE_PRECISION_HINT": HINTS[work.precision],
            # Pinned threads could not make way for the threads that decode images.
            "ENABLE_CPU_PINNING": False,
        }
        self.compiled = _module().Core().compile_model(model, "CPU", config)
        self.requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(work.streams):
            self.requests.put(self.compiled.create_infer_request())

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See `Body`."""
        return in_chunks(images, self.chunk, self._run)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        # OpenVINO reads torch's own memory, which must live until it has: hence the name.
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        request = self.requests.get()
        try:
            request.set_input_tensor(_module().Tensor(pixels, shared_memory=True))
            request.infer()
            found = [request.get_output_tensor(i).data.copy() for i in range(len(self.names))]
        finally:
            self.requests.put(request)
        return {name: torch.from_numpy(rows) for name, rows in zip(self.names, found, strict=True)}


class _Rows(nn.Module):
    """The network with its rows as a tuple, which is what can be exported in a fixed order."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of every node."""
        return tuple(self.body(images).values())


def _outputs(body: fx.GraphModule) -> tuple[str, ...]:
    """Return the names of the nodes that are read, in the order of the rows."""
    output = next(node for node in body.graph.nodes if node.op == "output")
    named: Any = output.args[0]
    return tuple(named)


def _converted(body: fx.GraphModule, work: Work) -> Any:
    """Return the network as OpenVINO's model of images (chunk, S, S, 3), as they lie in memory."""
    openvino = _module()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.preprocess import PrePostProcessor

    with _quiet(), torch.inference_mode(False), torch.no_grad():
        exported = torch.export.export(_Rows(body), (work.images(),))
        decoder = TorchFXPythonDecoder.from_exported_program(exported, dynamic_shapes=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    model.reshape([work.chunk, 3, work.crop, work.crop])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


def _module() -> Any:
    """Import OpenVINO without its messages: left alone, it reports every import to its makers."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    reporter = "openvino_telemetry"
    before = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]  # Python's way to make an import fail
    try:
        import openvino
    finally:
        del sys.modules[reporter]
        if before is not None:
            sys.modules[reporter] = before
    return openvino


def _has_bf16() -> bool:
    return "BF16" in _module().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what exporting and converting say to programmers of exporters and converters."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    root, silence = logging.getLogger(), logging.NullHandler()
    root.addHandler(silence)  # without any, the first message would set up logging for the whole process
    root.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(silence)
