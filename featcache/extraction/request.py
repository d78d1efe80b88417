"""What a user asks for, before anything is opened. Light: a warm hit needs nothing heavier."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.errors import OptionError
from featcache.images.policies import NAMED, draws, policy_of, text_of
from featcache.recipe import MOST_VIEWS, VIEWS_OF, Views
from featcache.version import VERSION

PREPROCESS = ("auto", "weights", "squash")
NORMALIZE = ("weights", "imagenet", "half", "dataset", "none")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
STORE_DTYPES = ("float16", "float32", "int8")
ON_BAD_IMAGE = ("error", "skip")
DECODE_IN = ("auto", "threads", "processes")
ENGINES = ("local", "ray")
RUNTIMES = ("auto", "torch", "native", "winograd", "compile", "openvino")
RECORDED = ("torch", "torchvision", "numpy", "pillow", "h5py")


@dataclass(frozen=True)
class Request:
    """The options of an extraction that decide what its features are; each as the user gives it.

    Raises:
        OptionError: a value is not one of those known.
    """

    dataset: str = "cifar10"
    backbone: str = "vgg16"
    weights: str = "DEFAULT"
    layers: tuple[str, ...] = ()
    pool: str | None = None
    preprocess: str = "auto"
    image_size: int | None = None
    normalize: str = "weights"
    precision: str = "fp32"
    store_dtype: str = "float16"
    limit: int | None = None
    max_pixels: int = 50_000_000
    views: int = 1  # of each image, with the image itself
    augment: str | None = None  # a policy's name or its steps, see `featcache.images.policies.text_of`
    view_seed: int = 0
    views_of: str = "train"

    def __post_init__(self) -> None:
        self._check_types()
        self._check_views()
        for name, known in (
            ("preprocess", PREPROCESS),
            ("normalize", NORMALIZE),
            ("precision", PRECISIONS),
            ("store_dtype", STORE_DTYPES),
        ):
            if getattr(self, name) not in known:
                raise OptionError(f"Unknown {name} {getattr(self, name)!r}.", f"Known: {', '.join(known)}.")
        for name in ("image_size", "limit", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}.")

    def _check_types(self) -> None:
        """From Python anything may come: refuse what would be stored or read as something else."""
        numbers = ("image_size", "limit", "max_pixels", "views", "view_seed")
        for name in ("dataset", "backbone", "weights", "pool", "augment", "views_of", *numbers):
            value, expected = getattr(self, name), int if name in numbers else str
            if value is not None and (not isinstance(value, expected) or isinstance(value, bool)):
                raise OptionError(f"{name} must be of type {expected.__name__}, got {value!r}.")
        if not isinstance(self.layers, tuple) or not all(isinstance(name, str) for name in self.layers):
            raise OptionError(f"layers must be a list of names, got {self.layers!r}.")

    def _check_views(self) -> None:
        if not 1 <= self.views <= MOST_VIEWS:
            raise OptionError(f"views must be from 1 to {MOST_VIEWS}, got {self.views}.")
        if not 0 <= self.view_seed < 2**63:
            raise OptionError(f"view_seed must be at least 0 and below 2^63, got {self.view_seed}.")
        if self.views_of not in VIEWS_OF:
            raise OptionError(f"Unknown views_of {self.views_of!r}.", f"Known: {', '.join(VIEWS_OF)}.")
        if self.views == 1 and (self.augment is not None or self.view_seed or self.views_of != "train"):
            raise OptionError(
                "Without views there is nothing to augment: view 0 is the image itself.", "Give --views 5."
            )
        if self.views > 1 and self.augment is None:
            raise OptionError(
                f"{self.views} views need to know how they are made.",
                f"Give --augment: {', '.join(NAMED)}, or a .toml or .json file.",
            )
        if self.augment is not None:
            policy_of(self.augment)

    def asked_views(self) -> Views | None:
        """Return the views asked for, with every parameter of their policy; None for none."""
        if self.augment is None:
            return None
        return Views(self.views, policy_of(self.augment), self.view_seed, self.views_of)

    def notes(self) -> list[str]:
        """Return what is worth knowing about the options."""
        views = self.asked_views()
        if views is None or draws(views.policy) or views.count == 2:
            return []
        return ["This augmentation makes the same view each time: --views 2 holds all that there is."]

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values; views only where there are any."""
        plain = {**asdict(self), "layers": list(self.layers)}
        if self.views == 1:
            plain = {name: value for name, value in plain.items() if name not in _OF_VIEWS}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Request:
        """Rebuild a request from `to_dict`.

        Raises:
            OptionError: these are not its values; a record may come from anyone.
        """
        try:
            return cls(**{**plain, "layers": tuple(plain["layers"])})
        except (TypeError, KeyError) as error:
            raise OptionError(
                f"The record does not say how its features were made ({type(error).__name__}: {error}).",
                "Extract again; what is there of the cache stays.",
            ) from error


