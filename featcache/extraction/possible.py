"""What this machine cannot do is refused before anything is read: weights may come from far away."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import FeatcacheError
from featcache.extraction.request import Request, Settings
from featcache.store import keeping, records
from featcache.store.folders import caches_in


def check_possible(request: Request, settings: Settings) -> None:
    """Refuse an extraction that cannot be done here, unless it may have been done elsewhere.

    Where there is a finished cache of this backbone and precision, which may be the one asked for, it is too
    early to tell: reading a cache takes no GPU.

    Raises:
        OptionError: a device, precision or runtime is not here, and why; Ray with object storage.
    """
    from featcache.backbones.devices import check_precision
    from featcache.backbones.runtimes.catalogue import check_runtime
    from featcache.extraction.several import devices_of

    if settings.engine == "ray":
        from featcache.extraction.cluster import check_there

        hint = "Start the same command without it on each machine: they share the shards."
        keeping.refuse_remote(settings.features_dir, "--engine ray", hint)
        check_there(settings.ray_address)
        return  # the actors tell what their nodes cannot do
    devices = devices_of(settings.device)
    if _may_be_there(request, settings.features_dir):
        return
    for device in devices:
        check_precision(request.precision, device)
        if settings.runtime != "auto":
            check_runtime(settings.runtime, device, request.precision)


def _may_be_there(request: Request, features_dir: Path) -> bool:
    for folder in caches_in(features_dir):
        try:
            recipe = records.read_recipe(folder)["recipe"]
        except FeatcacheError:
            continue  # a damaged cache is named elsewhere
        alike = (recipe["backbone"], recipe["precision"]) == (request.backbone, request.precision)
        if alike and (folder / records.SEAL).exists():
            return True
    return False
