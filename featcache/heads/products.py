"""Products of a table's rows with the weights of first layers: the bulk of every step, in one precision."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE = 1 << 24  # multiplications above which oneDNN's products outdo MKL's on a CPU
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Products:
    """Products of rows (n, D), which come as `dtype`, with a weight (H, D) and with gradients (n, H).

    In "bf16" rows and weights are rounded to bfloat16, and so is what a CPU's product comes out as; sums
    are float32 everywhere, and the weights that learn stay float32: what autocast makes of a linear layer.
    In "fp32" nothing is rounded to less.
    """

    def __init__(self, weight: Tensor, precision: str) -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._half = weight.to(self.dtype) if precision == "bf16" else None
        if self._half is not None and not weight.is_cuda:  # a CPU would map new memory at every step
            self._half_gradient, self._gradient = torch.empty_like(self._half), torch.empty_like(weight)

    def learned(self, weight: Tensor) -> None:
        """Take over the weight (H, D) after it has changed."""
        if self._half is not None:
            self._half.copy_(weight)

    def outputs(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return rows (n, D) times the weight, as it was `learned`, plus the bias (H,): float32 (n, H)."""
        if self._half is None:
            return outputs(rows, weight, bias)
        return _halves(rows, self._half.t()).add_(bias)

    def turned_outputs(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the outputs as (H, n)."""
        if self._half is None:
            return turned_outputs(rows, weight, bias)
        return _halves(self._half, rows.t()).add_(bias[:, None])

    def gradient(self, delta: Tensor, rows: Tensor) -> Tensor:
        """Return the weight's gradient, float32 (H, D), of delta (n, H) at the outputs of rows (n, D).

        The next gradient may overwrite it.
        """
        return self.turned_gradient(delta.t(), rows)

    def turned_gradient(self, delta: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the gradient of delta (H, n) at the outputs; in `out` (H, D) where that saves a copy."""
        if self._half is not None and not rows.is_cuda:
            torch.mm(delta.to(rows.dtype), rows, out=self._half_gradient)
            return self._gradient.copy_(self._half_gradient)
        if self._half is not None:
            return _halves(delta.to(rows.dtype), rows)
        if _large_on_cpu(rows, len(delta)):
            return _linear(delta.contiguous(), rows.t(), None)
        return torch.mm(delta, rows) if out is None else torch.mm(delta, rows, out=out)


def outputs(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return float32 rows (n, D) times a weight (H, D) plus a bias (H,), as (n, H)."""
    if _large_on_cpu(rows, len(weight)):
        return _linear(rows, weight, bias)
    return torch.addmm(bias, rows, weight.t())


def turned_outputs(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the same as (H, n)."""
    if _large_on_cpu(rows, len(weight)):
        return _linear(weight, rows, None).add_(bias[:, None])
    return torch.addmm(bias[:, None], weight, rows.t())


def _halves(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two bfloat16 matrices as float32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _large_on_cpu(rows: Tensor, out: int) -> bool:
    return _ONEDNN and not rows.is_cuda and rows.numel() * out >= _LARGE


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows @ weight.T + bias by oneDNN, which torch itself takes only in compiled programs."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product
