"""`featcache gc`: what can go from the features folder, and making it go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from featcache.commands import options
from featcache.commands.output import say, show, show_json, show_table, size

if TYPE_CHECKING:
    from featcache.store.removal import Item
    from featcache.store.retention import Choice


class Age(click.ParamType[Any]):
    """A stretch of time: `30d`, `12h`, `2w`, `90m`; in seconds."""

    name = "age"
    _UNITS: ClassVar = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the seconds."""
        if value is None or isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([smhdw])", value.strip().lower())
        if not found:
            self.fail(f"{value!r} is no stretch of time such as 30d, 12h or 2w.", param, ctx)
        return float(found[1]) * self._UNITS[found[2]]


class Most(options.Bytes):
    """An amount of disk: `20GB`; nothing stands for no limit, and 0 for nothing at all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the bytes."""
        if isinstance(value, str) and re.fullmatch(r"0+ *[KMGTkmgt]?[iI]?[bB]?", value.strip()):
            return 0
        if value == "auto":
            self.fail("'auto' is no amount of disk such as 20GB.", param, ctx)
        return super().convert(value, param, ctx)


@click.command(short_help="Find what can go: leftovers, and on request old or superseded caches.")
@click.option("--delete", "--yes", is_flag=True, help="Do it; without it nothing is removed, only listed.")
@click.option(
    "--older-than", type=Age(), metavar="AGE", help="Also caches that were not used for so long, e.g. 30d."
)
@click.option(
    "--max-size",
    type=Most(),
    metavar="SIZE",
    help="Also the caches used longest ago, until those that stay have at most this size, e.g. 20GB.",
)
@click.option("--unfinished", is_flag=True, help="Also caches that were never finished.")
@click.option(
    "--superseded",
    is_flag=True,
    help="Also caches all of whose rows another finished cache of the same recipe has.",
)
@options.data_dir
@options.features_dir
@options.as_json
def gc(
    delete: bool,
    older_than: float | None,
    max_size: int | None,
    unfinished: bool,
    superseded: bool,
    data_dir: Path,
    features_dir: Path,
    as_json: bool,
) -> int:
    """List what can go from the features folder, and why; with --delete, remove it.

    Without further options that is only what nobody needs: temporaries of processes that died, shards that
    were never committed, claims and memories of caches that are finished or gone. No committed row is in it.

    Whole caches go only on request, and never one that has runs, nor one whose rows could not be had again
    because its images or weights are gone and no other cache has them. Only files that featcache made
    are removed; links are not followed, and other files, and what holds them, stay.

    Exit code 1 if --max-size could not be reached.
    """
    from featcache.extraction.remaking import why_last
    from featcache.store import keeping
    from featcache.store.retention import Wish, find

    keeping.refuse_remote(
        features_dir, "featcache gc", "Remove what is not needed with the store's own tools."
    )
    wish = Wish(older_than, max_size, unfinished, superseded)
    items, choice = find(features_dir, wish, lambda cache: why_last(cache, features_dir, data_dir))
    facts = _facts(items, choice, features_dir)
    over = max_size is not None and choice.left > max_size
    if delete:
        facts |= _done(items, choice)
    if as_json:
        show_json(facts)
    else:
        _show(facts, delete)
    if over:
        say(f"The caches that stay have {size(choice.left)}, more than --max-size {size(max_size or 0)}.")
    return 1 if over else 0


def _facts(items: list[Item], choice: Choice, features_dir: Path) -> dict[str, Any]:
    return {
        "features_dir": str(features_dir),
        "deleted": False,
        "bytes": sum(item.bytes for item in items),
        "items": [
            {"kind": item.kind, "path": _named(item.path, features_dir), "bytes": item.bytes, "why": item.why}
            for item in items
        ],
        "kept": [{"cache": name, "why": why} for name, why in choice.kept.items()],
        "left_bytes": choice.left,
        "not_removed": [],
    }


def _named(path: Path, features_dir: Path) -> str:
    return str(path.relative_to(features_dir)) if path.is_relative_to(features_dir) else str(path)


def _done(items: list[Item], choice: Choice) -> dict[str, Any]:
    from featcache.store.collect import collect

    done = collect(items, choice.copies)
    left = [{"path": str(path), "why": why} for path, why in done.left.items()]
    return {"deleted": True, "bytes": done.bytes, "not_removed": left}


def _show(facts: dict[str, Any], delete: bool) -> None:
    if facts["items"]:
        rows = [[row["kind"], row["path"], size(row["bytes"]), row["why"]] for row in facts["items"]]
        show_table(["kind", "path", "size", "why"], rows, right=["size"])
    for row in facts["kept"]:
        show(f"kept  {row['cache']}: {row['why']}.")
    for row in facts["not_removed"]:
        show(f"left  {row['path']}: {row['why']}.")
    count = len(facts["items"])
    if not count:
        show("There is nothing to remove.")
    elif delete:
        show(f"Removed: {size(facts['bytes'])}.")
    else:
        show(f"{count} thing{'s' * (count > 1)}, {size(facts['bytes'])}. Nothing was removed: add --delete.")
