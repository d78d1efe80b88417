"""torch as it is, operation by operation: always there, and what the others are checked against."""

from __future__ import annotations

from torch import Tensor

from featcache.backbones.runtimes.base import Body, Work


class EagerBody(Body):
    """The network as a module, channels_last, batch norms folded."""

    name = "torch"

    @staticmethod
    def absent(device: str, precision: str) -> str:
        """Never absent."""
        return ""

    def __init__(self, work: Work) -> None:
        self.dtype, self.module = work.dtype, work.cast

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See `Body`."""
        rows: dict[str, Tensor] = self.module(images)
        return rows
