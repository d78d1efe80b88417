"""Convolution, bias, addition and ReLU in one kernel: an fx pass over the cut network, for GPUs above all.

Between two convolutions a network reads and writes each map several times just to add a bias, a shortcut
and to cut off what is negative. cuDNN does all of it while the result of the convolution is still in
registers (`torch.cudnn_convolution_relu`, `torch.cudnn_convolution_add_relu`), without a compiler and
rounding once instead of up to three times. Where cuDNN refuses a shape, the same arithmetic runs in steps.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from featcache.backbones.pool_kernel import can_pool, max_pool

WIDE = 32  # channels; 8 and 16 took 8.0 and 6.6 us

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)
_RELUS = (functional.relu, torch.relu, functional.relu_, torch.relu_)


class FusedConvolution(nn.Module):
    """A convolution with bias, an addend if one is given, and ReLU: relu(conv(x) + bias + addend).

    Args:
        conv: its weight is shared, not copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        bias = conv.bias
        self.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]) if bias is None else bias.detach())
        self.bias.requires_grad_(False)
        self.stride, self.padding = conv.stride, tuple(int(side) for side in conv.padding)
        self.dilation, self.groups = conv.dilation, conv.groups
        self.refused, self.missing = False, 0

    def widen(self, channels: int) -> None:
        """Read images filled up with black channels, which change no sum, to so many."""
        self.missing = channels - self.weight.shape[1]
        wide = functional.pad(self.weight.detach(), (0, 0, 0, 0, 0, self.missing))
        self.weight = nn.Parameter(wide, requires_grad=False)

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return the map (B, C, H, W) of x; `addend` has its shape."""
        if self.missing:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.missing))
        if x.is_cuda and not self.refused and not self._spreads(x, addend):
            try:
                return self._in_one(x, addend)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # cuDNN has no such kernel for this shape, dtype or card
                self.refused = True
        return self._in_steps(x, addend)

    def _spreads(self, x: Tensor, addend: Tensor | None) -> bool:
        """Return whether an addend has another shape than the map, to be taken for that of the larger."""
        return addend is not None and addend.shape != self._shape(x)

    def _shape(self, x: Tensor) -> torch.Size:
        sides = zip(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        reached = (
            (side + 2 * pad - gap * (window - 1) - 1) // step + 1 for side, window, step, pad, gap in sides
        )
        return torch.Size((len(x), len(self.weight), *reached))

    def _in_one(self, x: Tensor, addend: Tensor | None) -> Tensor:
        places = (self.stride, self.padding, self.dilation, self.groups)
        if addend is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *places)
        return torch.cudnn_convolution_add_relu(x, self.weight, addend, 1.0, self.bias, *places)

    def _in_steps(self, x: Tensor, addend: Tensor | None) -> Tensor:
        places = (self.stride, self.padding, self.dilation, self.groups)
        out = functional.conv2d(x, self.weight, self.bias, *places)
        return (out if addend is None else added(out, addend)).relu_()


def added(out: Tensor, addend: Tensor) -> Tensor:
    """Return the sum; in the memory of `out` where it has its shape."""
    return out.add_(addend) if out.shape == addend.shape else out + addend


class Pooling(nn.Module):
    """The max pooling of a network, by one kernel where there is a GPU and Triton."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        self.places: dict[str, Any] = {name: getattr(pool, name) for name in names}
        self.refused = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map (B, C, H', W') of x (B, C, H, W)."""
        if not self.refused and can_pool(x, self.places):
            try:
                return max_pool(x, self.places)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a compiler raises anything: no C compiler, a card too old
                self.refused = True
        pooled: Tensor = functional.max_pool2d(x, **self.places)
        return pooled


def replace_pooling(body: fx.GraphModule) -> int:
    """Replace every max pooling of a cut network, in place; return how many."""
    found = 0
    for node in [node for node in body.graph.nodes if node.op == "call_module"]:
        module: Any = body.get_submodule(str(node.target))
        if type(module) is nn.MaxPool2d and not module.return_indices:
            node.target = f"pooling_{found}"
            body.add_submodule(node.target, Pooling(module))
            found += 1
    body.delete_all_unused_submodules()
    body.recompile()
    return found


def fuse(body: fx.GraphModule) -> int:
    """Replace every conv → relu and conv → add → relu of a cut network by one module; return how many.

    A convolution or sum that something else reads too, such as a node asked for, is left alone, and so is one
    before whose ReLU anything is changed in place: it might be what is read.
    """
    names = iter(range(len(body.graph.nodes)))
    found = 0
    for relu in [node for node in body.graph.nodes if _is_relu(body, node)]:
        source = relu.all_input_nodes[0]
        if _is_sum(source) and len(source.users) == 1:
            found += _fuse_sum(body, source, relu, names)
        elif _fits(body, source) and not _changed_between(body, source, relu):
            _put(body, source, relu, (), names)
            found += 1
    body.graph.lint()
    body.delete_all_unused_submodules()
    body.recompile()
    return found


def widen_first(body: fx.GraphModule) -> int:
    """Fill images up with black channels where the first layer is a dense 3 x 3; return in how many layers.

    The tensor cores of a GPU take channels by eights and more. For three of them cuDNN has but a slow kernel:
    measured on an H100 in bfloat16, 3 -> 64 at 224 x 224, 15.6 us an image, and 4.9 with 32 channels.
    """
    found = 0
    for module in body.modules():
        if isinstance(module, FusedConvolution) and _is_first(module):
            module.widen(WIDE)
            found += 1
    return found


def _is_first(module: FusedConvolution) -> bool:
    channels, *window = module.weight.shape[1:]
    dense = module.groups == 1 and tuple(module.stride) == (1, 1)
    return channels == len("RGB") and window == [3, 3] and dense


def _fuse_sum(body: fx.GraphModule, total: fx.Node, relu: fx.Node, names: Any) -> int:
    order = {node: place for place, node in enumerate(body.graph.nodes)}
    terms = [term for term in total.args if isinstance(term, fx.Node)]
    convolutions = [term for term in terms if _fits(body, term)]
    if len(terms) != 2 or terms[0] is terms[1] or not convolutions:
        return 0
    conv = max(convolutions, key=lambda node: order[node])  # the shortcut's own convolution comes first
    other = terms[0] if conv is terms[1] else terms[1]
    if _changed_between(body, conv, relu) or (_changes(body, total) and not _is_own(body, terms[0])):
        return 0
    _put(body, conv, relu, (other,), names)
    body.graph.erase_node(total)
    body.graph.erase_node(conv)
    return 1


def _is_own(body: fx.GraphModule, term: fx.Node) -> bool:
    """Return whether a map is a layer's own, and read but once: nobody sees it change."""
    if term.op != "call_module" or len(term.users) != 1:
        return False
    return isinstance(body.get_submodule(str(term.target)), nn.Conv2d | nn.BatchNorm2d | FusedConvolution)


