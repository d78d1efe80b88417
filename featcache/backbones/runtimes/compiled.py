"""torch.compile: generated code, for a minute of compiling beforehand.

Compiled for one number of images, and on a CPU for one number of threads, which the generated code holds.
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

GPU_CHUNK = 128  # images of a call on a GPU


class CompiledBody(Body):
    """The network through torch.compile (Ansel et al., "PyTorch 2", ASPLOS 2024)."""

    name = "compile"

    @staticmethod
    def absent(work: Work) -> str:
        """Compiling for a CPU needs a C++ compiler."""
        if work.device == "cpu" and _compiler() is None:
            return "there is no C++ compiler"
        return ""

    def __init__(self, work: Work) -> None:
        self.dtype = work.dtype
        self.threads = work.threads_each if work.device == "cpu" else None
        self.chunk = work.chunk if work.device == "cpu" else GPU_CHUNK
        self.module = torch.compile(copy.deepcopy(work.cast), dynamic=False)
        self(work.images(self.chunk).to(work.device, self.dtype))

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
def _threads(count: int | None) -> Iterator[None]:
    """Call with the number of threads that was compiled for: with any other, torch would compile again."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    try:
        torch.set_num_threads(int(count or 1))
        yield
    finally:
        torch.set_num_threads(before)
