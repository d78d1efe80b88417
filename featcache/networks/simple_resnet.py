"""A simplified ResNet for photos of 128×128 pixels, with plain or with Inception blocks.

Every convolution is followed by batch norm and ReLU, keeps the size of its map, and has a bias, as torch
makes it. The residual blocks come after He et al., "Deep Residual Learning for Image Recognition" (CVPR
2016), the Inception blocks after Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256, 512)
DROPOUT = 0.3


class _Convolution(nn.Sequential):
    """A convolution that keeps the map's size, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, size: int = 3) -> None:
        super().__init__(nn.Conv2d(channels, out, size, padding=size // 2), nn.BatchNorm2d(out), nn.ReLU())


class _Residual(nn.Module):
    """Two 3×3 convolutions, and the input added to what they give."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_Convolution(channels, channels), _Convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        added: Tensor = x + self.convolutions(x)
        return added


class _Inception(nn.Module):
    """Four branches side by side, each with a quarter of the channels.

    1×1 → 5×5, 1×1 → 3×3, 3×3 max-pooling → 1×1, and 1×1; a leading 1×1 has an eighth of the channels.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        quarter, eighth = out // 4, out // 8
        self.wide = nn.Sequential(_Convolution(channels, eighth, 1), _Convolution(eighth, quarter, 5))
        self.middle = nn.Sequential(_Convolution(channels, eighth, 1), _Convolution(eighth, quarter, 3))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _Convolution(channels, quarter, 1))
        self.point = _Convolution(channels, quarter, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps, one after the other."""
        return torch.cat([self.wide(x), self.middle(x), self.pooled(x), self.point(x)], dim=1)


class SimpleResNet(nn.Module):
    """Five blocks of convolution and 2×2 max-pooling, 32 to 512 channels, four residual blocks between them.

    Images (B, channels, S, S) → scores (B, classes): a residual block follows each of the first four blocks;
    then 4×4 max-pooling, dropout .3 and a linear layer. Of 128×128 images that layer sees 512 numbers.

    With `inception` the second to fifth block begin with an Inception block instead of a convolution, and a
    512 → 512 convolution, without pooling, follows the last.

    Args:
        classes: how many.
        channels: of the images, 1 or 3.
        image_size: S, in pixels, at least 128.
        inception: whether to have Inception blocks.
    """

    SMALLEST, SIZE, IN_CHANNELS = 128, 128, 3

    def __init__(
        self, classes: int, channels: int = 3, image_size: int = SIZE, inception: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, (before, out) in enumerate(pairwise((channels, *WIDTHS))):
            plain = place == 0 or not inception
            layers += [_Convolution(before, out) if plain else _Inception(before, out), nn.MaxPool2d(2)]
            if out != WIDTHS[-1]:
                layers.append(_Residual(out))
        if inception:
            layers.append(_Convolution(WIDTHS[-1], WIDTHS[-1]))
        self.body = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten())
        side = image_size // 2 ** len(WIDTHS) // 4
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(WIDTHS[-1] * side**2, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (B, classes) of images (B, channels, S, S)."""
        scores: Tensor = self.head(self.body(images))
        return scores


class InceptionResNet(SimpleResNet):
    """The simplified ResNet with Inception blocks."""

    def __init__(self, classes: int, channels: int = 3, image_size: int = SimpleResNet.SIZE) -> None:
        super().__init__(classes, channels, image_size, inception=True)
