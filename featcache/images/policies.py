"""What augmented views are made by: named policies, or steps from a fixed list in a small file.

A policy is a list of steps, each a mapping with its `name` and all of its parameters, as it stands in the
recipe. A file holds names and numbers, never code. Light: nothing of torch is imported.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import OptionError, unknown
from featcache.recipe import canonical_json

Policy = tuple[dict[str, Any], ...]
MOST_STEPS = 20
MOST_BYTES = 1 << 16
FILE_KEY = "step"


@dataclass(frozen=True)
class Parameter:
    """A step's parameter: its value where none is given, what it accepts, and that in words."""

    default: Any
    accepts: Callable[[Any], bool]
    expected: str


def _number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _real(default: float, least: float, most: float) -> Parameter:
    expected = f"a number from {least:g} to {most:g}"
    return Parameter(default, lambda value: _number(value, least, most), expected)


def _whole(default: int, least: int, most: int) -> Parameter:
    expected = f"a whole number from {least} to {most}"
    return Parameter(default, lambda value: type(value) is int and least <= value <= most, expected)


def _pair(default: list[float], least: float, most: float) -> Parameter:
    def accepts(value: Any) -> bool:
        pair = type(value) is list and len(value) == 2 and all(_number(v, least, most) for v in value)
        return pair and value[0] <= value[1]

    return Parameter(default, accepts, f"two numbers from {least:g} to {most:g}, the smaller one first")


def _one_of(*names: str) -> Parameter:
    return Parameter(names[0], lambda value: value in names, f"one of {', '.join(names)}")


STEPS: dict[str, dict[str, Parameter]] = {
    "flip": {"p": _real(0.5, 0, 1)},
    "vertical-flip": {"p": _real(0.5, 0, 1)},
    "crop": {"scale": _pair([0.5, 1.0], 0.01, 1), "ratio": _pair([0.75, 4 / 3], 0.1, 10)},
    "jitter": {
        "brightness": _real(0.4, 0, 1),
        "contrast": _real(0.4, 0, 1),
        "saturation": _real(0.4, 0, 1),
        "hue": _real(0.1, 0, 0.5),
    },
    "grey": {"p": _real(0.2, 0, 1)},
    "blur": {"kernel": _whole(5, 1, 101), "sigma": _pair([0.1, 2.0], 0.01, 100)},
    "rotate": {"degrees": _real(15, 0, 180)},
    "autoaugment": {"policy": _one_of("imagenet", "cifar10", "svhn")},
    "randaugment": {"num_ops": _whole(2, 1, 10), "magnitude": _whole(9, 0, 30)},
    "trivialaugment": {},
}
"""Every step that there is, with its parameters."""

RESIZING = {"crop"}
"""Steps behind which an image has another size."""

NAMED: dict[str, list[dict[str, Any]]] = {
    "flip": [{"name": "flip", "p": 1.0}],
    "crop": [{"name": "crop"}, {"name": "flip"}],
    "jitter": [{"name": "jitter"}, {"name": "flip"}],
    "autoaugment": [{"name": "flip"}, {"name": "autoaugment"}],
    "randaugment": [{"name": "flip"}, {"name": "randaugment"}],
    "trivialaugment": [{"name": "flip"}, {"name": "trivialaugment"}],
}
"""Policies by name. A mirror image is one other view: "flip" always takes it."""


def policy_of(text: str) -> Policy:
    """Return the policy of a name, or of the JSON text that `text_of` gives.

    Raises:
        OptionError: there is no such policy or step, or a parameter is unknown or out of range.
    """
    if text in NAMED:
        return checked(NAMED[text])
    if not text.lstrip().startswith("["):
        known = (*NAMED, "or a file that ends in .toml or .json")
        raise OptionError(f"Unknown augmentation {text!r}.", f"Known: {', '.join(known)}.")
    try:
        return checked(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise OptionError(f"The augmentation is no list of steps: {error}.") from error


def text_of(augment: str) -> str:
    """Return an augmentation as a request holds it: a name as it is, a file as the text of its steps.

    Raises:
        OptionError: the file cannot be read, or `policy_of` refuses what is in it.
    """
    if Path(augment).suffix.lower() not in (".toml", ".json"):
        policy_of(augment)
        return augment
    return canonical_json(list(checked(_steps(Path(augment).expanduser()))))


def checked(steps: Any) -> Policy:
    """Return steps with all of their parameters, each checked.

    Raises:
        OptionError: naming the step, the parameter, what was expected and what was given.
    """
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not 1 <= len(steps) <= MOST_STEPS:
        raise OptionError(f"An augmentation is a list of 1 to {MOST_STEPS} steps.", _example())
    return tuple(_step(step) for step in steps)


def keeps_size(policy: Policy) -> bool:
    """Return whether views have the size of their image."""
    return not any(step["name"] in RESIZING for step in policy)


def draws(policy: Policy) -> bool:
    """Return whether views of one image can differ from each other."""
    return any(set(step) != {"name", "p"} or 0 < step["p"] < 1 for step in policy)


def _step(step: Any) -> dict[str, Any]:
    if not isinstance(step, Mapping) or not isinstance(step.get("name"), str):
        raise OptionError(f"A step of an augmentation needs a name, got {step!r}.", _example())
    name = step["name"]
    if name not in STEPS:
        raise unknown("step of an augmentation:", name, STEPS)
    whole: dict[str, Any] = {"name": name}
    for given in step:
        if given not in ("name", *STEPS[name]):
            raise unknown(f"parameter of the step {name!r}:", given, STEPS[name])
    for key, parameter in STEPS[name].items():
        value = step.get(key, parameter.default)
        if not parameter.accepts(value):
            raise OptionError(
                f"{key} of the step {name!r} cannot be {value!r}: expected {parameter.expected}."
            )
        whole[key] = value
    if name == "blur" and whole["kernel"] % 2 == 0:
        raise OptionError(f"kernel of the step 'blur' must be odd, got {whole['kernel']}.")
    return whole


def _steps(path: Path) -> Any:
    """Return the steps in a file, unchecked."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise OptionError(f"Cannot read the augmentation {path}: {error.strerror or error}.") from error
    if len(data) > MOST_BYTES:
        raise OptionError(f"The augmentation {path} is larger than {MOST_BYTES} bytes.")
    try:
        text = data.decode("utf-8")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"The augmentation {path} cannot be read: {error}.", _example()) from error
    if isinstance(found, dict):
        if set(found) != {FILE_KEY}:
            raise OptionError(f"The augmentation {path} holds {sorted(found)}, expected steps.", _example())
        return found[FILE_KEY]
    return found


def _example() -> str:
    return 'For example: [[step]] name = "crop" scale = [0.5, 1.0], then [[step]] name = "flip".'
