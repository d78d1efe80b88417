"""Which small networks there are. They have a `body`, images to rows (B, D), and a `head`, rows to scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from featcache.errors import OptionError, unknown
from featcache.networks.simple_resnet import InceptionResNet, SimpleResNet
from featcache.networks.small_cnn import SmallCNN

NETWORKS: dict[str, type[SmallCNN] | type[SimpleResNet]] = {
    "inception-resnet": InceptionResNet,
    "simple-resnet": SimpleResNet,
    "small-cnn": SmallCNN,
}


@dataclass(frozen=True)
class Input:
    """What a network is made for: images of `size` × `size` pixels with so many channels."""

    size: int
    channels: int


def input_of(name: str) -> Input:
    """Return what a network is made for.

    Raises:
        OptionError: the network is unknown.
    """
    kind = _kind(name)
    return Input(kind.SIZE, kind.IN_CHANNELS)


def build(name: str, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """Build a network with torch's own initialisation, drawn from a seed; nothing else is drawn.

    Raises:
        OptionError: the network is unknown, or the images are too small for it.
    """
    kind = _kind(name)
    if image_size < kind.SMALLEST:
        raise OptionError(
            f"{name} takes images of at least {kind.SMALLEST} pixels a side, got {image_size}.",
            f"Give --image-size {kind.SIZE}.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(classes, channels, image_size)


def _kind(name: str) -> type[SmallCNN] | type[SimpleResNet]:
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    return NETWORKS[name]
