"""torch.compile: generated code, for a minute of compiling beforehand.

Compiled for one number of images and one number of threads, which the generated code holds.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator

import torch
from torch import Tensor

from featcache.backbones.runtimes.base import Body, Work, in_chunks


class CompiledBody(Body):
    """The network through torch.compile (Ansel et al., "PyTorch 2", ASPLOS 2024)."""

    name = "compile"

    @staticmethod
    def absent(device: str, precision: str) -> str:
        """It is for the CPU (on a GPU kernels are fused and replayed without it) and needs a compiler."""
        if device != "cpu":
            return f"it is for the CPU, not for {device}"
        return "there is no C++ compiler" if _compiler() is None else ""

    def __init__(self, work: Work) -> None:
        self.dtype, self.threads, self.chunk = work.dtype, work.threads_each, work.chunk
        self.module = torch.compile(copy.deepcopy(work.cast), dynamic=False)
        self(work.images().to(self.dtype))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See `Body`."""
        with torch.inference_mode(), _threads(self.threads):
            return in_chunks(images, self.chunk, self._run)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        # Another kind of tensor, made outside of inference mode, would have it compile again.
        rows: dict[str, Tensor] = self.module(images if images.is_inference() else images.clone())
        return rows


def _compiler() -> str | None:
    """Return the C++ compiler that torch would take."""
    named = os.environ.get("CXX")
    names = [named] if named else ["g++", "clang++", "cl"]
    return next((found for name in names if (found := shutil.which(name))), None)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Call with the number of threads that was compiled for: with any other, torch would compile again."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
