"""Pooling: how a node's output, of any rank, becomes one float32 row per image.

A map (B, C, H, W) is pooled over its H x W positions; channels-last maps (B, H, W, C), as Swin has them, are
turned first, so that a flattened map is always in the order channel, row, column. Tokens (B, T, C), as in a
ViT, are pooled over T, the class token included; the class token alone is a node of its own (the default).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from featcache.errors import BackboneError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

SIMPLE = ("flatten", "avg", "max", "gem")
GEM_POWER = 3.0
GEM_FLOOR = 1e-6
_GRID = re.compile(r"avg:([1-9][0-9]{0,2})")


def check_pool(pool: str) -> str:
    """Return the name of a pooling if it is one: "flatten", "avg", "max", "gem" or "avg:S".

    Raises:
        OptionError: it is none.
    """
    if pool in SIMPLE or _GRID.fullmatch(pool):
        return pool
    raise OptionError(
        f"Unknown pool {pool!r}.",
        f"Known: {', '.join(SIMPLE)} and avg:S (averaged down to a map of S x S, for example avg:7).",
    )


def default_pool(rank: int) -> str:
    """Return the pooling of a node when none is asked for: vectors are kept, maps and tokens are averaged."""
    return "flatten" if rank == 2 else "avg"


def pool_rows(x: Tensor, pool: str, channels_last: bool = False, own: bool = False) -> Tensor:
    """Pool a node's output (B, …) to float32 rows (B, D), computed in float32 whatever dtype comes in.

    `own` says that later layers may write into `x`, so that the rows must not share its memory.
    "gem" is the generalised mean of Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No
    Human Annotation", TPAMI 2018: power 3, values below 1e-6 raised to it.

    Raises:
        BackboneError: the pooling needs a map and `x` is none.
    """
    x = x.float()
    if x.ndim == 4 and channels_last:
        x = x.permute(0, 3, 1, 2)
    if pool == "flatten" or x.ndim == 2:
        rows = x.flatten(1)
        return rows.clone() if own else rows
    if x.ndim not in (3, 4):
        raise BackboneError(f"Pool {pool!r} needs a map or tokens, got rank {x.ndim}.", "Use --pool flatten.")
    return _pool_grid(x, pool) if pool not in SIMPLE else _pool_all(x, pool)


def _pool_all(x: Tensor, pool: str) -> Tensor:
    positions = (1,) if x.ndim == 3 else (2, 3)
    if pool == "avg":
        return x.mean(positions)
    if pool == "max":
        return x.amax(positions)
    return x.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean(positions).pow(1.0 / GEM_POWER)


def _pool_grid(x: Tensor, pool: str) -> Tensor:
    from torch.nn.functional import adaptive_avg_pool2d

    match = _GRID.fullmatch(pool)
    if match is None or x.ndim != 4:
        raise BackboneError(
            f"Pool {pool!r} needs a map of rows and columns, got rank {x.ndim}.", "Use --pool avg or flatten."
        )
    return adaptive_avg_pool2d(x, int(match[1])).flatten(1)
