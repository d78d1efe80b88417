"""Networks of one shape side by side: their first layers are one product, the later ones batched products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from featcache.heads.masks import Masks
from featcache.heads.network import Network, through
from featcache.heads.products import Products, rounded, turned_outputs

_SCORED = 1 << 22  # hidden values that are computed on together: 16 MiB of float32
Batch = tuple[Tensor, Tensor]  # rows (n, D) in the type of the products, classes (n,)


class Stack:
    """K networks, in groups that learn from the same batches and dropout masks, each for itself.

    `networks` are the beginnings of the groups, `counts` how many heads each has: heads of one seed. The
    groups' first layers are a product each, all that follows is done for all heads at once.

    `parameters` and `gradients` are those of `Network` with the K heads as their first dimension: weights
    (K, out, in) and biases (K, out) of each layer in turn, group by group.
    """

    def __init__(self, networks: Sequence[Network], counts: Sequence[int], precision: str = "fp32") -> None:
        first = networks[0]
        self.sizes, self.dropout = first.sizes, first.dropout
        self.masks: list[Masks] = [network.masks for network in networks]
        self.counts = list(counts)
        self.precision = precision
        alike = zip(*(network.parameters for network in networks), strict=True)
        self.parameters = [
            torch.cat([value.repeat(n, *[1] * value.dim()) for value, n in zip(each, counts, strict=True)])
            for each in alike
        ]
        self._begin()

    def __len__(self) -> int:
        return len(self.parameters[0])

    def _begin(self) -> None:
        self.gradients = [torch.empty_like(value) for value in self.parameters]
        ends = torch.tensor(self.counts).cumsum(0).tolist()
        self.parts = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        self._minus = torch.full((1, 1, 1), -1.0, device=self.parameters[0].device)
        groups = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        self._groups = groups.to(self.parameters[0].device)
        self.rounded = rounded(self.parameters[0], self.precision)  # first weights for the products, or None
        halves = [None if self.rounded is None else self.rounded[part].flatten(0, 1) for part in self.parts]
        weights = [self._flat(part)[0] for part in self.parts]
        self.products = list(map(Products, weights, halves))

    def _flat(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return the first layers of a group as one: weight (k · out, D) and bias (k · out,)."""
        weight, bias = self.parameters[:2]
        return weight[part].flatten(0, 1), bias[part].flatten()

    def keep(self, heads: Sequence[int]) -> list[int]:
        """Go on with these heads alone, numbered anew in the rising order given; return the groups left."""
        index = torch.tensor(heads, dtype=torch.int64, device=self.parameters[0].device)
        self.parameters = [value.index_select(0, index) for value in self.parameters]
        counts = [sum(part.start <= head < part.stop for head in heads) for part in self.parts]
        left = [number for number, count in enumerate(counts) if count]
        self.counts = [counts[number] for number in left]
        self.masks = [self.masks[number] for number in left]
        self._begin()
        return left

    def scores(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield scores (K, C, n) of consecutive parts of float32 rows (N, D), which rows beside them."""
        step = max(1, _SCORED // (len(self) * max(self.sizes[1:])))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            first = turned_outputs(rows[part], *self._flat(slice(None)))
            yield part, self._later(first.view(len(self), self.sizes[1], -1), dropping=False)[-1]

    def gradient_step(self, *batches: Batch) -> Tensor:
        """Fill `gradients` with those of each head's mean cross-entropy; return its sums over rows (K,).

        There is a batch for every group, all of as many rows. Values are (K, out, n): so the first layers'
        outputs come out of their product and so their gradients go into theirs.
        """
        values = self._later(self._first(batches), dropping=True)
        size = len(batches[0][1])
        log_p = torch.log_softmax(values[-1], dim=1)
        true = self._of_heads([classes for _, classes in batches])
        loss = log_p.gather(1, true).sum(dim=(1, 2)).neg_()
        delta = log_p.exp_().scatter_add_(1, true, self._minus.expand_as(true)).div_(size)
        for i in range(len(self.sizes) - 2, 0, -1):
            torch.bmm(delta, values[i - 1].transpose(1, 2), out=self.gradients[2 * i])
            torch.sum(delta, 2, out=self.gradients[2 * i + 1])
            delta = torch.bmm(self.parameters[2 * i].transpose(1, 2), delta)
            delta = through(delta, values[i - 1], self.dropout[i - 1])
        torch.sum(delta, 2, out=self.gradients[1])
        self._first_gradients(batches, delta)
        return loss

    def _of_heads(self, classes: Sequence[Tensor]) -> Tensor:
        """Return the classes (n,) of each group's batch as (K, 1, n)."""
        if len(classes) == 1:
            return classes[0].expand(len(self), 1, -1)
        return torch.stack(list(classes)).index_select(0, self._groups)[:, None]

    def learned(self) -> None:
        """Take over that the parameters have changed, by other than a step that `rounded` was given to."""
        if self.rounded is not None:
            self.rounded.copy_(self.parameters[0])

    def _first(self, batches: Sequence[Batch]) -> Tensor:
        """Return the first layers' outputs (K, out, n)."""
        each = [
            products.turned_outputs(rows, *self._flat(part)).view(count, self.sizes[1], -1)
            for (rows, _), part, products, count in zip(
                batches, self.parts, self.products, self.counts, strict=True
            )
        ]
        return torch.cat(each) if len(each) > 1 else each[0]

    def _first_gradients(self, batches: Sequence[Batch], delta: Tensor) -> None:
        for (rows, _), part, products in zip(batches, self.parts, self.products, strict=True):
            out = self.gradients[0][part]
            found = products.turned_gradient(delta[part].flatten(0, 1), rows, out.flatten(0, 1)).view_as(out)
            if found.data_ptr() == out.data_ptr():
                continue
            if len(batches) > 1:
                out.copy_(found)
            else:
                self.gradients[0] = found

    def _later(self, first: Tensor, dropping: bool) -> list[Tensor]:
        """Return each layer's outputs (K, out, n), given the first ones'."""
        values = [first]
        for i in range(1, len(self.sizes) - 1):
            values[-1].relu_()
            for part, masks in zip(self.parts, self.masks, strict=True):
                if dropping:
                    masks.hide(values[-1][part].transpose(1, 2), i - 1)
            weight, bias = self.parameters[2 * i : 2 * i + 2]
            values.append(torch.baddbmm(bias[..., None], weight, values[-1]))
        return values