_OF_VIEWS = ("views", "augment", "view_seed", "views_of")


@dataclass(frozen=True)
class Settings:
    """The options of an extraction that change nothing in its features."""

    features_dir: Path = Path("features")
    data_dir: Path = Path("data")
    device: str = "auto"  # or several: "cuda:0,cuda:1"
    batch_size: int | None = None  # None: chosen for the device
    workers: int | None = None  # None: one thread for each core
    on_bad_image: str = "error"
    rows_per_shard: int | None = None  # None: about 64 MiB, at most 4096 rows
    runtime: str = "auto"
    decode_in: str = "auto"  # processes where a run is to go on in spite of bad images, or one has died
    engine: str = "local"  # who computes: this machine, or the actors of a Ray cluster
    ray_address: str | None = None  # of the cluster; None: one of this machine alone, for this run
    ray_actors: int | None = None  # None: as many as find room, see `featcache.extraction.cluster`

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise OptionError(f"Unknown engine {self.engine!r}.", f"Known: {', '.join(ENGINES)}.")
        if self.engine != "ray" and (self.ray_address is not None or self.ray_actors is not None):
            raise OptionError("A Ray cluster is used by --engine ray alone.", "Give --engine ray.")
        if self.decode_in not in DECODE_IN:
            raise OptionError(f"Unknown decode_in {self.decode_in!r}.", f"Known: {', '.join(DECODE_IN)}.")
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise OptionError(
                f"Unknown on_bad_image {self.on_bad_image!r}.", f"Known: {', '.join(ON_BAD_IMAGE)}."
            )
        if self.runtime not in RUNTIMES:
            raise OptionError(f"Unknown runtime {self.runtime!r}.", f"Known: {', '.join(RUNTIMES)}.")
        for name in ("batch_size", "workers", "rows_per_shard", "ray_actors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}.")


def augmentation(augment: str | os.PathLike[str] | None) -> str | None:
    """Return an augmentation as a request holds it: a name as it is, of a file its steps.

    Raises:
        OptionError: it is unknown, the file cannot be read, or a step in it cannot be used.
    """
    return None if augment is None else text_of(os.fspath(augment))


def versions() -> dict[str, str]:
    """Return the versions that are recorded beside a recipe, without importing the libraries."""
    found = _installed()
    if not all(name in found for name in RECORDED):
        from importlib import metadata

        found |= {name: metadata.version(name) for name in RECORDED if name not in found}
    return {"featcache": VERSION, **{name: found[name] for name in RECORDED}}


def _installed() -> dict[str, str]:
    """Return distribution → version as the names of the .dist-info folders say, first on the path first.

    importlib.metadata parses files and takes a tenth of a warm hit; the name is part of the wheel format.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                distribution, _, version = name.removesuffix(".dist-info").partition("-")
                found.setdefault(distribution.lower().replace("_", "-"), version)
    return found
