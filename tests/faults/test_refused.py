"""Features are never reused after something changed, and no head takes features it was not trained on."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import CacheError, HeadError
from featcache.heads import saving
from featcache.recipe import Decoding, Node, Preprocess, Recipe, Views, Weights, format_of
from featcache.store.cache import Cache
from featcache.store.records import cache_key
from featcache.training import runs
from featcache.training.evaluate import evaluate
from tests.faults import hashing, toys
from tests.faults.trials import draw, numbers, tally

REUSE = "Features are never reused after weights, preprocessing, data, node or dtype changed"
FOREIGN = "A head refuses features, classes or a backbone it was not trained on"
BACKBONES = ("vgg16", "resnet18", "squeezenet1_1", "vit_b_16", "convnext_tiny")


def _changed(value: Any) -> Any:
    if isinstance(value, str):
        return "all" if value == "train" else value + "x"
    if isinstance(value, dict):
        return {**value, "p": 0.25}
    if isinstance(value, tuple):
        return (*value[:-1], _changed(value[-1]))
    return value + 1


def _neighbours(value: Any) -> list[tuple[str, Any]]:
    """Return the value with each of its leaves changed in turn, however deep."""
    found = []
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            found += [(f"{field.name}.{n}", replace(value, **{field.name: v})) for n, v in _neighbours(inner)]
        elif isinstance(inner, tuple) and is_dataclass(inner[0]):
            for name, one in _neighbours(inner[0]):
                found.append((f"{field.name}.{name}", replace(value, **{field.name: (one, *inner[1:])})))
            found.append((field.name, replace(value, **{field.name: (*inner, inner[0])})))
        else:
            found.append((field.name, replace(value, **{field.name: _changed(inner)})))
    return found


def test_every_field_of_the_recipe_changes_the_key(place: Path) -> None:
    hashing.photos(place / "photos", 12, 0)
    data = hashing.dataset(place / "photos")
    with tally(REUSE, "every field of the recipe changed in turn, of 5 backbones") as found:
        for backbone in BACKBONES:
            recipe = Recipe(
                backbone,
                Weights("ResNet18_Weights.IMAGENET1K_V1", "0" * 64),
                (Node("flatten", "flatten"), Node("avgpool", "avg")),
                Preprocess("auto", 256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                Decoding(),
                views=Views(3, ({"name": "flip", "p": 0.5},), 1),
                format=format_of("float16", Views(3, ({"name": "flip", "p": 0.5},), 1)),
            )
            first = hashing.cache(place / backbone, data, recipe=recipe)
            assert len(_neighbours(recipe)) >= 20
            for name, other in _neighbours(recipe):
                assert other.fingerprint != recipe.fingerprint, name
                assert cache_key(other.fingerprint, data.fingerprint) != first.key
                assert name == "format" or other == Recipe.from_dict(other.to_dict())
                found.add("another key")
        for folder in place.glob("*/photos--hash--*"):
            with pytest.raises(CacheError, match="holds another cache"):
                Cache.create(folder, {**Cache(folder).record, "key": "f" * 64}, Cache(folder).plan)


def _byte(folder: Path, rng: Any) -> None:
    """Change one byte of one image, and lie about its times."""
    path = rng.choice(sorted(folder.rglob("*.png")))
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _swap(folder: Path, rng: Any) -> None:
    """Give two images each other's content."""
    a, b = rng.sample(sorted(folder.rglob("*.png")), 2)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def _rename(folder: Path, rng: Any) -> None:
    """Rename one image."""
    path = rng.choice(sorted(folder.rglob("*.png")))
    path.rename(path.with_name(f"z{path.name}"))


def _relabel(folder: Path, rng: Any) -> None:
    """Move one image to another class or split."""
    path = rng.choice(sorted(folder.rglob("*.png")))
    others = sorted(each for each in folder.glob("*/*") if each != path.parent)
    path.rename(rng.choice(others) / path.name)


def _remove(folder: Path, rng: Any) -> None:
    """Remove one image."""
    rng.choice(sorted(folder.rglob("*.png"))).unlink()


def _class(folder: Path, rng: Any) -> None:
    """Rename a class."""
    for split in ("train", "test"):
        if (folder / split / "bee").exists():
            (folder / split / "bee").rename(folder / split / "wasp")


def test_every_change_of_the_data_changes_the_key(place: Path) -> None:
    hashing.photos(place / "photos", 60, 0)
    key = hashing.dataset(place / "photos").fingerprint
    with tally(REUSE, "one byte, two files, a name, a label, a class changed") as found:
        for trial in numbers(30, 1000):
            rng, here = draw("data", trial), place / f"copy{trial}"
            shutil.copytree(place / "photos", here)
            assert hashing.dataset(here).fingerprint == key  # another parent, other times and inodes
            change = rng.choice((_byte, _swap, _rename, _relabel, _remove, _class))
            change(here, rng)
            assert hashing.dataset(here).fingerprint != key, change.__name__
            found.add("another key; a copy in another folder the same one")
            shutil.rmtree(here)


def test_heads_refuse_what_they_were_not_trained_on(place: Path) -> None:
    cache = toys.start(place)
    toys.commit_all(cache)
    head = saving.context_of(toys.head_bytes(cache))
    right = {"fingerprint": cache.recipe.fingerprint, "node": "flatten", "columns": toys.WIDTH}
    names = ["ape", "bee", "cat"]
    saving.check_fit(head, **right, classes=names)  # type: ignore[arg-type]
    with tally(FOREIGN, "other fingerprint, node, D; classes permuted, dropped, renamed, added") as found:
        for trial in numbers(100, 1000):
            rng = draw("foreign", trial)
            classes, given = list(names), dict(right)
            kind = rng.randrange(7)
            if kind == 0:
                while classes == names:
                    rng.shuffle(classes)
            elif kind == 1:
                classes.pop(rng.randrange(3))
            elif kind == 2:
                classes[rng.randrange(3)] += rng.choice("xyz ")
            elif kind == 3:
                classes.insert(rng.randrange(4), "dog")
            elif kind == 4:
                digit = rng.randrange(64)
                text = str(right["fingerprint"])
                given["fingerprint"] = text[:digit] + ("0" if text[digit] != "0" else "1") + text[digit + 1 :]
            elif kind == 5:
                given["columns"] = toys.WIDTH + rng.choice((-1, 1, 16))
            else:
                given["node"] = rng.choice(("avgpool", "", "flatten "))
            with pytest.raises(HeadError, match="trained on other features"):
                saving.check_fit(head, **given, classes=classes)  # type: ignore[arg-type]
            found.add("refused")


def test_a_run_carried_to_another_cache_is_refused(place: Path) -> None:
    home = toys.start(place / "home")
    toys.commit_all(home)
    toys.write_run(home, toys.head_bytes(home))
    with tally(FOREIGN, "a run copied into another cache and evaluated") as found:
        for name, options in {"recipe": {"store_dtype": "float32"}}.items():
            other = toys.start(place / name, **options)
            toys.commit_all(other)
            shutil.copytree(runs.folder_of(home.path, toys.RUN), runs.folder_of(other.path, toys.RUN))
            with pytest.raises(HeadError, match="fingerprint: expected"):
                evaluate(runs.folder_of(other.path, toys.RUN))
            found.add("refused")
        assert evaluate(runs.folder_of(home.path, toys.RUN))["run"] == toys.RUN
    with pytest.raises(HeadError):
        saving.loads(runs.folder_of(home.path, toys.RUN) / runs.HEAD).predict(np.ones((2, 3), np.float32))
