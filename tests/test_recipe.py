from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from featcache.errors import FormatError
from featcache.recipe import Decoding, Node, Preprocess, Recipe, Views, Weights, differences
from tests.kit_caches import recipe

CHANGED: dict[str, Any] = {
    "backbone": "vgg16",
    "weights": Weights("random:0", "1" * 64),
    "nodes": (Node("layer4", "avg"),),
    "preprocess": Preprocess("squash", 256, 224),
    "decoding": Decoding(alpha="over-black"),
    "precision": "bf16",
    "store_dtype": "float32",
    "format": 2,
    "views": Views(2, ({"name": "flip", "p": 1.0},)),
}


def test_every_field_is_in_the_fingerprint() -> None:
    base = recipe()
    assert set(CHANGED) == {field.name for field in fields(Recipe)}
    prints = {replace(base, **{name: value}).fingerprint for name, value in CHANGED.items()}
    assert len(prints | {base.fingerprint}) == len(CHANGED) + 1


@pytest.mark.parametrize("name", [field.name for field in fields(Preprocess)])
def test_every_field_of_the_preprocessing_is_in_the_fingerprint(name: str) -> None:
    base = recipe()
    value = getattr(base.preprocess, name)
    other = {int: 7, str: "bicubic", tuple: (0.1, 0.2, 0.3)}[type(value)]
    changed = replace(base, preprocess=replace(base.preprocess, **{name: other}))
    assert changed.fingerprint != base.fingerprint


def test_the_fingerprint_is_stable() -> None:
    # If this changes, every cache in the world misses: raise the format instead.
    assert recipe().fingerprint == Recipe.from_dict(recipe().to_dict()).fingerprint
    assert recipe().fingerprint[:16] == "365cd98ec0f82857"


@pytest.mark.parametrize("name", [field.name for field in fields(Views)])
def test_every_field_of_the_views_is_in_the_fingerprint(name: str) -> None:
    views = Views(5, ({"name": "flip", "p": 0.5},))
    other = {"count": 4, "policy": ({"name": "flip", "p": 0.4},), "seed": 1, "of": "all"}
    assert set(other) == {field.name for field in fields(Views)}
    changed = replace(recipe(), views=replace(views, **{name: other[name]}))
    assert changed.fingerprint != replace(recipe(), views=views).fingerprint


def test_differences_name_the_field_and_both_values() -> None:
    a, b = recipe().to_dict(), asdict(replace(recipe(), preprocess=Preprocess("auto", 224, 224)))
    assert "preprocess.resize: 256 → 224" in differences(a, b)


def test_an_unknown_format_is_refused_with_both_numbers() -> None:
    with pytest.raises(FormatError, match=r"Unknown format 4 .* reads formats 1, 2 and 3"):
        Recipe.from_dict({**recipe().to_dict(), "format": 4})


def test_an_unexpected_field_is_refused() -> None:
    with pytest.raises(FormatError, match="colour"):
        Recipe.from_dict({**recipe().to_dict(), "colour": 1})
