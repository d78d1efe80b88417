"""Random weights by seed, with activations that neither vanish nor explode."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbones import catalogue

PATCHES, PATCH = 8, 12  # the calibration image: 8 x 8 patches of one colour, 12 pixels a side
PATCH_224 = 28  # for what takes images of 224 pixels alone


def random_network(name: str, seed: int) -> nn.Module:
    """Build a backbone with torchvision's own initialisation, drawn from a seed, and calibrated batch norms.

    The same seed gives the same weights in every process; torch's global generator is not touched.

    Raises:
        BackboneError: the backbone is unknown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = catalogue.build(name)
    calibrate(network, PATCH_224 if name.startswith("maxvit") else PATCH)
    return network


def calibrate(network: nn.Module, patch: int = PATCH) -> None:
    """Set the running variance of every batch norm, in place, so that its output is of the order of 1.

    An untrained batch norm scales by 1, and without training the activations of a deep network fade to 1e-15
    (EfficientNet) or grow to 1e7 (ResNet-152), which no float16 holds. So one image goes through, and
    each layer's variance is set from what comes to it, as in layer-sequential unit-variance initialisation
    (Mishkin and Matas, "All you need is a good init", ICLR 2016). It is computed in float64 and rounded to a
    power of 4, so that the result does not hang on the machine's rounding.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(_set_variance) for norm in norms]
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            network.double()(_image(patch))
    finally:
        for hook in hooks:
            hook.remove()
        network.float()


def _set_variance(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    power = float(inputs[0].square().mean())
    if power > 0 and isinstance(norm.running_var, Tensor):
        norm.running_var.fill_(4.0 ** round(math.log(power, 4)))


def _image(patch: int) -> Tensor:
    """Return a float64 image (1, 3, S, S), S = 8 * patch, zero mean, unit variance, coarse as photos are."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(1, 3, PATCHES, PATCHES, dtype=torch.float64, generator=generator)
    return colours.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
