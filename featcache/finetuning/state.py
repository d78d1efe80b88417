"""Between torch's objects and the arrays and JSON that a training's state is kept as."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featcache.finetuning.options import GAMMAS, Finetuning
from featcache.heads.state import TrainingState

PLATEAU_PATIENCE = 2  # epochs without a lower validation loss before "plateau" lowers the rate


def schedule(optimizer: torch.optim.Optimizer, asked: Finetuning) -> Any:
    """Return torch's own schedule of learning rates, stepped once an epoch; None for a constant one."""
    gamma = asked.gamma or GAMMAS.get(asked.schedule, 0.1)
    if asked.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, asked.step_epochs, gamma)
    if asked.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=PLATEAU_PATIENCE)
    if asked.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, asked.epochs)
    return None


def load_optimizer(optimizer: torch.optim.Optimizer, state: TrainingState, scheduled: Any) -> None:
    """Put an optimiser and its schedule into the state that they had after an epoch."""
    kept: dict[int, dict[str, Tensor]] = {}
    for name, value in part(state.tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        kept.setdefault(int(number), {})[key] = torch.from_numpy(value.copy())
    optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
    if scheduled is not None:
        scheduled.load_state_dict(state.meta["schedule"])
        for group in optimizer.param_groups:
            group["lr"] = state.meta["schedule"]["_last_lr"][0]


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule's state without what JSON cannot hold: those are constants that it makes itself."""
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, (bool, int, str, list)) or (isinstance(value, float) and math.isfinite(value))
    }


def part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def copied(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of a model's tensors as arrays."""
    return {name: array(tensor) for name, tensor in model.state_dict().items()}


def array(tensor: Tensor) -> NDArray[Any]:
    """Return a copy of a tensor as an array."""
    found: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return found


def load(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy arrays into a model's tensors."""
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
