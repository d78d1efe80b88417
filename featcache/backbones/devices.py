"""Where a backbone runs: the device asked for, and what the devices here can do."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featcache.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


def resolve_device(device: str = "auto") -> str:
    """Return "cpu" or "cuda:N" for "auto", "cpu", "cuda" or "cuda:N"; "auto" takes the first GPU there is.

    Raises:
        OptionError: the device is unknown or not on this machine.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return device
    match = _CUDA.fullmatch(device)
    if match is None:
        raise OptionError(f"Unknown device {device!r}.", "Known: auto, cpu, cuda, cuda:N.")
    index = int(match[1] or 0)
    if index >= count:
        gpus = ", ".join(f"cuda:{i}" for i in range(count))
        there = f"only {gpus}" if count else "no GPU that torch can use"
        raise OptionError(
            f"There is no {device} here: this machine has {there}.",
            "Use --device auto or cpu; `featcache doctor` tells what torch sees.",
        )
    return f"cuda:{index}"


def device_facts() -> dict[str, Any]:
    """Return what `featcache doctor` tells: torch's version and threads, and every device.

    Each device has `name` ("cpu", "cuda:0"), `model`, `capability` (a CPU's vector instructions, a GPU's
    compute capability) and `bf16` (whether it has bfloat16 in hardware); a GPU has `memory_bytes` besides.
    """
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "default": resolve_device("auto"),
        "devices": [_cpu(), *(_gpu(index) for index in gpus)],
    }


def _cpu() -> dict[str, Any]:
    import torch

    has = cpu_capabilities()
    return {
        "name": "cpu",
        "model": has.get("cpu_name") or has.get("architecture", "unknown"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": any(bool(has.get(flag)) for flag in ("avx512_bf16", "amx_bf16", "bf16")),
    }


def cpu_capabilities() -> dict[str, Any]:
    """Return what torch knows of the processor, such as `avx512_bf16`; nothing with its older versions."""
    import torch

    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def _gpu(index: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    return {
        "name": f"cuda:{index}",
        "model": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "bf16": (facts.major, facts.minor) >= (8, 0),
        "memory_bytes": facts.total_memory,
    }


def check_precision(precision: str, device: str) -> None:
    """Refuse a precision that a resolved device does not have.

    Raises:
        OptionError: tf32 on a CPU, or tf32 or bf16 on a GPU older than compute capability 8.0.
    """
    if precision not in precisions(device):
        name = {"tf32": "TensorFloat-32", "bf16": "bfloat16"}[precision]
        raise OptionError(
            f"{device} has no {name}.", "Use --precision fp32, or a GPU of compute capability 8.0."
        )


def precisions(device: str) -> tuple[str, ...]:
    """Return the precisions that a resolved device has; a CPU without bfloat16 computes it in steps."""
    import torch

    if device == "cpu":
        return ("fp32", "bf16", "fp16")
    new = torch.cuda.get_device_capability(device) >= (8, 0)
    return ("fp32", "tf32", "bf16", "fp16") if new else ("fp32", "fp16")


class _Float32:
    """How float32 is computed belongs to the process: threads inside at once share the setting."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, [""]

    def enter(self, backends: Sequence[Any], modes: Sequence[str]) -> None:
        """Set the modes; the first to come in keeps what was set before."""
        with self._lock:
            if self._inside == 0:
                self._before = [backend.fp32_precision for backend in backends]
            self._inside += 1
            self._set(backends, modes)

    def leave(self, backends: Sequence[Any]) -> None:
        """The last to go out puts back what was set before."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(backends, self._before)

    @staticmethod
    def _set(backends: Sequence[Any], modes: Sequence[str]) -> None:
        for backend, mode in zip(backends, modes, strict=True):
            backend.fp32_precision = mode


_float32 = _Float32()


@contextlib.contextmanager
def float32_as(mode: str) -> Iterator[None]:
    """Compute float32 as "ieee" float32 or, on a GPU, with the products of "tf32", whatever was set.

    Safe in several threads at once that ask for the same.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, cudnn.conv, mkldnn.matmul, mkldnn.conv)
    _float32.enter(backends, (mode, mode, "ieee", "ieee"))
    try:
        yield
    finally:
        _float32.leave(backends)


def exact_float32() -> contextlib.AbstractContextManager[None]:
    """Compute float32 in float32: without TensorFloat-32 or bfloat16 inside, whatever the process has set."""
    return float32_as("ieee")


def pin(memory: NDArray[np.uint8], device: str) -> Callable[[], None]:
    """Lock memory in place, so that copies to a GPU need no help; return what undoes it.

    Where the driver refuses, the memory stays as it is: copies are right, and slower.
    """
    import torch

    if not device.startswith("cuda"):
        return lambda: None
    address, runtime = memory.ctypes.data, torch.cuda.cudart()
    if int(runtime.cudaHostRegister(address, memory.nbytes, 0)) != 0:
        return lambda: None
    return lambda: _unpin(runtime, address)


def _unpin(runtime: Any, address: int) -> None:
    runtime.cudaHostUnregister(address)
