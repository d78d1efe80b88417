"""An epoch's steps, one after the other; on a GPU one step is recorded and played back as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from featcache.heads.masks import Masks
from featcache.heads.rows import Rows
from featcache.heads.tables import Streamed

Batch = tuple[Tensor, Tensor]  # rows (n, D), classes (n,)
Step = Callable[[], None]
_WARM = 3  # steps before recording, so that libraries have made what they make at first use
_MASKS = 1 << 30  # bytes of masks that may be drawn ahead


class Steps:
    """Steps on batches of `rows`; heads that see the same batches are a group with its rows and masks.

    `learn` takes a batch for each group, changes the weights and returns the losses summed over rows. With
    `record`, which takes a step and returns what repeats it, a step works on tensors that stay where they
    are and looks everything up by counters on the device: it can be played back without Python. Orders of
    rows and dropout masks are drawn on the CPU all the same, from the generators and in the order of steps
    that are not recorded, so that both learn the same.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        masks: Sequence[Masks],
        learn: Callable[[Sequence[Batch]], Tensor],
        record: Callable[[Step], Step] | None,
    ) -> None:
        self._rows, self._masks, self._learner = rows, masks, learn
        whole, _ = rows[0].steps
        room = sum(each.bytes_ahead(whole, rows[0].size) for each in masks) <= _MASKS
        self._record = record if whole > _WARM and room else None
        self._repeat: Step | None = None
        self._number = torch.zeros(1, dtype=torch.int64, device=rows[0].device)
        self._total = torch.zeros(())

    def epoch(self, orders: Sequence[Tensor], losses: tuple[int, ...] = ()) -> Tensor:
        """Take all steps, each group on its rows in its order (N,); return the losses, of that shape."""
        self._total = torch.zeros(losses, dtype=torch.float64, device=self._rows[0].device)
        if self._record is None:
            for batches in zip(*map(Rows.batches, self._rows, orders), strict=True):
                self._learn(batches)
            return self._total
        return self._played(orders, self._record)

    def _learn(self, batches: Sequence[Batch]) -> None:
        self._total += self._learner(batches)

    def _step(self) -> None:
        self._learn([rows.next() for rows in self._rows])
        self._number += 1

    def _played(self, orders: Sequence[Tensor], record: Callable[[Step], Step]) -> Tensor:
        whole, left = self._rows[0].steps
        for rows, masks, order in zip(self._rows, self._masks, orders, strict=True):
            rows.begin(order)
            masks.look_ahead(whole, rows.size, self._number.zero_())
        done = 0
        if self._repeat is None:
            for _ in range(_WARM):
                self._step()
            done = _WARM
            self._recorded_total = self._total
            self._repeat = record(self._step)
        else:
            self._total = self._recorded_total.zero_()
        for _ in range(whole - done):
            self._repeat()
        for masks in self._masks:
            masks.look_no_more()
        if left:
            self._learn([rows.batch(order[-left:]) for rows, order in zip(self._rows, orders, strict=True)])
        return self._total


def cuda_graph(device: torch.device, step: Step) -> Step:
    """Record a step, which is not taken, as a CUDA graph; return what plays it back."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay


def recorder(rows: Sequence[Rows]) -> Callable[[Step], Step] | None:
    """Return `cuda_graph` where steps on these rows can be recorded: their tables are held on a GPU."""
    held = all(each.device.type == "cuda" and not isinstance(each.place, Streamed) for each in rows)
    return partial(cuda_graph, rows[0].device) if held else None
