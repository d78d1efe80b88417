"""Max pooling by the kernels of this folder: while a convolution is transformed back, or by pool.c."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, fx, nn

from featcache.backbones.kernels.base import STEP, kernels
from featcache.backbones.kernels.winograd import WinogradKernel


class PoolingKernel(nn.Module):
    """Max pooling of maps in a dtype; maps whose channels come not by sixteens are left to torch.

    Args:
        pool: one that `can_pool`.
        dtype: of the maps, torch.float32 or torch.bfloat16.
    """

    def __init__(self, pool: nn.MaxPool2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.plain, self.kernels, self.dtype = pool, kernels(dtype), dtype
        self.window, self.stride, self.padding = (
            _places(each)[0] for each in (pool.kernel_size, pool.stride, pool.padding)
        )

    def forward(self, input: Tensor) -> Tensor:  # its name in torch's own module, too
        """Return the pooled map (B, C, H', W') of maps (B, C, H, W), channels_last."""
        if input.dim() != 4 or input.shape[1] % STEP or input.dtype != self.dtype:
            pooled: Tensor = self.plain(input)
            return pooled
        maps = input.permute(0, 2, 3, 1).contiguous()
        count, high, wide, channels = maps.shape
        down, across = self._side(high), self._side(wide)
        result = maps.new_empty(count, down, across, channels)
        sizes = (count, high, wide, channels, self.window, self.stride, self.padding)
        self.kernels.pool(
            ctypes.c_void_p(maps.data_ptr()), *map(ctypes.c_long, sizes),
            ctypes.c_void_p(result.data_ptr()), ctypes.c_long(down), ctypes.c_long(across),
        )  # fmt: skip
        return result.permute(0, 3, 1, 2)

    def _side(self, side: int) -> int:
        """Return how many windows there are along a side: whole ones, or with `ceil_mode` all begun."""
        rest = side + 2 * self.padding - self.window
        if not self.plain.ceil_mode:
            return rest // self.stride + 1
        count = -(-rest // self.stride) + 1
        return count - ((count - 1) * self.stride >= side + self.padding)  # none begins in the padding


def replace_pooling(body: fx.GraphModule, dtype: torch.dtype) -> int:
    """Replace every max pooling of a cut network that `can_pool`, in place; return how many.

    One of 2 x 2 that alone reads a convolution by Winograd's kernel is done by that one. Convolutions have
    been replaced before (`winograd.replace_convolutions`).
    """
    found = 0
    calls = [str(node.target) for node in body.graph.nodes if node.op == "call_module"]
    for node in [node for node in body.graph.nodes if node.op == "call_module"]:
        pool = body.get_submodule(str(node.target))
        if not isinstance(pool, nn.MaxPool2d) or not can_pool(pool):
            continue
        found += 1
        kernel = _before(body, node, calls)
        if kernel is not None and _quarters(pool):
            kernel.pool = True
            node.replace_all_uses_with(node.args[0])
            body.graph.erase_node(node)
        else:
            node.target = f"pooling_kernel_{found}"
            body.add_submodule(node.target, PoolingKernel(pool, dtype))
    body.delete_all_unused_submodules()
    body.recompile()
    return found


def _before(body: fx.GraphModule, node: fx.Node, calls: list[str]) -> WinogradKernel | None:
    """Return the kernel whose result a node alone reads, None where there is no such."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    kernel = body.get_submodule(str(source.target))
    alone = calls.count(str(source.target)) == 1 and len(source.args) == 1
    return kernel if isinstance(kernel, WinogradKernel) and alone and not kernel.pool else None


def can_pool(pool: nn.MaxPool2d) -> bool:
    """Return whether a max pooling is one of pool.c: alike down and across, without gaps."""
    places = [_places(each) for each in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
    square = all(down == across for down, across in places) and places[-1] == (1, 1)
    return type(pool) is nn.MaxPool2d and square and not pool.return_indices


def _quarters(pool: nn.MaxPool2d) -> bool:
    """Return whether a max pooling takes the largest of each 2 x 2 pixels, and of what is left over none."""
    places = [_places(each) for each in (pool.kernel_size, pool.stride, pool.padding)]
    return places == [(2, 2), (2, 2), (0, 0)] and not pool.ceil_mode


def _places(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
