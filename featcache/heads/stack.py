"""Networks of one shape side by side: their first layers are one product, the later ones batched products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from featcache.heads.network import Network

_SCORED = 1 << 22  # hidden values that are computed on together: 16 MiB of float32


class Stack:
    """K copies of a network, which learn each for itself from the same batches and dropout masks.

    `parameters` and `gradients` are those of `Network` with the K heads as their first dimension: weights
    (K, out, in) and biases (K, out) of each layer in turn.
    """

    def __init__(self, network: Network, count: int) -> None:
        self.sizes, self.dropout = network.sizes, network.dropout
        self._mask = network.mask
        self.parameters = [value.repeat(count, *[1] * value.dim()) for value in network.parameters]
        self.gradients = [torch.empty_like(value) for value in self.parameters]

    def __len__(self) -> int:
        return len(self.parameters[0])

    def keep(self, heads: Sequence[int]) -> None:
        """Go on with these heads alone, numbered anew in the order given."""
        index = torch.tensor(heads, dtype=torch.int64, device=self.parameters[0].device)
        self.parameters = [value.index_select(0, index) for value in self.parameters]
        self.gradients = [value[: len(heads)] for value in self.gradients]

    def scores(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield scores (K, n, C) of consecutive parts of rows (N, D), without dropout, and which rows."""
        step = max(1, _SCORED // (len(self) * max(self.sizes[1:])))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield part, self._forward(rows[part], None)[-1]

    def gradient_step(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Fill `gradients` with those of each head's mean cross-entropy; return its sums over rows (K,)."""
        outputs = self._forward(rows, self.dropout)
        log_p = torch.log_softmax(outputs[-1], dim=2)
        true = classes[None, :, None].expand(len(self), -1, 1)
        loss = log_p.gather(2, true).sum(dim=(1, 2)).neg_()
        delta = log_p.exp_()
        delta.scatter_add_(2, true, delta.new_full((1, 1, 1), -1.0).expand_as(true)).div_(len(rows))
        for i in range(len(self.sizes) - 2, 0, -1):
            torch.bmm(delta.transpose(1, 2), outputs[i], out=self.gradients[2 * i])
            torch.sum(delta, 1, out=self.gradients[2 * i + 1])
            kept = 1 - self.dropout[i - 1]  # see Network.gradient_step
            delta = torch.bmm(delta, self.parameters[2 * i]).mul_(outputs[i] > 0).div_(kept)
        side_by_side = delta.transpose(0, 1).reshape(len(rows), -1)
        torch.mm(side_by_side.t(), rows, out=self.gradients[0].view(-1, self.sizes[0]))
        torch.sum(side_by_side, 0, out=self.gradients[1].view(-1))
        return loss

    def _forward(self, rows: Tensor, dropout: Sequence[float] | None) -> list[Tensor]:
        """Return the rows, then each layer's outputs (K, n, out)."""
        first, bias = self.parameters[:2]
        flat = torch.addmm(bias.view(-1), rows, first.view(-1, self.sizes[0]).t())
        outputs = [rows, flat.view(len(rows), len(self), -1).transpose(0, 1)]
        for i in range(1, len(self.sizes) - 1):
            outputs[-1].relu_()
            if dropout and dropout[i - 1]:
                outputs[-1].mul_(self._mask(outputs[-1][0], 1 - dropout[i - 1]))
            weight, bias = self.parameters[2 * i : 2 * i + 2]
            outputs.append(torch.baddbmm(bias[:, None], outputs[-1], weight.transpose(1, 2)))
        return outputs
