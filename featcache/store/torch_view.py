"""A table as a torch data set, for those who bring their own training loop."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from featcache.store.table import Table


class TableDataset(Dataset[tuple[torch.Tensor, int]]):
    """Rows of a table as (feature (D,) float32, label)."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        row = self.table.base[self.table.index[position]]
        return torch.from_numpy(row.astype(np.float32)), int(self.table.y[position])
