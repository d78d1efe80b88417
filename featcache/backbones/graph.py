"""The network as a graph: its nodes by name, their shapes and layouts, and the network cut at some."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from featcache.backbones.pooling import pool_rows
from featcache.errors import BackboneError
from featcache.recipe import Node

PROBE_BATCH = 3  # tells the batch dimension from others: a node that is per image keeps it
_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_LAST = (nn.Linear, nn.LayerNorm)
_LAST_FUNCTIONS = (nn.functional.linear, nn.functional.layer_norm)


@dataclass(frozen=True)
class Traced:
    """A network and the graph of its forward pass in evaluation mode; `nodes` in the order of execution."""

    network: nn.Module
    graph: fx.Graph
    nodes: dict[str, fx.Node]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module a node calls, or None if it calls a function."""
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None


def trace(network: nn.Module) -> Traced:
    """Trace a network in evaluation mode; node names are torchvision's ("layer4.1.relu_1", "flatten").

    The network is left in evaluation mode; its weights may be on the meta device.
    """
    leaves = [kind for _, kind in inspect.getmembers(torchvision.ops, inspect.isclass) if _is_module(kind)]
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=leaves)
    graph: fx.Graph = tracer.trace(network.eval())
    names = {name: node for node, name in tracer.node_to_qualname.items() if _computes(node)}
    return Traced(network, graph, names)


def _is_module(kind: type) -> bool:
    return issubclass(kind, nn.Module)


def _computes(node: fx.Node) -> bool:
    return node.op in ("call_module", "call_function", "call_method")


def find(traced: Traced, name: str, backbone: str) -> str:
    """Return the node a name means: a node's own name, or of a block's ("layer4") its last node.

    Raises:
        BackboneError: there is none; close names come first in the hint.
    """
    if name in traced.nodes:
        return name
    inside = [node for node in traced.nodes if node.startswith(f"{name}.")]
    if inside:
        return inside[-1]
    blocks = {known.rpartition(".")[0] for known in traced.nodes} - {""}
    close = difflib.get_close_matches(name, [*traced.nodes, *blocks], n=4)
    meant = f"Did you mean {', '.join(close)}? " if close else ""
    raise BackboneError(
        f"Unknown layer {name!r} of {backbone}.", f"{meant}`featcache layers {backbone}` lists them all."
    )


