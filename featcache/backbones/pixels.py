"""The backbone that is none: an image's own pixels as features, the baseline on the very same rows."""

from __future__ import annotations

from torch import Tensor, cat, nn

NAME = "pixels"
SIZE = 64  # pixels a side where no size is asked for
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # values from -1 to 1


class Pixels(nn.Module):
    """Flattens images (B, 3, S, S).

    Its nodes are `pixels` (B, 3·S·S), channel after channel, and `grey` (B, S·S), the mean of the channels,
    which of grey images is all there is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Flatten()
        self.grey = nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        """Return both, one after the other."""
        return cat([self.pixels(images), self.grey(images.mean(dim=1))], dim=1)
