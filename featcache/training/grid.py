"""A grid of a head's options, read from text: which values each option takes, and every combination."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.errors import HeadError, OptionError, unknown
from featcache.heads.catalogue import options
from featcache.heads.options import Option


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, or all whole ones; a search draws from it.

    Where both ends are positive and a hundredfold apart, it is looked at on a logarithmic scale.
    """

    low: float
    high: float
    whole: bool = False

    @property
    def log(self) -> bool:
        """Whether the scale is logarithmic."""
        return self.low > 0 and self.high >= 100 * self.low

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, {'logarithmic' if self.log else 'linear'} scale"

    def at(self, share: float) -> float:
        """Return the number at a share, 0..1, of the way from one end to the other."""
        if self.log:
            return self.tidy(math.exp(math.log(self.low) + share * math.log(self.high / self.low)))
        return self.tidy(self.low + share * (self.high - self.low))

    def tidy(self, value: float) -> float:
        """Return the number rounded to four digits, or to a whole one, within the range."""
        rounded = round(value) if self.whole else float(f"{value:.4g}")
        return min(max(rounded, self.low), self.high)


Grid = Mapping[str, Sequence[Any] | Range]


def parse(kind: str, texts: Sequence[str]) -> dict[str, tuple[Any, ...] | Range]:
    """Return the values of each option of a kind of head from texts such as "lr=1e-4,1e-3".

    Two dots make a range to search in: "lr=1e-5..1e-2".

    Values stand between commas. Where a value holds commas itself, a slash stands between the values:
    "hidden=50,20/128,64" is (50, 20) and (128, 64), "hidden=50,20" the one value (50, 20). Values that occur
    twice are taken once; "none" is None.

    Raises:
        HeadError: the kind or an option is unknown, or a value has the wrong type or range.
        OptionError: a text is not of that form, or an option is given twice.
    """
    known = options(kind)
    grid: dict[str, tuple[Any, ...] | Range] = {}
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
        if ".." in values:
            grid[name] = _range(kind, name, known[name], values)
        else:
            grid[name] = tuple(_distinct(_values(kind, name, known[name], values)))
    return grid


def ranges(grid: Grid) -> dict[str, Range]:
    """Return those options of a grid that have a range."""
    return {name: values for name, values in grid.items() if isinstance(values, Range)}


def drawn(grid: Grid, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` different points of a grid with ranges, drawn evenly, the same ones each time.

    There may be fewer, where there are few different ones (Bergstra & Bengio, JMLR 2012).
    """
    rng = random.Random(seed)
    points: list[dict[str, Any]] = []
    for _ in range(100 * count):
        point = {
            name: values.at(rng.random()) if isinstance(values, Range) else rng.choice(values)
            for name, values in grid.items()
        }
        if point not in points:
            points.append(point)
        if len(points) == count:
            break
    return points


def combinations(
    grid: Mapping[str, Sequence[Any]], at_most: int | None = None, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values, the last option's values changing fastest.

    With `at_most` so many are drawn evenly without replacement, the same ones each time, and come in that
    order too (random search over a grid: Bergstra & Bengio, JMLR 2012).
    """
    size = math.prod(len(values) for values in grid.values())
    chosen: Iterable[int] = range(size)
    if at_most is not None and at_most < size:
        chosen = sorted(random.Random(seed).sample(range(size), at_most))
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


def _range(kind: str, name: str, option: Option, text: str) -> Range:
    low, high = (_value(kind, name, option, part) for part in text.split("..", 1))
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, (int, float)):
            raise OptionError(f"{name} has no ranges: {end!r} is no number.", f"Give values: {name}=…,….")
    if not low < high:
        raise OptionError(f"The range {name}={text} ends before it begins.", f"Write {name}=low..high.")
    return Range(low, high, whole=not option.accepts(math.floor(low) + 0.5))


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
