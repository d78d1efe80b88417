"""Backbone and head of a run as one torch module: what `featcache export` writes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featcache.backbones import graph
from featcache.heads.layers import HeadLayers

if TYPE_CHECKING:
    from featcache.heads.base import Head
    from featcache.recipe import Node, Preprocess, Recipe

INPUTS = ("normalized", "uint8")


class Whole(nn.Module):
    """Images in, class probabilities (B, C) out, with the rounding of the cache's features in between.

    Args:
        network: the backbone with its weights; it is copied.
        node: the node that the head reads.
        recipe: of the features.
        head: a fitted head whose scores are layers of products.
        codes: the class numbers of the head's own classes among `classes`.
        classes: how many classes there are.
        takes: "uint8" (B, S, S, 3), resized and cropped; or "normalized" float32 (B, 3, S, S), scaled to
            0..1, less the mean, divided by the deviation.

    Raises:
        HeadError: the head is of a kind that is not exported.
    """

    spread: Tensor

    def __init__(
        self,
        network: nn.Module,
        node: Node,
        recipe: Recipe,
        head: Head,
        codes: Any,
        classes: int,
        takes: str = "normalized",
    ) -> None:
        super().__init__()
        body = copy.deepcopy(graph.cut(graph.trace(network), (node,))).eval().requires_grad_(False)
        graph.fold_batch_norm(body)
        self.pixels = _Scaled(recipe.preprocess) if takes == "uint8" else nn.Identity()
        self.body = body
        self.node = node.name
        self.stored = getattr(torch, recipe.store_dtype) if recipe.store_dtype != "int8" else torch.float32
        self.head = HeadLayers.of(head)
        spread = torch.zeros(len(codes), classes)
        spread[torch.arange(len(codes)), torch.as_tensor(codes)] = 1.0
        self.register_buffer("spread", spread)
        self.whole = bool(len(codes) == classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities (B, C) of images."""
        rows = self.body(self.pixels(images))[self.node]
        proba: Tensor = self.head(rows.to(self.stored).to(torch.float32))
        return proba if self.whole else proba @ self.spread


class _Scaled(nn.Module):
    """From uint8 (B, S, S, 3) to normalised float32 (B, 3, S, S)."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scaled images."""
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        return (scaled - self.mean) / self.std
