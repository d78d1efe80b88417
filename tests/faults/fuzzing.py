"""Inputs by the thousand: good ones changed at random, by bytes and by their structure."""

from __future__ import annotations

import random
from typing import Any

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e300,
    "",
    "x",
    "\0",
    "\ud800",
]
ODD += [
    "../x",
    "0" * 64,
    "float16",
    "f" * 2000,
    [],
    {},
    [[]],
    [0],
    [[0, "x"]],
    {"": 0},
    ["a"] * 50,
    {"a": {"b": []}},
]


def changed_bytes(data: bytes, rng: random.Random, head: int = 0) -> bytes:
    """Return data with a few changes of bytes; most of them in the first `head`, where the structure is."""
    harmed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not harmed:
            return bytes(harmed)
        end = min(len(harmed), head) if head and rng.random() < 0.9 else len(harmed)
        at, kind = rng.randrange(end), rng.randrange(8)
        if kind <= 2:
            harmed[at] ^= 1 << rng.randrange(8)
        elif kind <= 4:
            harmed[at] = rng.choice((0, 1, 2, 4, 8, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
        elif kind == 5:
            harmed[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8)))
        elif kind == 6:
            other = rng.randrange(end)
            harmed[at : at + 16] = harmed[other : other + 16]
        else:
            del harmed[at : at + rng.choice((1, 8, 512))]
    return bytes(harmed)


def changed_value(value: Any, rng: random.Random) -> Any:
    """Return JSON with one of its values, keys or lists changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        kind, found = rng.randrange(10), dict(value)
        if kind == 0:
            found[rng.choice(("x", "", key + " ", "__class__"))] = found.pop(key)
        elif kind == 1:
            del found[key]
        else:
            found[key] = changed_value(value[key], rng)
        return found
    if isinstance(value, list) and value and rng.random() < 0.8:
        at, kind = rng.randrange(len(value)), rng.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, *value]
        return [*value[:at], changed_value(value[at], rng), *value[at + 1 :]]
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2**32, -value * 2))
    if type(value) is str and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "/", "é", "0", "\n", "..")) + value[at + 1 :]
    return rng.choice(ODD)
