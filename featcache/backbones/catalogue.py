"""Which backbones there are, how each is built, and which nodes of it can be read.

They are torchvision's classification networks, and `pixels` (see `featcache.backbones.pixels`).

The default node is found by rule: the input of the last linear layer (through dropout), or, in a network
without one, the last node of its `features`. The two exceptions are in `DEFAULT_NODES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from featcache.backbones import graph, pixels
from featcache.backbones.pooling import check_pool, default_pool
from featcache.errors import BackboneError, OptionError, unknown
from featcache.recipe import Node

# VGG's classifier is most of its weights and its features are used without it.
DEFAULT_NODES = {"vgg": "flatten", pixels.NAME: "pixels"}

# The auxiliary heads are for training only. `transform_input` is how torchvision runs these two: images come
# in ImageNet normalisation as for every other network, and the first layers turn it into their own.
_INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


@dataclass(frozen=True)
class LayerInfo:
    """One node of a backbone, for `featcache layers`."""

    name: str
    shape: tuple[int, ...]  # of its output per image: (D,), (T, C), (C, H, W) or, in Swin, (H, W, C)
    parameters: int  # of this node alone; over all nodes they add up to the network's
    kind: str  # the module's class or the function's name


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted([*torchvision.models.list_models(module=torchvision.models), pixels.NAME]))


def names() -> list[str]:
    """Return the names of all backbones, sorted."""
    return list(_names())


def check_name(name: str) -> str:
    """Return the name of a backbone if it is one.

    Raises:
        BackboneError: it is none; the hint has close names first.
    """
    if name in _names():
        return name
    error = unknown("backbone", name, _names(), BackboneError)
    close = difflib.get_close_matches(name.lower(), _names(), n=4, cutoff=0.5)
    if close:
        error.hint = f"Did you mean {', '.join(close)}? {error.hint}"
    raise error


def build(name: str, image_size: int | None = None) -> nn.Module:
    """Build a backbone with fresh random weights from torch's global generator, in evaluation mode.

    `image_size`, in pixels, matters to the ViTs alone: it sets how many position embeddings there are.

    Raises:
        BackboneError: the name is unknown, or a ViT cannot be cut into patches at that size.
    """
    if check_name(name) == pixels.NAME:
        return pixels.Pixels().eval()
    options = dict(_OPTIONS.get(name, {}))
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except AssertionError as error:  # torchvision's way to refuse a size
        raise graph.wrong_size(image_size or 0, error, name) from error
    return network.eval().requires_grad_(False)


class _ParametersOnMeta(TorchFunctionMode):
    """Makes uninitialised tensors, which is what parameters begin as, without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def skeleton(name: str, image_size: int | None = None) -> nn.Module:
    """Build a backbone whose parameters have shapes and no memory: what weights are checked against.

    Takes milliseconds even for the largest and draws nothing from the random generators.

    Raises:
        BackboneError: as `build`.
    """
    with torch.random.fork_rng(devices=[]), _ParametersOnMeta():
        return build(name, image_size)


def default_nodes(name: str, network: nn.Module) -> Node:
    """Return the node a backbone is read at when none is asked for.

    VGG: the flattened 7x7x512 map (25088); SqueezeNet: its last feature map, averaged (512); ViT: the class
    token; pixels: all channels; the others: the input of the last linear layer.

    Raises:
        BackboneError: the network has neither a linear layer nor `features`.
    """
    traced = graph.trace(network)
    return _node(_default_name(name, traced), None, graph.shapes(traced, _size(name, network), name))


def _default_name(name: str, traced: graph.Traced) -> str:
    for prefix, node in DEFAULT_NODES.items():
        if name.startswith(prefix):
            return node
    linear = graph.last_linear(traced)
    if linear is None:
        return graph.find(traced, "features", name)
    wanted = graph.before_dropout(traced, linear.all_input_nodes[0])
    return next(known for known, node in traced.nodes.items() if node is wanted)


def resolve_nodes(
    name: str, network: nn.Module, layers: Sequence[str] = (), pool: str | None = None
) -> tuple[Node, ...]:
    """Return the nodes to read, with their full names and their pooling, in the order asked for.

    A block's name stands for its last node ("layer4" for "layer4.1.relu_1"). Without `pool` vectors are kept
    and maps (B, C, H, W) and tokens (B, T, C) averaged over their positions; a vector is never pooled. In
    Swin and inside ConvNeXt and MaxViT maps are (B, H, W, C): they are pooled over H and W all the same.

    Raises:
        BackboneError: a layer is unknown, asked for twice, or gives no output per image.
        OptionError: the pooling is unknown or does not fit the layer.
    """
    if pool is not None:
        check_pool(pool)
    traced = graph.trace(network)
    shapes = graph.shapes(traced, _size(name, network), name)
    asked = [graph.find(traced, layer, name) for layer in layers] or [_default_name(name, traced)]
    twice = sorted({node for node in asked if asked.count(node) > 1})
    if twice:
        raise BackboneError(f"Layer {twice[0]!r} of {name} is asked for twice.", "Name each --layer once.")
    return tuple(_node(node, pool, shapes) for node in asked)


def _node(node: str, pool: str | None, shapes: dict[str, tuple[int, ...]]) -> Node:
    shape = shapes.get(node)
    if shape is None:
        raise BackboneError(
            f"Layer {node!r} gives no output per image.", "Choose one that `featcache layers` lists."
        )
    if pool is None or len(shape) == 1:
        return Node(node, default_pool(len(shape) + 1))
    if (pool.startswith("avg:") and len(shape) != 3) or (pool != "flatten" and len(shape) > 3):
        raise OptionError(f"Pool {pool!r} does not fit layer {node!r}: its output is {shape} per image.")
    return Node(node, pool)


def _size(name: str, network: nn.Module) -> int:
    """Return a size of images, in pixels, that a network takes; only its rank-independent use matters."""
    size = getattr(network, "image_size", 224) if name.startswith("vit_") else 224
    return int(size)


def layers(name: str, image_size: int = 224) -> list[LayerInfo]:
    """Return every node of a backbone that has an output per image, in the order of execution.

    Raises:
        BackboneError: the backbone is unknown or cannot take images of that size.
    """
    traced = graph.trace(skeleton(name, image_size))
    shapes = graph.shapes(traced, image_size, name)
    counts = _parameters(traced, set(shapes))
    return [
        LayerInfo(node, shape, counts[node], _kind(traced, traced.nodes[node]))
        for node, shape in shapes.items()
    ]


def _parameters(traced: graph.Traced, listed: set[str]) -> dict[str, int]:
    """Count the parameters of each listed node; those of nodes not listed count with the next one listed."""
    known = dict(traced.network.named_parameters())
    names = {node: name for name, node in traced.nodes.items()}
    counts: dict[str, int] = {}
    waiting = 0
    for node in traced.graph.nodes:
        module = traced.module(node)
        if module is not None:
            waiting += sum(parameter.numel() for parameter in module.parameters())
        elif node.op == "get_attr" and node.target in known:
            waiting += known.pop(node.target).numel()
        if names.get(node) in listed:
            counts[names[node]], waiting = waiting, 0
    return counts


def _kind(traced: graph.Traced, node: Any) -> str:
    module = traced.module(node)
    if module is not None:
        return type(module).__name__
    return str(node.target) if isinstance(node.target, str) else str(node.target.__name__)
