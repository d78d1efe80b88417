"""A grid of a head's options, read from text: which values each option takes, and every combination."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from featcache.errors import HeadError, OptionError, unknown
from featcache.heads.catalogue import options
from featcache.heads.options import Option

Grid = Mapping[str, Sequence[Any]]


def parse(kind: str, texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each option of a kind of head from texts such as "lr=1e-4,1e-3".

    Values stand between commas. Where a value holds commas itself, a slash stands between the values:
    "hidden=50,20/128,64" is (50, 20) and (128, 64), "hidden=50,20" the one value (50, 20). Values that occur
    twice are taken once; "none" is None.

    Raises:
        HeadError: the kind or an option is unknown, or a value has the wrong type or range.
        OptionError: a text is not of that form, or an option is given twice.
    """
    known = options(kind)
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise OptionError(
                f"Cannot read the grid {text!r}.", "Write it as name=value,value: lr=1e-4,1e-3."
            )
        if name not in known:
            raise unknown(f"option of head {kind!r}:", name, known, HeadError)
        if name in grid:
            raise OptionError(f"The grid names {name} twice.", f"Put all its values in one: {name}=…,….")
        grid[name] = tuple(_distinct(_values(kind, name, known[name], values)))
    return grid


def combinations(grid: Grid, at_most: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values, the last option's values changing fastest.

    With `at_most` so many are drawn evenly without replacement, the same ones each time, and come in that
    order too (random search over a grid: Bergstra & Bengio, JMLR 2012).
    """
    size = math.prod(len(values) for values in grid.values())
    chosen: Iterable[int] = range(size)
    if at_most is not None and at_most < size:
        chosen = sorted(random.Random(0).sample(range(size), at_most))
    for number in chosen:
        point: dict[str, Any] = {}
        for name, values in reversed(list(grid.items())):
            number, at = divmod(number, len(values))
            point[name] = values[at]
        yield {name: point[name] for name in grid}


def text_of(value: object) -> str:
    """Return a value as `parse` reads it: 50,20 for (50, 20), none for None."""
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return ",".join(text_of(item) for item in value)
    return str(value)


def _values(kind: str, name: str, option: Option, text: str) -> Iterator[Any]:
    if "/" in text:
        for part in text.split("/"):
            yield _value(kind, name, option, part)
        return
    single = [_read(part) for part in text.split(",")]
    if all(option.accepts(value) for value in single):
        yield from single
    else:
        yield _value(kind, name, option, text)


def _value(kind: str, name: str, option: Option, text: str) -> Any:
    """Return one value: a plain one, or where the option wants it a tuple."""
    plain, several = _read(text), tuple(_read(part) for part in text.split(",") if part.strip())
    for value in (plain, several):
        if option.accepts(value):
            return value
    raise HeadError(
        f"Option {name} of head {kind!r} cannot be {_culprit(option, several, plain)!r}: "
        f"expected {option.expected}.",
        f"{option.help}.",
    )


def _culprit(option: Option, several: tuple[Any, ...], plain: Any) -> Any:
    if any(option.accepts(value) for value in several):
        return next((value for value in several if not option.accepts(value)), plain)
    return several if len(several) > 1 else plain


def _read(text: str) -> Any:
    stripped = text.strip()
    if stripped.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(stripped)
        except ValueError:
            continue
    return stripped


def _distinct(values: Iterator[Any]) -> Iterator[Any]:
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
            yield value
