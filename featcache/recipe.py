"""The recipe: everything a feature depends on, as plain values, and its fingerprint.

Not in it, because they must not change a feature: paths, modification times, batch size, workers,
device, runtime. Library versions are recorded beside it, not hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featcache.errors import FormatError

FORMAT = 1
QUANTISED = 2
"""The format of caches in int8, which hold arrays that readers of format 1 would take for damage."""

VIEWED = 3
"""The format of caches with augmented views, whose features have an axis that older readers do not know."""

FORMATS = (FORMAT, QUANTISED, VIEWED)
VIEWS_OF = ("train", "all")
MOST_VIEWS = 1000
ITEMSIZES = {"float16": 2, "float32": 4, "int8": 1}
"""Stored dtype → bytes a feature."""


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, no NaN or infinity.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: object) -> str:
    """Return the sha256 of a value's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Weights:
    """Which weights: the resolved name and the sha256 of the content of all tensors."""

    name: str  # "ResNet18_Weights.IMAGENET1K_V1", "random:0" or "file"; never DEFAULT, never a path
    sha256: str


@dataclass(frozen=True)
class Decoding:
    """How bytes become RGB pixels; each value names a rule, see `featcache.images.decode`."""

    decoder: str = "pillow"
    grey: str = "repeat"
    depth16: str = "scale"
    alpha: str = "over-white"
    orientation: str = "exif"
    max_pixels: int = 50_000_000  # larger images count as unreadable


@dataclass(frozen=True)
class Preprocess:
    """How RGB pixels become the backbone's input; sizes in pixels, mean and std of pixels scaled to 0..1."""

    mode: (
        str  # "squash": to (crop, crop); "weights": shorter side to `resize`, centre crop; "auto": see below
    )
    resize: int
    crop: int
    interpolation: str = "bilinear"  # Pillow's, with antialiasing
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    # "auto" squashes an image whose two sides are both smaller than the crop and treats others as "weights".

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocess:
        """Return it from plain values, as JSON has them.

        Raises:
            KeyError, TypeError: one is missing, unknown or of another kind.
        """
        return cls(**{**plain, "mean": tuple(plain["mean"]), "std": tuple(plain["std"])})


@dataclass(frozen=True)
class Node:
    """Where in the backbone a feature is read, and how a map is pooled to a row."""

    name: str
    pool: str  # "flatten", "avg", "max", "gem" or "avg:S" (adaptive average to S x S, then flatten)


@dataclass(frozen=True)
class Views:
    """Augmented views of an image: view 0 is the image itself, the others are drawn by a policy.

    A view is a function of image, policy, `seed`, the sample's id and the view's number, so that neither
    `count` nor `of` changes any view that there is.
    """

    count: int  # with view 0, at least 2
    policy: tuple[dict[str, Any], ...]  # steps, see `featcache.images.policies`
    seed: int = 0
    of: str = "train"  # which stored splits have views: "train", or "all"

    def same_draws(self, other: Views) -> bool:
        """Return whether views of one number are the same in both."""
        return (self.policy, self.seed) == (other.policy, other.seed)


@dataclass(frozen=True)
class Recipe:
    """All that a feature depends on besides the image itself."""

    backbone: str
    weights: Weights
    nodes: tuple[Node, ...]
    preprocess: Preprocess
    decoding: Decoding = Decoding()
    precision: str = "fp32"
    store_dtype: str = "float16"
    format: int = FORMAT
    views: Views | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values; without views it says nothing of them."""
        plain: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        if self.views is None:
            del plain["views"]
        return plain

    def views_in(self, split: str) -> int:
        """Return how many views a row of a stored split holds, 1 where there are none."""
        if self.views is None or (self.views.of == "train" and split != "train"):
            return 1
        return self.views.count

    @property
    def fingerprint(self) -> str:
        """The sha256 of the canonical JSON, 64 hexadecimal digits."""
        return sha256_of(self.to_dict())

    @property
    def row_dtype(self) -> str:
        """The dtype of the rows a cache is given to store; int8 is made of whole shards of float32."""
        return "float32" if self.store_dtype == "int8" else self.store_dtype

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_dict`.

        Raises:
            FormatError: the format is unknown, or a field is missing or unexpected.
        """
        check_format(plain.get("format"), "recipe")
        try:
            values = dict(plain)
            values["weights"] = Weights(**values["weights"])
            values["nodes"] = tuple(Node(**node) for node in values["nodes"])
            values["preprocess"] = Preprocess.from_dict(values["preprocess"])
            values["decoding"] = Decoding(**values["decoding"])
            values["views"] = None if values.get("views") is None else _views(values["views"])
            recipe = cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"The recipe is not one of a known format: {error}.") from error
        if recipe.format != format_of(recipe.store_dtype, recipe.views):
            views = "" if recipe.views is None else " with views"
            raise FormatError(
                f"A recipe of format {recipe.format} cannot store {recipe.store_dtype!r}{views}."
            )
        return recipe


def _views(plain: Mapping[str, Any]) -> Views:
    """Return views from plain values, which may come from anyone.

    Raises:
        TypeError, ValueError: a field is missing, unexpected or not what it must be.
    """
    found = Views(**{**plain, "policy": tuple(plain["policy"])})
    numbers = type(found.count) is int and type(found.seed) is int and 2 <= found.count <= MOST_VIEWS
    steps = len(found.policy) > 0 and all(type(step) is dict for step in found.policy)
    if not (numbers and steps and found.of in VIEWS_OF):
        raise ValueError("its views are not what they must be")
    return found


def format_of(store_dtype: str, views: Views | None = None) -> int:
    """Return the oldest format that can hold these rows: plain floats stay readable for every version."""
    if views is not None:
        return VIEWED
    return QUANTISED if store_dtype == "int8" else FORMAT


def check_format(got: object, where: str) -> None:
    """Refuse a format number this version does not know.

    Raises:
        FormatError: naming the number found and those known.
    """
    if type(got) is not int or got not in FORMATS:
        known = f"{', '.join(map(str, FORMATS[:-1]))} and {FORMATS[-1]}"
        raise FormatError(
            f"Unknown format {got!r} in {where}: this featcache reads formats {known}.",
            "A newer featcache may read it: pip install --upgrade featcache.",
        )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line per field that differs: "preprocess.resize: 256 → 224" (ours → theirs)."""
    lines: list[str] = []
    for key in sorted(set(ours) | set(theirs)):
        a, b, name = ours.get(key), theirs.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {_short(a)} → {_short(b)}")
    return lines


def _short(value: object) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}…"  # a hash
    return text if len(text) <= 120 else f"{text[:119]}…"
