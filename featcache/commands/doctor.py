"""`featcache doctor`: what featcache finds on this machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import show, show_json, size
from featcache.errors import CacheError


@click.command(short_help="Versions, devices, where things are, and whether the disk keeps its promises.")
@options.data_dir
@options.features_dir
@options.as_json
def doctor(data_dir: Path, features_dir: Path, as_json: bool) -> None:
    """Show versions, devices and folders, and test whether the features folder is safe to write to.

    Exit code 1 if the file system does not keep a promise the write protocol needs.
    """
    facts = _facts(data_dir, features_dir)
    broken = {name: why for name, why in facts["file_system"].items() if why}
    if as_json and not broken:
        show_json(facts)
    elif not as_json:
        for group in ("versions", "devices", "folders"):
            show(group)
            for name, value in facts[group].items():
                show(f"  {name:<22} {value}")
        show("file system of the features folder")
        for name, why in facts["file_system"].items():
            show(f"  {'no ' if why else 'yes'}  {name}{': ' + why if why else ''}")
    if broken:
        name, why = next(iter(broken.items()))
        raise CacheError(
            f"The file system of {features_dir} is not safe: {name}: {why}.", "Choose another --features-dir."
        )


def _facts(data_dir: Path, features_dir: Path) -> dict[str, Any]:
    import torch

    from featcache.backbones.runtime import device_facts
    from featcache.extraction.estimate import free_bytes
    from featcache.extraction.request import versions
    from featcache.store.promises import check_promises

    place = features_dir
    while not place.exists():
        place = place.parent
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "devices": device_facts(),
        "folders": {
            "data": str(data_dir.resolve()),
            "features": str(features_dir.resolve()),
            "features, free": size(free_bytes(features_dir)),
            "official weights": str(Path(torch.hub.get_dir()) / "checkpoints"),
        },
        "file_system": check_promises(place),
    }
