"""The options of a head, declared once: type, range and meaning, for checks, help texts and searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real

from featcache.errors import HeadError


@dataclass(frozen=True)
class Option:
    """One option: `accepts` says whether a value can be used, `expected` says it in words."""

    expected: str
    help: str
    accepts: Callable[[object], bool]


_MOST = 1 << 63  # what torch and numpy take as an integer


def number(
    help: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    or_none: bool = False,
) -> Option:
    """Return an option for a finite number with `least` <= value, `above` < value and value < `below`."""

    def accepts(value: object) -> bool:
        """Return whether a value lies within the bounds."""
        if value is None:
            return or_none
        real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        return real and least <= float(value) < below and float(value) > above  # type: ignore[arg-type]

    parts = [f"at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
    parts += [f"below {below:g}"] * (below < math.inf)
    return Option(f"a number {' and '.join(parts)}".rstrip() + " or None" * or_none, help, accepts)


def whole(help: str, *, least: int, or_none: bool = False) -> Option:
    """Return an option for an integer of at least `least`."""

    def accepts(value: object) -> bool:
        if value is None:
            return or_none
        return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < _MOST

    return Option(f"an integer of at least {least}" + " or None" * or_none, help, accepts)


def choice(help: str, *names: str) -> Option:
    """Return an option for one of some names."""
    return Option(f"one of {', '.join(names)}", help, lambda value: isinstance(value, str) and value in names)


def per_layer(help: str, each: Option, *, or_one: bool = False) -> Option:
    """Return an option for a tuple or list with a value for each layer, or (`or_one`) one value for all."""

    def accepts(value: object) -> bool:
        if isinstance(value, (tuple, list)):
            return all(each.accepts(item) for item in value)
        return or_one and each.accepts(value)

    return Option(f"a tuple, each {each.expected}" + ", or one for all" * or_one, help, accepts)


def check(kind: str, options: Mapping[str, Option], values: Mapping[str, object]) -> None:
    """Refuse the first value that its option does not accept.

    Raises:
        HeadError: naming the option, what was expected and what was given.
    """
    for name, value in values.items():
        option = options[name]
        if not option.accepts(value):
            raise HeadError(
                f"Option {name} of head {kind!r} cannot be {value!r}: expected {option.expected}.",
                f"{option.help}.",
            )
