"""A small convolutional network for small grey images, such as FashionMNIST."""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = (4, 8)
HIDDEN = (128, 64, 32)


class SmallCNN(nn.Module):
    """Two convolutions with pooling, then four linear layers.

    Images (B, channels, S, S) → scores (B, classes): twice (3×3 convolution → 4, then 8 channels, batch norm,
    ReLU, 2×2 max-pooling), then 128-64-32-classes with ReLU, dropout .5 before the last layer but one and .25
    before the last. Of 28×28 images the first linear layer sees 8·7·7 = 392 numbers.

    Args:
        classes: how many.
        channels: of the images, 1 or 3.
        image_size: S, in pixels, at least 4.
    """

    SMALLEST, SIZE, IN_CHANNELS = 4, 28, 1

    def __init__(self, classes: int, channels: int = 1, image_size: int = SIZE) -> None:
        super().__init__()
        a, b = CHANNELS
        self.body = nn.Sequential(*_step(channels, a), *_step(a, b), nn.Flatten())
        wide, middle, narrow = HIDDEN
        self.head = nn.Sequential(
            nn.Linear(b * (image_size // 4) ** 2, wide),
            nn.ReLU(),
            nn.Linear(wide, middle),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(middle, narrow),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(narrow, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (B, classes) of images (B, channels, S, S)."""
        scores: Tensor = self.head(self.body(images))
        return scores


def _step(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
