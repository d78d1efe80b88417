"""A network to be trained: a body, images to rows, and a head, rows to scores; and how it is rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbones import catalogue, graph
from featcache.errors import BackboneError
from featcache.heads.layers import HeadLayers
from featcache.networks import catalogue as small
from featcache.recipe import Node


@dataclass(frozen=True)
class Layout:
    """What a model consists of, without its weights. `node` is None of a small network, which is used whole.

    `sizes` are those of the head's layers (D, hidden…, C), `channels` those the first layer takes.
    """

    network: str
    channels: int
    image_size: int
    classes: int
    node: str | None = None
    pool: str = "flatten"
    sizes: tuple[int, ...] = ()
    standardizes: bool = False
    temperature: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain JSON values."""
        return {**asdict(self), "sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Layout:
        """Rebuild a layout from `to_dict`."""
        return cls(**{**plain, "sizes": tuple(plain["sizes"])})


class ScoreLayers(HeadLayers):
    """A head's layers that answer with scores, to be trained."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the scores (B, C) of rows (B, D)."""
        return self.scores(rows)


class Model(nn.Module):
    """Normalised images (B, 3, S, S) → scores (B, C).

    With one channel the three are averaged first, which of grey images is any one of them.
    """

    def __init__(self, body: nn.Module, head: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.head, self.channels = body, head, channels

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (B, C)."""
        if self.channels == 1:
            images = images.mean(dim=1, keepdim=True)
        scores: Tensor = self.head(self.body(images))
        return scores


class _Rows(nn.Module):
    """A backbone cut at a node: images to that node's pooled rows."""

    def __init__(self, network: nn.Module, node: Node) -> None:
        super().__init__()
        self.cut = graph.cut(graph.trace(network), (node,))
        self._node = node.name

    def forward(self, images: Tensor) -> Tensor:
        """Return rows (B, D) float32."""
        rows: Tensor = self.cut(images)[self._node]
        return rows


def is_small(name: str) -> bool:
    """Return whether a network is one of ours, which have weights of nobody's."""
    return name in small.NETWORKS


def assemble(layout: Layout, network: nn.Module, head: nn.Module | None, seed: int) -> Model:
    """Return the model of a backbone, which is used up, and a head; without one, of one drawn from the seed.

    Raises:
        BackboneError: the first layer cannot be made for one channel.
    """
    if layout.channels == 1:
        sum_channels(network, layout.network)
    body = _Rows(network, Node(str(layout.node), layout.pool))
    return Model(body, head or _drawn(layout, seed), layout.channels)


def small_model(layout: Layout, seed: int) -> Model:
    """Return the model of a small network, its weights drawn from the seed."""
    network: Any = small.build(layout.network, layout.classes, layout.channels, layout.image_size, seed)
    return Model(network.body, network.head, layout.channels)


def skeleton(layout: Layout) -> Model:
    """Return a model of this layout whose weights are still to be loaded.

    Raises:
        BackboneError, OptionError: the network is unknown.
    """
    if layout.node is None:
        return small_model(layout, 0)
    return assemble(layout, catalogue.skeleton(layout.network, layout.image_size), None, 0)


def scoring_node(name: str, network: nn.Module) -> Node:
    """Return the node whose rows the network's own last linear layer reads, dropout before it included.

    Of a network without one, such as SqueezeNet, it is the node that features are read at.

    Raises:
        BackboneError: the network cannot be cut.
    """
    traced = graph.trace(network)
    linear = graph.last_linear(traced)
    if linear is None:
        return catalogue.default_nodes(name, network)
    wanted = linear.all_input_nodes[0]
    return Node(next(known for known, node in traced.nodes.items() if node is wanted), "flatten")


def columns_of(network: nn.Module, node: Node, image_size: int) -> int:
    """Return D, how many numbers the pooled rows of a node have.

    Raises:
        BackboneError: the network cannot take images of that size.
    """
    body = _Rows(network, node).eval()
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            return int(body(torch.zeros(1, 3, image_size, image_size)).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise graph.wrong_size(image_size, error) from error


def sum_channels(network: nn.Module, name: str) -> None:
    """Make the first convolution take one channel, in place: its weights are summed over the three.

    So a grey image gives what it gave as three equal channels.

    Raises:
        BackboneError: the network does something else with its three channels first.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or getattr(network, "transform_input", False):
        raise BackboneError(f"The first layer of {name} cannot take one channel.", "Give --channels 3.")
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True), first.weight.requires_grad)
    first.in_channels = 1


def _drawn(layout: Layout, seed: int) -> ScoreLayers:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ScoreLayers(layout.sizes, layout.standardizes, layout.temperature)
