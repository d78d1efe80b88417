"""What runtimes did on this machine, and which one a cache was begun with: both may be forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache import atomic
from featcache.backbones.devices import device_facts
from featcache.backbones.runtimes.base import Work
from featcache.backbones.runtimes.choose import Speed
from featcache.errors import CacheError, FeatcacheError
from featcache.extraction.request import versions
from featcache.recipe import FORMAT, Recipe, sha256_of
from featcache.store import records
from featcache.store.recent import FOLDER


class Speeds:
    """Speeds of runtimes for one network in one precision on this machine, with these versions.

    Args:
        features_dir: they are kept in its `.featcache`.
        recipe: of it backbone, nodes, size and precision count.
        work: where it runs.
    """

    def __init__(self, features_dir: Path, recipe: Recipe, work: Work) -> None:
        self.facts = {
            "machine": device_facts()["devices"],
            "device": work.device,
            "threads": work.threads,
            "versions": {**versions(), "openvino": _openvino()},
            "backbone": recipe.backbone,
            "nodes": [[node.name, node.pool] for node in recipe.nodes],
            "crop": work.crop,
            "precision": work.precision,
        }
        self.path = features_dir / FOLDER / "speeds" / f"{sha256_of(self.facts)[:16]}.json"

    def known(self) -> dict[str, Speed]:
        """Return runtime → speed, as far as they were measured."""
        try:
            found = records.read(self.path)["speeds"]
            return {name: Speed(float(one["rate"]), float(one["setup"])) for name, one in found.items()}
        except (OSError, KeyError, TypeError, ValueError, AttributeError, FeatcacheError):
            return {}

    def add(self, measured: Mapping[str, Speed]) -> None:
        """Remember what was measured."""
        if measured:
            all_ = {**self.known(), **measured}
            plain = {name: {"rate": one.rate, "setup": one.setup} for name, one in all_.items()}
            _write(self.path, {"format": FORMAT, "facts": self.facts, "speeds": plain})


def begin(features_dir: Path, cache: str, runtime: str) -> None:
    """Remember with which runtime a cache is being made, so that who goes on takes the same."""
    _write(features_dir / FOLDER / "begun" / f"{cache}.json", {"format": FORMAT, "runtime": runtime})


def begun(features_dir: Path, cache: str) -> str | None:
    """Return the runtime a cache was begun with, None where that is not known."""
    try:
        runtime = records.read(features_dir / FOLDER / "begun" / f"{cache}.json")["runtime"]
    except (OSError, KeyError, TypeError, FeatcacheError):
        return None
    return runtime if isinstance(runtime, str) else None


def forget_begun(features_dir: Path, cache: str) -> None:
    """Forget it: a cache of that name is made anew."""
    with contextlib.suppress(OSError):
        (features_dir / FOLDER / "begun" / f"{cache}.json").unlink(missing_ok=True)


def _openvino() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


def _write(path: Path, plain: Mapping[str, Any]) -> None:
    with contextlib.suppress(CacheError):  # a read-only folder forgets
        atomic.make_folder(path.parent)
        atomic.write(path, records.to_bytes(plain))
