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
    `rounded` is that of the weight: who changes the weight must change it too. In "fp32" nothing is rounded
    to less, and it is None.
    """

    def __init__(self, weight: Tensor, rounded: Tensor | None = None) -> None:
        self.dtype = torch.float32 if rounded is None else rounded.dtype
        self._half = rounded
        if rounded is not None and not weight.is_cuda:  # a CPU would map new memory at every step
            self._half_gradient = torch.empty_like(rounded)

    def outputs(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return rows (n, D) times the weight, plus the bias (H,): float32 (n, H)."""
        if self._half is None:
            return outputs(rows, weight, bias)
        if rows.is_cuda:
            return _halves(rows, self._half.t()).add_(bias)
        return self.turned_outputs(rows, weight, bias).t()  # faster this way round on a CPU

    def turned_outputs(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the outputs as (H, n)."""
        if self._half is None:
            return turned_outputs(rows, weight, bias)
        return _halves(self._half, rows.t()).add_(bias[:, None])

    def gradient(self, delta: Tensor, rows: Tensor) -> Tensor:
        """Return the weight's gradient (H, D) of delta (n, H) at the outputs of rows (n, D).

        It is float32, or as a CPU's product comes out. The next gradient may overwrite it.
        """
        return self.turned_gradient(delta.t(), rows)

    def turned_gradient(self, delta: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the gradient of delta (H, n) at the outputs; in `out` (H, D) where that saves a copy."""
        if self._half is not None and not rows.is_cuda:
            return torch.mm(delta.to(rows.dtype), rows, out=self._half_gradient)
        if self._half is not None:
            return _halves(delta.to(rows.dtype), rows)
        if _large_on_cpu(rows, len(delta)):
            return _linear(delta.contiguous(), rows.t(), None)
        return torch.mm(delta, rows) if out is None else torch.mm(delta, rows, out=out)


def rounded(weight: Tensor, precision: str) -> Tensor | None:
    """Return a copy of a weight as products in `precision` take it; None where that is the weight."""
    return weight.to(torch.bfloat16) if precision == "bf16" else None


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
