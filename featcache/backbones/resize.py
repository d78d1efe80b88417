"""Resize and crop on a device: batches of decoded images, bit for bit as Pillow and `preprocess.fit` do it.

Images travel as they were decoded (3 KB for a 32 x 32 image rather than 150 KB) and are fitted where the
network is. The arithmetic is Pillow's own, in int32: sums of pixels times 22-bit weights, rounded and clipped
to bytes after each of the two passes. On a GPU one kernel does both (`resize_kernel`), where Triton is there.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from featcache.backbones.resize_plan import ResizePlan, Size, is_pillows, resize_plan
from featcache.backbones.taps import BITS, HALF, Taps
from featcache.errors import BackboneError
from featcache.recipe import Preprocess

KERNEL_TAPS = 100  # the kernel computes the inner pass anew for every outer tap: not for ever more of them


class Resizer:
    """Fits images of one size to a backbone's input, equal to `preprocess.fit` of each.

    Args:
        source: height and width of all images that will come.
        preprocess: how they are fitted; mean and std play no part here.
        device: where the images are.

    Raises:
        BackboneError: the interpolation is unknown, or the installed Pillow computes in another way.
        BadImageError: the images are too elongated.
    """

    def __init__(self, source: Size, preprocess: Preprocess, device: str = "cpu") -> None:
        if not is_pillows(preprocess.interpolation):
            raise BackboneError(
                f"The installed Pillow's {preprocess.interpolation} resize is not the one known here.",
                "Images are fitted by Pillow itself, one by one: `preprocess.fit`.",
            )
        self.plan = resize_plan(source, preprocess)
        self.device = torch.device(device)
        self._kernel = None
        if self.device.type == "cuda" and self.plan.down.count * self.plan.across.count <= KERNEL_TAPS:
            from featcache.backbones.resize_kernel import kernel_for

            self._kernel = kernel_for(self.plan, self.device)
        if self._kernel is None:
            self._down, self._across = (
                _Pass(self.plan.down, self.device),
                _Pass(self.plan.across, self.device),
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 (B, crop, crop, 3), a new contiguous tensor, for uint8 images (B, H, W, 3).

        Runs on the current stream, waits for nothing and copies nothing from or to the host.

        Raises:
            BackboneError: the images are not uint8 of that size on that device.
        """
        self._check(images)
        if self._kernel is not None:
            return self._kernel(images.contiguous())
        return self._placed(self._resized(images))

    def _check(self, images: Tensor) -> None:
        expected = (len(images), *self.plan.source, 3)
        same_device = images.device.type == self.device.type and self.device.index in (
            None,
            images.device.index,
        )
        if images.dtype != torch.uint8 or tuple(images.shape) != expected or not same_device:
            raise BackboneError(
                f"A batch must be uint8 {expected} on {self.device}, "
                f"got {images.dtype} {tuple(images.shape)} on {images.device}."
            )

    def _resized(self, images: Tensor) -> Tensor:
        if self.plan.down_first:
            return self._go_across(self._go_down(images))
        # Only the rows that count are resized across.
        return self._go_down(self._go_across(images[:, : self._down.stop]))

    def _go_down(self, images: Tensor) -> Tensor:
        batch, height, width, _ = images.shape
        return self._down(images.reshape(batch, height, width * 3)).view(batch, self._down.size, width, 3)

    def _go_across(self, images: Tensor) -> Tensor:
        batch, height, width, _ = images.shape
        return self._across(images.reshape(batch * height, width, 3)).view(
            batch, height, self._across.size, 3
        )

    def _placed(self, images: Tensor) -> Tensor:
        if self.plan.fills:
            return images.contiguous()
        top, left, (height, width) = self.plan.top, self.plan.left, self.plan.filled
        out = images.new_zeros((len(images), self.plan.crop, self.plan.crop, 3))
        out[:, top : top + height, left : left + width] = images
        return out


class _Pass:
    """One pass over the middle axis of uint8 (B, n, L)."""

    def __init__(self, taps: Taps, device: torch.device) -> None:
        self.size, self.copies = len(taps.weight), taps.copies
        self.stop = int(taps.index.max()) + 1  # pixels from here on do not count
        self._index = [torch.from_numpy(column.copy()).to(device) for column in taps.index.T]
        self._weight = [torch.from_numpy(column.copy()).view(1, -1, 1).to(device) for column in taps.weight.T]

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.copies:
            return pixels.index_select(1, self._index[0])
        total = pixels.index_select(1, self._index[0]).to(torch.int32).mul_(self._weight[0]).add_(HALF)
        for index, weight in zip(self._index[1:], self._weight[1:], strict=True):
            total += pixels.index_select(1, index).to(torch.int32).mul_(weight)
        return (total >> BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=1024)
def resizer(source: Size, preprocess: Preprocess, device: str = "cpu") -> Resizer:
    """Return the `Resizer` of these arguments, made once a process."""
    return Resizer(source, preprocess, device)


__all__ = ["ResizePlan", "Resizer", "resizer"]