class _ShapeInterpreter(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor that it computes."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.seen: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, see fx.Interpreter."""
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.seen[n] = tuple(out.shape)
        return out


class _ShapeProbe(nn.Module):
    """A module around the interpreter, so that its parameters can be swapped for ones without memory."""

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.body = fx.GraphModule(traced.network, traced.graph)

    def forward(self, x: Tensor) -> dict[fx.Node, tuple[int, ...]]:
        """Return the shape of every tensor computed on the way of images (B, 3, S, S)."""
        interpreter = _ShapeInterpreter(self.body)
        interpreter.run(x)
        return interpreter.seen


def shapes(traced: Traced, image_size: int, backbone: str) -> dict[str, tuple[int, ...]]:
    """Return the output shape per image, (D,), (T, C), (C, H, W), …, of every node that has one row an image.

    Exact and quick: the forward pass runs on the meta device, where tensors have shapes and no values.

    Raises:
        BackboneError: the network cannot take images of that size.
    """
    probe = _ShapeProbe(traced)
    tensors = [*probe.named_parameters(), *probe.named_buffers()]
    values = {name: value.to("meta") for name, value in tensors}
    images = torch.empty(PROBE_BATCH, 3, image_size, image_size, device="meta")
    try:
        with torch.inference_mode():
            computed = torch.func.functional_call(probe, values, (images,))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise wrong_size(image_size, error, backbone) from error
    seen = {name: computed.get(node, ()) for name, node in traced.nodes.items()}
    return {name: shape[1:] for name, shape in seen.items() if len(shape) > 1 and shape[0] == PROBE_BATCH}


def wrong_size(image_size: int, error: Exception, backbone: str = "This backbone") -> BackboneError:
    """Return the error for an image size that a network refuses."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BackboneError(
        f"{backbone} cannot take images of {image_size} x {image_size} pixels: {reason}.",
        "Leave --image-size out to use the size its weights were trained at.",
    )


def last_linear(traced: Traced) -> fx.Node | None:
    """Return the last linear layer of the network, or None if it has none (SqueezeNet)."""
    linear = [n for n in traced.nodes.values() if isinstance(traced.module(n), nn.Linear)]
    return linear[-1] if linear else None


def before_dropout(traced: Traced, node: fx.Node) -> fx.Node:
    """Go up from a node through dropout, which does nothing in evaluation mode."""
    while isinstance(traced.module(node), nn.Dropout) or node.target is nn.functional.dropout:
        node = node.all_input_nodes[0]
    return node


def channels_last(traced: Traced) -> set[fx.Node]:
    """Return the nodes whose maps are (B, H, W, C).

    Followed from layer to layer: convolutions and batch norm work on (B, C, H, W), linear layers and layer
    norm on the last dimension, a permutation moves the channels, all else keeps what it is given.
    """
    last: set[fx.Node] = set()
    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        if inputs and _ends_last(traced, node, inputs[0] in last):
            last.add(node)
    return last


def _ends_last(traced: Traced, node: fx.Node, before: bool) -> bool:
    module = traced.module(node)
    if isinstance(module, _LAST) or node.target in _LAST_FUNCTIONS:
        return True
    if isinstance(module, _FIRST) or node.target is nn.functional.conv2d:
        return False
    dims = _permutation(node, module)
    if len(dims) < 4:
        return before
    return dims[1] != len(dims) - 1 if before else dims[-1] == 1


def _permutation(node: fx.Node, module: nn.Module | None) -> tuple[int, ...]:
    """Return the order of dimensions a node permutes to, or () if it is no permutation."""
    if isinstance(module, torchvision.ops.Permute):
        return tuple(module.dims)
    if node.target not in ("permute", torch.permute):
        return ()
    given: Any = node.args[1:]
    dims = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
    return tuple(dim for dim in dims if isinstance(dim, int))


def cut(traced: Traced, nodes: Sequence[Node]) -> fx.GraphModule:
    """Return the network that computes the pooled rows of some nodes and nothing beyond the last of them.

    Each node is pooled right behind it, so its map is freed early and no layer that works in place
    changes what was read. The traced graph is used up; the modules are shared with the network.
    Its forward: (B, 3, S, S) float -> dict of node name to (B, D) float32.
    """
    last = channels_last(traced)
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    final = max(order[traced.nodes[node.name]] for node in nodes)
    rows: dict[str, fx.Node] = {}
    for node in nodes:
        at = traced.nodes[node.name]
        with traced.graph.inserting_after(at):
            arguments = (at, node.pool, at in last, order[at] < final)
            rows[node.name] = traced.graph.call_function(pool_rows, arguments)
    for output in [n for n in traced.graph.nodes if n.op == "output"]:
        traced.graph.erase_node(output)
    traced.graph.output(rows)
    # Left to itself torch keeps dropout, and all that feeds it, for the random numbers that it might draw.
    traced.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(traced.network, traced.graph)


def open_sequences(body: fx.GraphModule) -> int:
    """Replace every module that only calls its parts in turn by these calls, in place; return how many.

    torchvision's convolution, norm and activation in one is such a module; it is one node to whoever names
    nodes, and three to what follows here.
    """
    closed = [n for n in body.graph.nodes if n.op == "call_module" and _is_sequence(body, n)]
    for node in closed:
        value = node.args[0]
        parts: Any = body.get_submodule(str(node.target))
        for name in parts._modules:  # a part may stand in it twice
            with body.graph.inserting_before(node):
                value = body.graph.call_module(f"{node.target}.{name}", (value,))
        node.replace_all_uses_with(value)
        body.graph.erase_node(node)
    body.recompile()
    return len(closed)


def _is_sequence(body: fx.GraphModule, node: fx.Node) -> bool:
    module = body.get_submodule(str(node.target))
    plain = type(module).forward is nn.Sequential.forward and not node.kwargs
    return plain and len(node.args) == 1 and len(module) > 0  # type: ignore[arg-type]


def fold_batch_norm(body: fx.GraphModule) -> int:
    """Fold every batch norm that follows a convolution into it, in place; return how many.

    In evaluation mode a batch norm is a fixed scale and shift per channel, which the convolution can do.
    One whose convolution is read by something else (a node asked for) stays. The convolutions are replaced
    by new ones, so a network that shares them is not changed.
    """
    pairs = [(n.all_input_nodes[0], n) for n in body.graph.nodes if _is_batch_norm(body, n)]
    folded = [pair for pair in pairs if _foldable(body, *pair)]
    for conv_node, norm_node in folded:
        conv, norm = _modules(body, (conv_node, norm_node))
        _replace(body, str(conv_node.target), nn.utils.fuse_conv_bn_eval(conv, norm))
        norm_node.replace_all_uses_with(conv_node)
        body.graph.erase_node(norm_node)
    body.delete_all_unused_submodules()
    body.recompile()
    return len(folded)


def _is_batch_norm(body: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(body.get_submodule(str(node.target)), nn.BatchNorm2d)


def _foldable(body: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> bool:
    if conv.op != "call_module" or len(conv.users) > 1:
        return False
    once = sum(n.target in (conv.target, norm.target) for n in body.graph.nodes) == 2
    return once and isinstance(body.get_submodule(str(conv.target)), nn.Conv2d)


def _modules(body: fx.GraphModule, nodes: Iterable[fx.Node]) -> list[Any]:
    return [body.get_submodule(str(node.target)) for node in nodes]


def _replace(body: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(body.get_submodule(parent), name, module)


def cast(body: nn.Module, dtype: torch.dtype) -> None:
    """Cast a network's weights in place; its batch norms stay in float32."""
    for module in body.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
