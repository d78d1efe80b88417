"""`featcache verify`: is every byte of a cache what was committed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import progress_bar, show, show_json
from featcache.errors import DamagedError
from featcache.store import keeping


@click.command(short_help="Check every shard against its record; exit 1 if one is damaged.")
@click.argument("cache", required=False)
@click.option("--repair", is_flag=True, help="Compute damaged and missing shards again, and only those.")
@click.option("--dataset", help="With --repair: where the images are now, if they were moved.")
@click.option("--weights", help="With --repair: where the weights are now, if they were moved.")
@options.device
@options.data_dir
@options.features_dir
@options.as_json
def verify(
    cache: str | None,
    repair: bool,
    dataset: str | None,
    weights: str | None,
    device: str,
    data_dir: Path,
    features_dir: Path,
    as_json: bool,
) -> None:
    """Read every byte of a cache and compare it with what was committed.

    CACHE is a cache's name or part of it; without it, the one used last.
    """
    from featcache.commands.train import open_cache

    opened = open_cache(features_dir, cache)
    repaired: list[str] = []
    if repair:
        from featcache.extraction.repair import repair as run_repair
        from featcache.extraction.request import Settings

        with progress_bar(as_json) as progress:
            repaired = run_repair(
                opened.path, Settings(opened.path.parent, data_dir, device), dataset, weights, progress
            )
    wrong = _wrong(opened)
    planned = len(opened.shards())
    if not as_json:
        for name in repaired:
            show(f"repaired  {name}")
        for name, why in wrong.items():
            show(f"damaged   {name}: {why}")
        show(f"{planned - len(wrong.keys() - {'seal'})} of {planned} shards are good.")
    if wrong:
        raise _error(opened, wrong, planned)
    if as_json:
        show_json(
            {"cache": keeping.shown(opened.path), "shards": planned, "damaged": wrong, "repaired": repaired}
        )


def _wrong(cache: Any) -> dict[str, str]:
    """Return what is wrong, by shard; the seal counts as one where it alone is wrong."""
    wrong = {part.name: why for part, why in cache.verify() if why}
    if not wrong:
        try:
            if cache.sealed() is None:
                wrong["seal"] = "the seal is missing"
        except DamagedError as error:
            wrong["seal"] = error.message
    return wrong


def _error(cache: Any, wrong: dict[str, str], planned: int) -> DamagedError:
    listed = ", ".join(list(wrong)[:5]) + (" …" if len(wrong) > 5 else "")
    first = next(iter(wrong))
    return DamagedError(
        f"{len(wrong)} of {planned} shards of {cache.name} are damaged or missing: {listed}. "
        f"{first}: {wrong[first]}",
        f"Run: featcache verify {cache.name} --repair.",
    )
