"""`featcache doctor`: what featcache finds on this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.commands import options
from featcache.commands.output import progress_bar, show, show_json, size
from featcache.errors import CacheError
from featcache.store.promises import NOBODY

if TYPE_CHECKING:
    from featcache.extraction.drift import Drift


@click.command(short_help="Versions, devices, where things are, and whether the disk keeps its promises.")
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False), metavar="[DIR]")
@click.option(
    "--drift",
    metavar="CACHE",
    help="Embed rows of a cache again on this machine and compare them with what it holds.",
)
@click.option(
    "--rows",
    type=click.IntRange(2),
    default=100,
    show_default=True,
    help="With --drift: how many, at random.",
)
@click.option("--dataset", help="With --drift: where the images are now, if they were moved.")
@click.option("--weights", help="With --drift: where the weights are now, if they were moved.")
@options.device
@options.data_dir
@options.features_dir
@options.as_json
def doctor(
    folder: Path | None,
    drift: str | None,
    rows: int,
    dataset: str | None,
    weights: str | None,
    device: str,
    data_dir: Path,
    features_dir: Path,
    as_json: bool,
) -> int:
    """Show versions, devices, what there is to extract with, and folders; test if features are safe here.

    DIR is the features folder to test, if not --features-dir. Where its file system is safe for one process
    at a time only, several are refused from then on.

    Exit code 1 if it is not safe for one; with --drift, if a row
    computed here is further from the stored one than the recipe's precision allows.
    """
    if drift is not None:
        return _drift(drift, features_dir, data_dir, device, (rows, dataset, weights), as_json)
    features_dir = folder or features_dir
    facts = _facts(data_dir, features_dir)
    broken = facts["safe_for"] == NOBODY and {name: why for name, why in facts["file_system"].items() if why}
    if as_json and not broken:
        show_json(facts)
    elif not as_json:
        for group in ("versions", "devices", "precisions", "runtimes", "folders"):
            show(group)
            for name, value in _lines(facts[group]):
                show(f"  {name:<22} {value}")
        show("file system of the features folder")
        for name, why in facts["file_system"].items():
            show(f"  {'no ' if why else 'yes'}  {name}{': ' + why if why else ''}")
        show(f"  it is safe for {facts['safe_for']}")
    if broken:
        name, why = next(iter(broken.items()))
        raise CacheError(
            f"The file system of {features_dir} is not safe: {name}: {why}.", "Choose another --features-dir."
        )
    return 0


def _lines(group: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact; of each device its model and what it has."""
    for name, value in group.items():
        if name != "devices":
            yield name, str(value)
            continue
        for device in value:
            memory = f", {size(device['memory_bytes'])}" if "memory_bytes" in device else ""
            yield device["name"], f"{device['model']}, {device['capability']}{memory}"


def _drift(
    name: str,
    features_dir: Path,
    data_dir: Path,
    device: str,
    how: tuple[int, str | None, str | None],
    as_json: bool,
) -> int:
    from featcache.commands.train import open_cache
    from featcache.extraction.drift import drift
    from featcache.extraction.request import Settings

    rows, dataset, weights = how
    cache = open_cache(features_dir, name)
    settings = Settings(cache.path.parent, data_dir, device)
    with progress_bar(as_json) as progress:
        found = drift(cache.path, settings, rows, dataset=dataset, weights=weights, progress=progress)
    if as_json:
        show_json(found.to_dict())
    else:
        _show_drift(found)
    return 0 if found.within else 1


def _show_drift(found: Drift) -> None:
    for node, apart in found.nodes.items():
        show(f"{node:<22} smallest cosine {apart.cosine:.8f}")
        where = f"{apart.worst}, column {apart.column}"
        show(f"{'':<22} largest difference {apart.difference:.2e} of the column's deviation, in {where}")
    for library, (then, now) in found.versions.items():
        show(f"{library:<22} {then} when it was made, {now} here")
    limit = found.largest_difference
    allowed = f"cosine at least {found.least_cosine:g}" + ("" if limit is None else f", difference {limit:g}")
    verdict = "No drift" if found.within else "Drift"
    advice = "" if found.within else " Do not extend it here: extract it anew."
    show(f"{verdict}: {found.rows} rows of {found.cache} ({allowed}).{advice}")


def _facts(data_dir: Path, features_dir: Path) -> dict[str, Any]:
    import torch

    from featcache.backbones.runtime import device_facts
    from featcache.extraction import machine
    from featcache.extraction.estimate import free_bytes
    from featcache.extraction.request import versions
    from featcache.store import keeping, sharing
    from featcache.store.promises import ONE, check_promises, safe_for

    place = features_dir.absolute()
    while not place.exists():
        place = place.parent
    found = check_promises(place)
    if place == features_dir.absolute():
        why = next((f"{name}: {why}" for name, why in found.items() if why), "")
        sharing.remember(features_dir, why if safe_for(found) == ONE else "")
    return {
        "versions": {"python": platform.python_version(), **versions(), "ray": machine.ray_version()},
        "devices": device_facts(),
        "precisions": machine.precisions_of_devices(),
        "runtimes": machine.runtimes(),
        "folders": {
            "data": str(data_dir.resolve()),
            "features": keeping.shown(features_dir.resolve()),
            "features, free": size(free_bytes(features_dir)),
            "official weights": str(Path(torch.hub.get_dir()) / "checkpoints"),
        },
        "file_system": found,
        "safe_for": safe_for(found),
    }
