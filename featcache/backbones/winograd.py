"""3 x 3 convolutions on a CPU with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

A tile of 6 x 6 pixels is transformed, multiplied with the transformed weights, one matrix product for each of
its 36 places, and transformed back to 4 x 4 pixels of the result: 36 multiplications where the sum over the
window takes 144 (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). Transforms
are products with matrices of 6 x 6 and 4 x 6, on blocks of tiles that a cache holds.

From which points the matrices are made decides how float32 rounds: 0, ±1, ±2, the usual ones, lose a digit;
0, ±√½, ±√2 round about as the plain sum does (points c and 1/c: Alam et al., "Winograd convolution for deep
neural networks: efficient point selection", ACM TECS 2022, doi:10.1145/3524069).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from featcache.backbones.fused import FusedConvolution, added

OUT, IN = 4, 6  # pixels of a tile along one side: of the result, and of what it hangs on
BLOCK = 2 << 20  # bytes of the transformed tiles of a block and their products: what a core's cache holds
MOST = 64 << 20  # bytes of a block where large weights, which every block reads, make it larger
LEAST_CHANNELS = 64  # with fewer the transforms cost what the products save
MOST_PAIRS = 1 << 21  # of channels in and out: weights of 300 MB, four times those they are made from


def _matrices(a: float, b: float) -> tuple[list[list[float]], ...]:
    """Return the transforms of 6 pixels, 3 weights and 6 products (transposed): points 0, ±a, ±b and ∞."""
    near, far = a * a, b * b
    forth, weights = [[near * far, 0, -near - far, 0, 1, 0]], [[1 / (near * far), 0, 0]]
    back = [[1.0, 0, 0, 0]]
    for point, other in ((a, far), (-a, far), (b, near), (-b, near)):
        forth.append([0, -point * other, -other, point, 1, 0])
        scale = 2 * point**2 * (point**2 - other)
        weights.append([1 / scale, point / scale, point**2 / scale])
        back.append([1, point, point**2, point**3])
    forth.append([0, near * far, 0, -near - far, 0, 1])
    return forth, [*weights, [0, 0, 1]], [*back, [0, 0, 0, 1]]


_FORTH, _WEIGHTS, _TRANSPOSED = _matrices(math.sqrt(0.5), math.sqrt(2.0))
_BACK = [list(column) for column in zip(*_TRANSPOSED, strict=True)]


class WinogradConvolution(nn.Module):
    """relu(conv(x) + bias + addend) by Winograd's algorithm; bias, addend and ReLU as there are any.

    Args:
        conv: one that `can_transform`; its weight is copied.
        relu: whether to cut off what is negative.
    """

    def __init__(self, conv: nn.Conv2d | FusedConvolution, relu: bool) -> None:
        super().__init__()
        weight, bias = conv.weight.detach(), conv.bias
        self.padding = tuple(int(side) for side in conv.padding)
        self.relu = relu
        self.weight = nn.Parameter(transformed(weight), requires_grad=False)
        zero = torch.zeros(weight.shape[0], dtype=weight.dtype)
        self.bias = nn.Parameter(zero if bias is None else bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return the map (B, K, H', W') of x (B, C, H, W), channels_last; `addend` has its shape."""
        images = x.permute(0, 2, 3, 1).contiguous()
        out = convolved(images, self.weight, self.bias, self.padding, self.relu and addend is None)
        maps = out.permute(0, 3, 1, 2)
        if addend is None:
            return maps
        maps = added(maps, addend)
        return maps.relu_() if self.relu else maps


def can_transform(
    conv: nn.Conv2d | FusedConvolution, least_in: int = LEAST_CHANNELS, least_out: int = LEAST_CHANNELS
) -> bool:
    """Return whether a convolution is one that this algorithm computes, and has so many channels at least.

    With fewer than the usual ones the plain sum is as fast.
    """
    out, channels, *window = conv.weight.shape
    dense = tuple(conv.stride) == (1, 1) and tuple(conv.dilation) == (1, 1) and conv.groups == 1
    frame = isinstance(conv.padding, tuple) and max(conv.padding) <= 1
    zeros = getattr(conv, "padding_mode", "zeros") == "zeros"
    known = type(conv) in (nn.Conv2d, FusedConvolution)
    size = channels >= least_in and out >= least_out and out * channels <= MOST_PAIRS
    return known and window == [3, 3] and dense and frame and zeros and size


def transformed(weight: Tensor, by_line: bool = False) -> Tensor:
    """Return weights (K, C, 3, 3) as (36, C, K), in their dtype, computed in float64.

    A tile's places are numbered by column, then line, as `_tiles` lays them out, or the other way round.
    """
    g = torch.tensor(_WEIGHTS, dtype=torch.float64)
    places = torch.einsum("ia,kcab,jb->ijck" if by_line else "ia,kcab,jb->jick", g, weight.double(), g)
    return places.reshape(IN * IN, *places.shape[2:]).to(weight.dtype).contiguous()


