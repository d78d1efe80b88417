"""The products of a pass in several precisions, each with what it is worth taking it for.

BRIEF    bfloat16 with float32 sums over blocks, on CPUs that multiply it in hardware: for most of the way
SPLIT    float16 rows as they are, steps and residuals as a high and a low float16 part, float32 sums,
         on GPUs: 22 bits of each factor on tensor cores
SINGLE   float32
DOUBLE   float64: for small tables, and for the last look at a gradient
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import torch
from torch import Tensor

from featcache.heads.space import Space

_LEAST_SPREAD = 32.0  # means above so many deviations leave bfloat16 too few digits for the deviations
_CHAIN = 4096  # rows that one float32 sum of a GPU's tensor cores, which cut digits off, goes over
_HALF_BIAS = 112  # exponents of float16 begin at -15, of bfloat16 at -127


class Precision(Enum):
    """How exactly the products of a pass are taken."""

    BRIEF = "bfloat16"
    SPLIT = "float16 in two parts"
    SINGLE = "float32"
    DOUBLE = "float64"

    @property
    def fine(self) -> bool:
        """Whether gradients are about as exact as float32."""
        return self in (Precision.SINGLE, Precision.DOUBLE)

    @property
    def noise(self) -> float:
        """By what share of itself a value must change to have changed for certain."""
        return {Precision.DOUBLE: 1e-14, Precision.BRIEF: 1e-4}.get(self, 1e-7)

    @property
    def patience(self) -> int:
        """How many passes without a smaller gradient or value mean that rounding allows no more."""
        return {Precision.DOUBLE: 40, Precision.BRIEF: 3}.get(self, 8)

    @staticmethod
    def of(dtype: torch.dtype, device: torch.device, offset: float) -> list[Precision]:
        """Return those worth taking, coarsest first, for a table whose largest |mean| / scale is `offset`."""
        if dtype == torch.float64:
            return [Precision.DOUBLE]
        if device.type == "cuda":
            split = dtype == torch.float16 and offset < _LEAST_SPREAD
            return [Precision.SPLIT if split else Precision.SINGLE, Precision.DOUBLE]
        brief = offset < _LEAST_SPREAD and has_bfloat16()
        return [Precision.BRIEF] * brief + [Precision.SINGLE, Precision.DOUBLE]


def has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Products(ABC):
    """Products of blocks of rows with weights (K, D), and of residuals with blocks of rows."""

    sums: torch.dtype = torch.float32

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights  # float64 (K, D), as they are in the products

    def start(self) -> Tensor:
        """Return an empty sum (K, D)."""
        return torch.zeros(self.weights.shape, dtype=self.sums, device=self.weights.device)

    @abstractmethod
    def read(self, rows: Tensor, space: Space) -> Tensor:
        """Return rows (n, D) as they go into the products, in `space` where that is not as they are."""

    @abstractmethod
    def scores(self, block: Tensor) -> Tensor:
        """Return the scores (K, n) of a block."""

    @abstractmethod
    def add(self, sums: Tensor, residuals: Tensor, block: Tensor, space: Space) -> None:
        """Add residuals' · block to the sums (K, D)."""

    def finish(self, sums: Tensor) -> Tensor:
        """Return the sums as float64 (K, D)."""
        return sums.double()


class Plain(Products):
    """Both factors in one type, float32 or float64."""

    def __init__(self, weights: Tensor, dtype: torch.dtype) -> None:
        self.sums = dtype
        self._weights = weights.to(dtype)
        super().__init__(self._weights.double())

    def read(self, rows: Tensor, space: Space) -> Tensor:
        """Return the rows in the products' type."""
        return rows if rows.dtype == self.sums else space.copied("block", rows, self.sums)

    def scores(self, block: Tensor) -> Tensor:
        """Return the scores (K, n)."""
        return self._weights @ block.t()

    def add(self, sums: Tensor, residuals: Tensor, block: Tensor, space: Space) -> None:
        """Add residuals' · block."""
        sums.addmm_(residuals, block)


