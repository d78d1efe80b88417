"""Which parts of a network learn: all, the head alone, or the head and the body's last block."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from featcache.heads.state import LayerRow

DOMINANT = 0.8  # a part with so large a share of the parameters is looked into
LAST = 0.05  # the share of the body's parameters that a last block has at least


def groups(module: nn.Module) -> list[str]:
    """Return the names of a network's blocks in order: its parts, or those of a part that is most of it.

    Parts without parameters are left out.
    """
    parts = {name: _count(part) for name, part in module.named_children() if _count(part)}
    found: list[str] = []
    for name, count in parts.items():
        part = module.get_submodule(name)
        inner = groups(part) if count >= DOMINANT * _count(module) else []
        found += [f"{name}.{each}" for each in inner] or [name]
    return found


def last_blocks(body: nn.Module) -> list[str]:
    """Return the last of the blocks of a body, as many as hold a twentieth of its parameters."""
    chosen: list[str] = []
    wanted = LAST * _count(body)
    for name in reversed(groups(body)):
        chosen.insert(0, name)
        if sum(_count(body.get_submodule(each)) for each in chosen) >= wanted:
            break
    return chosen


def choose(body: nn.Module, head: nn.Module, train: str) -> list[nn.Module]:
    """Let only the parts that should learn learn; return the parts that do not.

    "all", "last-block" (the head and `last_blocks`) or "head". Batch norms of parts that do not learn should
    be left in evaluation mode, so that their statistics stay as well.
    """
    head.requires_grad_(True)
    if train == "head":
        return [body.requires_grad_(False)]
    learning = groups(body) if train == "all" else last_blocks(body)
    body.requires_grad_(train == "all")  # a body's own parameters, as a ViT's class token, are in no block
    for name in learning:
        body.get_submodule(name).requires_grad_(True)
    return [body.get_submodule(name) for name in groups(body) if name not in learning]


def layer_rows(parts: Iterable[tuple[str, nn.Module]]) -> list[LayerRow]:
    """Return the table of the blocks of some parts, each with its trainable and frozen parameters."""
    rows = []
    for part, module in parts:
        for name in groups(module):
            block = module.get_submodule(name)
            learned = sum(p.numel() for p in block.parameters() if p.requires_grad)
            shapes = [tuple(p.shape) for p in block.parameters()]
            kind = type(block).__name__
            kind = "block" if kind == "Module" else kind  # tracing forgets what a block was
            shape = shapes[0] if len(list(block.children())) == 0 else ()
            rows.append(LayerRow(f"{part}.{name}", kind, shape, learned, _count(block) - learned))
    return rows


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
