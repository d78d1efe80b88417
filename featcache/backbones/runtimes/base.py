"""The contract of a runtime: the cut network made ready once, then called from several threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

MOST_STREAMS = 8  # batches under way at once: each keeps its activations in memory
MOST_IMAGES = 16  # of a call: more keep no core busier
IMAGES_UNDER_WAY = 32  # of all streams together: VGG16's largest maps of one image are 25 MB


@dataclass(frozen=True)
class Work:
    """What a runtime is made from.

    Attributes:
        exact: returns the cut network in float32 on the CPU, batch norms folded, as a module of its own.
        cast: the same in the precision's dtype and on the device, channels_last.
        precision: "fp32", "tf32", "bf16" or "fp16".
        device: "cpu" or "cuda:N".
        crop: images are (B, 3, crop, crop).
        threads: how many threads of the CPU the backbone may keep busy.
    """

    exact: Callable[[], fx.GraphModule]
    cast: fx.GraphModule
    precision: str
    device: str
    crop: int
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the precision."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)

    @property
    def streams(self) -> int:
        """How many batches go through the network at once.

        One thread for each batch instead of several for one: nobody waits at the end of every layer, which
        on two cores is worth a tenth alone and more where decoding threads take their share. A GPU takes one.
        """
        return max(1, min(self.threads, MOST_STREAMS)) if self.device == "cpu" else 1

    @property
    def threads_each(self) -> int:
        """Threads of one stream."""
        return max(1, self.threads // self.streams)

    def threads_of(self, body: Body) -> int:
        """Return the threads of one stream that runs a body."""
        return min(self.threads_each, body.most_threads or self.threads_each)

    @property
    def chunk(self) -> int:
        """Images of a call to a runtime whose calls are all of one size."""
        return min(MOST_IMAGES, max(2, IMAGES_UNDER_WAY // self.streams))

    def images(self) -> Tensor:
        """Return a chunk of black images in the network's own layout, for making and warming up."""
        shape = (self.chunk, 3, self.crop, self.crop)
        return torch.zeros(shape).contiguous(memory_format=torch.channels_last)


class Body(ABC):
    """The cut network in one runtime.

    A call takes normalised images, (B, 3, S, S) of `dtype`, channels_last, on the device, and returns node
    name → float32 (B, D) in memory of its own. As many as `streams` threads may call at once; any B, and a
    row hangs neither on the others of its batch nor, beyond rounding, on their number.
    """

    name: ClassVar[str]
    dtype: torch.dtype
    most_threads: ClassVar[int | None] = None
    """Threads of a call, where its bits hang on how many they are."""
    stands_in_for: ClassVar[str] = ""
    """The runtime that does the same and faster, where that can be had."""

    @staticmethod
    @abstractmethod
    def absent(device: str, precision: str) -> str:
        """Return why this runtime cannot compute so on this machine; empty where it can."""

    @staticmethod
    def helps(work: Work) -> bool:
        """Return whether this network has anything that this runtime may do faster."""
        return True

    @abstractmethod
    def __init__(self, work: Work) -> None:
        """Make the network ready; whatever takes long happens here."""

    @abstractmethod
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return node name → float32 (B, D)."""


def in_chunks(images: Tensor, size: int, run: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Run images (B, …) in calls of exactly `size`, the last filled up with black; return all rows.

    What is compiled for one size then never sees another, and a row is computed alike in every batch.
    """
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(images), size):
        part = images[first : first + size]
        missing = size - len(part)
        if missing:
            black = part.new_zeros((missing, *part.shape[1:]))
            part = torch.cat([part, black]).contiguous(memory_format=torch.channels_last)
        rows = run(part)
        parts.append({name: values[: size - missing] for name, values in rows.items()})
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