def convolved(images: Tensor, weight: Tensor, bias: Tensor, padding: Sequence[int], relu: bool) -> Tensor:
    """Return (B, H', W', K) of images (B, H, W, C), contiguous, and transformed weights (36, C, K)."""
    height, width = (side + 2 * pad - 2 for side, pad in zip(images.shape[1:3], padding, strict=True))
    down, across = -(-height // OUT), -(-width // OUT)
    count, maps = len(images), weight.shape[2]
    out = images.new_empty(count, down * OUT, across * OUT, maps)
    several, rows = _block(count, down, across, weight)
    for first in range(0, count, several):
        part = images[first : first + several]
        for top in range(0, down, rows):
            lines = slice(OUT * top, OUT * min(top + rows, down))
            target = out[first : first + several, lines]
            _back(torch.bmm(_forth(_tiles(part, lines, across, padding)), weight), bias, target)
            if relu:
                target.relu_()
    return out[:, :height, :width].contiguous()


def _block(count: int, down: int, across: int, weight: Tensor) -> tuple[int, int]:
    """Return of how many images, and of how many of their rows of tiles, a block is.

    Large weights are read once for each block: the more tiles it has the better.
    """
    channels, maps = weight.shape[1:]
    most = max(BLOCK, min(2 * weight.nbytes, MOST)) // (
        IN * IN * across * (channels + maps) * weight.element_size()
    )
    if most >= down:
        return min(count, most // down), down
    blocks = -(-down // max(1, most))
    return 1, -(-down // blocks)


def _tiles(images: Tensor, lines: slice, across: int, padding: Sequence[int]) -> Tensor:
    """Return what some lines of the result hang on as tiles that overlap: (6, 6, B, rows, across, C).

    First a tile's columns, then its lines, so that either side is transformed by one product.
    """
    count, height, width, channels = images.shape
    above, left = padding
    begin, end = lines.start - above, lines.stop - above + IN - OUT
    inside = slice(max(begin, 0), min(end, height))
    framed = images.new_zeros(count, end - begin, OUT * across + IN - OUT, channels)
    framed[:, inside.start - begin : inside.stop - begin, left : left + width] = images[:, inside]
    return framed.unfold(1, IN, OUT).unfold(2, IN, OUT).permute(5, 4, 0, 1, 2, 3).contiguous()


def _forth(tiles: Tensor) -> Tensor:
    """Return transformed tiles (36, tiles, C) of `_tiles`."""
    forth = tiles.new_tensor(_FORTH)
    by_column = torch.mm(forth, tiles.view(IN, -1)).view(IN, IN, -1)
    return torch.bmm(forth.expand(IN, IN, IN), by_column).view(IN * IN, -1, tiles.shape[-1])


def _back(products: Tensor, bias: Tensor, out: Tensor) -> None:
    """Transform products (36, tiles, K) into lines of the result (B, lines, W', K), and add the bias."""
    back = products.new_tensor(_BACK)
    count, lines, width, maps = out.shape
    rows, across = lines // OUT, width // OUT
    by_line = torch.bmm(back.expand(IN, OUT, IN), products.view(IN, IN, -1))
    pixels = torch.mm(back, by_line.view(IN, -1)).view(OUT, OUT, count, rows, across, maps)
    target = out.unflatten(2, (across, OUT)).unflatten(1, (rows, OUT)).permute(4, 2, 0, 1, 3, 5)
    torch.add(pixels, bias, out=target)


def in_products(conv: nn.Module) -> WinogradConvolution | None:
    """Return a convolution as `WinogradConvolution`, or None where it is none that `can_transform`."""
    if not isinstance(conv, nn.Conv2d | FusedConvolution) or not can_transform(conv):
        return None
    return WinogradConvolution(conv, isinstance(conv, FusedConvolution))


def replace_convolutions(body: fx.GraphModule, made: Callable[[nn.Module], nn.Module | None]) -> int:
    """Replace every module of a cut network on a CPU for which `made` returns one, in place; return how many.

    One whose weight the network reads by itself, too, is left alone.
    """
    read = [str(node.target) for node in body.graph.nodes if node.op == "get_attr"]
    found = 0
    for path, module in list(body.named_modules()):
        if any(name.startswith(f"{path}.") for name in read):
            continue
        other = made(module)
        if other is not None:
            parent, _, name = path.rpartition(".")
            setattr(body.get_submodule(parent), name, other)
            found += 1
    return found