class Brief(Products):
    """bfloat16 products on the CPU.

    A float16 becomes a bfloat16 of 2^-112 its value when its bits are shifted by the three digits that go:
    three passes of integers in place of a conversion that no processor here has. The other factor is 2^112
    times as large.
    """

    def __init__(self, weights: Tensor, rows: torch.dtype) -> None:
        rounded = weights.to(torch.bfloat16)
        super().__init__(rounded.double())
        self._factor = 2.0**_HALF_BIAS if rows == torch.float16 else 1.0
        self._weights = (rounded.float() * self._factor).to(torch.bfloat16)

    def read(self, rows: Tensor, space: Space) -> Tensor:
        """Return the rows rounded to bfloat16, times 2^-112 if they were float16."""
        if self._factor == 1.0:
            return space.of("block", tuple(rows.shape), torch.bfloat16).copy_(rows)
        bits = space.of("block", tuple(rows.shape), torch.int16)
        torch.add(rows.view(torch.int16), 4, out=bits)
        bits.bitwise_right_shift_(3).bitwise_and_(-0x7001)  # the sign and the lower twelve bits
        return bits.view(torch.bfloat16)

    def scores(self, block: Tensor) -> Tensor:
        """Return the scores (K, n), rounded to bfloat16: those of a step, small where it is."""
        return (self._weights @ block.t()).float()

    def add(self, sums: Tensor, residuals: Tensor, block: Tensor, space: Space) -> None:
        """Add residuals' · block, rounded to bfloat16 a block."""
        out = space.of("product", tuple(sums.shape), torch.bfloat16)
        sums += torch.mm((residuals * self._factor).to(torch.bfloat16), block, out=out)


class Split(Products):
    """float16 rows on a GPU, the other factor scaled and in two float16 parts, sums in float32."""

    def __init__(self, weights: Tensor) -> None:
        self._scale = _power_of_two(weights.abs().amax(dim=1, keepdim=True))
        self._parts = _two_parts(weights / self._scale)  # (2 K, D)
        high, low = self._parts.double().chunk(2)
        super().__init__((high + low) * self._scale)

    def read(self, rows: Tensor, space: Space) -> Tensor:
        """Return the rows as they are."""
        return rows

    def scores(self, block: Tensor) -> Tensor:
        """Return the scores (K, n)."""
        high, low = torch.mm(self._parts, block.t(), out_dtype=torch.float32).chunk(2)
        return (high + low) * self._scale.float()

    def add(self, sums: Tensor, residuals: Tensor, block: Tensor, space: Space) -> None:
        """Add residuals' · block."""
        scale = _power_of_two(residuals.abs().amax(dim=1, keepdim=True))
        parts = _two_parts(residuals / scale)
        for start in range(0, len(block), _CHAIN):
            rows = slice(start, start + _CHAIN)
            high, low = torch.mm(parts[:, rows], block[rows], out_dtype=torch.float32).chunk(2)
            sums += (high + low) * scale


def products_for(precision: Precision, weights: Tensor, rows: torch.dtype) -> Products:
    """Return the products of a precision of rows of a type with weights (K, D)."""
    if precision is Precision.BRIEF:
        return Brief(weights, rows)
    if precision is Precision.SPLIT:
        return Split(weights)
    return Plain(weights, torch.float64 if precision is Precision.DOUBLE else torch.float32)


def _power_of_two(largest: Tensor) -> Tensor:
    """Return powers of two that bring the largest absolute values to about one; 1 where all is zero."""
    return torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest))), torch.ones_like(largest))


def _two_parts(values: Tensor) -> Tensor:
    """Return values (K, n) of at most 1 as float16 (2 K, n): rounded, and what rounding left."""
    high = values.to(torch.float16)
    return torch.cat([high, (values - high.to(values.dtype)).to(torch.float16)])