def _put(
    body: fx.GraphModule, conv: fx.Node, relu: fx.Node, addends: tuple[fx.Node, ...], names: Any
) -> None:
    """Compute conv, addition and ReLU where the ReLU was."""
    name = f"fused_{next(names)}"
    module: Any = body.get_submodule(str(conv.target))
    body.add_submodule(name, FusedConvolution(module))
    with body.graph.inserting_before(relu):
        fused = body.graph.call_module(name, (conv.args[0], *addends))
    relu.replace_all_uses_with(fused)
    body.graph.erase_node(relu)
    if not addends:
        body.graph.erase_node(conv)


def _changed_between(body: fx.GraphModule, first: fx.Node, last: fx.Node) -> bool:
    """Return whether a node between two others, in the order of the graph, changes a map in place."""
    nodes = list(body.graph.nodes)
    return any(_changes(body, node) for node in nodes[nodes.index(first) + 1 : nodes.index(last)])


def _changes(body: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(
            bool(getattr(each, "inplace", False)) for each in body.get_submodule(str(node.target)).modules()
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") or node.target in _IN_PLACE
    return node.op in ("call_function", "call_method") and (in_place or bool(node.kwargs.get("inplace")))


def _is_relu(body: fx.GraphModule, node: fx.Node) -> bool:
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        return isinstance(body.get_submodule(str(node.target)), nn.ReLU)
    return (node.op == "call_function" and node.target in _RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def _is_sum(node: fx.Node) -> bool:
    # Of a sum with a factor (`alpha`), or one of a map and a number, nothing is fused.
    plain = len(node.args) == 2 and not node.kwargs
    return plain and node.op == "call_function" and node.target in _ADDITIONS


def _fits(body: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or len(node.users) != 1 or len(node.args) != 1:
        return False
    module = body.get_submodule(str(node.target))
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
