"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Features(click.Path):
    """A features folder: a path, or a URL such as s3://bucket/features, of which a mirror is opened."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the folder of this machine."""
        if isinstance(value, str) and "://" in value:
            from featcache.store.keeping import local

            value = local(value, None if ctx is None else ctx.meta.get(_MIRROR))
        return super().convert(value, param, ctx)


_MIRROR = "featcache.mirror"


def _remember(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    ctx.meta[_MIRROR] = value


def features_dir(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where caches are."""
    mirror = click.option(
        "--mirror",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        is_eager=True,  # before the folder that it mirrors is opened
        expose_value=False,
        callback=_remember,
        help="Where copies of features in object storage are [default: FEATCACHE_MIRROR, or the user's cache "
        "folder].",
    )
    where = click.option(
        "--features-dir",
        type=Features(),
        default=Path("features"),
        show_default=True,
        help="Where caches and the ledger are; a folder, or a URL such as s3://bucket/features.",
    )
    return where(mirror(function))


data_dir: Decorator = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Where downloaded data sets are.",
)
as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
device: Decorator = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Where to compute."
)
devices: Decorator = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:i][,…]",
    help="Where to compute; on several devices, as cuda:0,cuda:1, with a process for each.",
)


def split(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose validation rows where a data set has no validation split of its own."""
    for option in reversed(_SPLIT):
        function = option(function)
    return function


_SPLIT: list[Decorator] = [
    click.option(
        "--val-fraction", type=float, default=0.2, show_default=True, help="Of train, where there is no val."
    ),
    click.option("--split-seed", type=int, default=42, show_default=True),
    click.option(
        "--split-mode",
        default="random",
        show_default=True,
        metavar="random|stratified|last",
        help="last takes the last rows in order: of a data set that is sorted by class, the last classes.",
    ),
]


def live(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that show a training elsewhere while it goes on."""
    for option in reversed(_LIVE):
        function = option(function)
    return function


_LIVE: list[Decorator] = [
    click.option(
        "--tensorboard",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Show it in TensorBoard while it trains: featcache[tensorboard].",
    ),
    click.option(
        "--mlflow", metavar="URI", help="Log it to MLflow, e.g. http://localhost:5000: featcache[mlflow]."
    ),
]


class AutoOrNumber(click.ParamType[Any]):
    """`auto` (None) or a whole number of at least one."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number, None for auto."""
        if value is None or value == "auto":
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither 'auto' nor a whole number of at least 1.", param, ctx)
        return number

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return how it is shown in help."""
        return "auto|N"


class Bytes(click.ParamType[Any]):
    """An amount of memory: `2GB`, `500MB`, `1.5GiB`, a number of bytes; `auto` (None)."""

    name = "size"
    _UNITS: ClassVar = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the bytes, None for auto."""
        if value is None or value == "auto" or isinstance(value, int):
            return None if value == "auto" else value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(I?)B?", value.strip().upper())
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is no amount of memory such as 2GB or 500MB, nor auto.", param, ctx)
        number, unit, binary = found.groups()
        scale = self._UNITS[unit]
        return int(float(number) * (scale if not binary else 1024 ** ("KMGT".index(unit) + 1 if unit else 0)))


memory_budget: Decorator = click.option(
    "--memory-budget",
    type=Bytes(),
    default="auto",
    show_default=True,
    metavar="auto|SIZE",
    help="How much of the features may be in memory at once, e.g. 2GB; others are read when needed.",
)


view_mode: Decorator = click.option(
    "--view-mode",
    type=click.Choice(["random", "all", "clean"]),
    help="Of augmented views: one drawn for each row and epoch (linear and mlp), all as rows, or the clean "
    "image alone [default: random for linear and mlp, all for others].",
)
test_views: Decorator = click.option(
    "--test-views", is_flag=True, help="Average test predictions over views: --views-of all."
)


class Sizes(click.ParamType[Any]):
    """Layer sizes: `50,20`; an empty text for none."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the sizes."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of sizes such as 50,20.", param, ctx)
