"""Features are never reused after something changed, and no head takes features it was not trained on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import CacheError, HeadError
from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
from featcache.extraction.resolve import Job
from featcache.heads import saving
from featcache.recipe import Decoding, Node, Preprocess, Recipe, Views, Weights, format_of
from featcache.store.cache import Cache
from featcache.store.recent import FOLDER
from featcache.store.records import cache_key
from featcache.training import runs
from featcache.training.evaluate import evaluate
from tests.faults import hashing, toys
from tests.faults.trials import FULL, draw, numbers, tally
from tests.kit_images import make_folder, tree

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


HARMLESS = ("squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0")


def _harmless(place: Path, asked: Request, settings: Settings) -> Iterator[tuple[str, Request, Settings]]:
    """Make each harmless change to what is asked, and to the disk; the changes stay."""
    renamed = place / "renamed" / "photos"
    (place / "here").rename(renamed.parent)
    asked = replace(asked, dataset=f"folder:{renamed}")
    yield "its parent renamed", asked, settings
    moved = place / "else" / "where" / "pictures"
    moved.parent.mkdir(parents=True)
    renamed.rename(moved)
    asked = replace(asked, dataset=f"folder:{moved}")
    yield "the images moved, their folder renamed", asked, settings
    yield "another batch size", asked, replace(settings, batch_size=1)
    yield "other workers", asked, replace(settings, workers=3)
    if not FULL:
        return
    yield "decoded in processes", asked, replace(settings, workers=1, decode_in="processes")
    copied = place / "copied"
    shutil.copytree(moved, copied, copy_function=shutil.copy)
    yield "a copy, of other times and inodes", replace(asked, dataset=f"folder:{copied}"), settings
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    yield "other times", asked, settings
    settings.features_dir.rename(place / "other features")
    settings = replace(settings, features_dir=place / "other features")
    yield "the caches moved", asked, settings
    shutil.rmtree(settings.features_dir / FOLDER)
    yield "nothing remembered", asked, settings


@pytest.mark.parametrize("backbone", HARMLESS)
def test_harmless_changes_hit(place: Path, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(place / "here" / "photos", train=2, test=1)
    asked = Request(f"folder:{place / 'here' / 'photos'}", backbone, "random:0", image_size=32)
    settings = Settings(place / "features", place / "data", "cpu", batch_size=4, workers=1)
    first = extract(asked, settings)
    assert not first.hit and first.images == 9
    whole = tree(first.path)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a backbone was made")

    monkeypatch.setattr(Job, "extractor", never)
    with tally(
        REUSE, f"harmless changes, {backbone}: moved, renamed, copied, other batches and workers"
    ) as found:
        for what, request, how in _harmless(place, asked, settings):
            again = extract(request, how)
            assert again.hit and again.images == again.copied == 0, what
            assert again.path.name == first.path.name and tree(again.path) == whole, what
            found.add("a hit, nothing computed")
        with pytest.raises(AssertionError, match="was made"):  # what is not harmless would have been noticed
            extract(replace(request, image_size=40), how)


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
