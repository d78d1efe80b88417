"""A process that joins in to fill a cache that another has planned: what it is told, and what it answers.

It neither lists nor hashes the images again: the plan says which there are, and every image is compared with
the plan's hash when it is decoded. The weights are loaded and compared by their hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache import errors
from featcache.errors import CacheError, FeatcacheError
from featcache.extraction.contained import apart, contained
from featcache.extraction.request import Request, Settings
from featcache.extraction.resolve import Job, resolve
from featcache.images.catalogue import open_source
from featcache.images.dataset import Rows
from featcache.images.planned import planned
from featcache.progress import silent
from featcache.store.cache import Cache

Message = dict[str, Any]
"""Plain values, so that they travel as JSON."""


def task_of(cache: Cache, job: Job, settings: Settings) -> Message:
    """Return what a process has to be told to join in."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    return {"cache": str(cache.path), "request": job.where(), "settings": plain}


def settings_of(task: Mapping[str, Any]) -> Settings:
    """Return the settings of a task."""
    plain = task["settings"]
    folders = {name: Path(plain[name]) for name in ("features_dir", "data_dir")}
    return Settings(**{**plain, **folders})


def join(task: Mapping[str, Any]) -> tuple[Cache, Job, Settings]:
    """Open the cache of a task, and all that is needed to fill it.

    Raises:
        CacheError: the weights or the images found here are not those the cache was planned for.
        FeatcacheError: something cannot be opened.
    """
    settings, request, cache = settings_of(task), Request.from_dict(task["request"]), Cache(task["cache"])
    source = open_source(
        request.dataset, settings.data_dir, exclude=(settings.features_dir, settings.data_dir)
    )
    plan = cache.plan
    rows = Rows(cache.record["dataset"]["name"], cache.classes, plan.ids, plan.labels, plan.splits)
    dataset = planned(source, rows, plan.hashes, request.limit)
    step = cache.recipe.preprocess
    job = resolve(request, dataset, silent, contained(settings), statistics=(step.mean, step.std))
    if job.recipe.fingerprint != cache.recipe.fingerprint:
        raise CacheError(
            f"The weights or the program found here are not those {cache.name} was planned with.",
            "Install the same versions everywhere, and run the command again when the weights are at rest.",
        )
    job.contained = apart(settings, cache.name)
    return cache, job, settings


def error_message(error: FeatcacheError) -> Message:
    """Return an error as it travels."""
    return {"error": [type(error).__name__, error.message, error.hint]}


def error_of(kind: str, message: str, hint: str) -> FeatcacheError:
    """Return the error that a process met, as if it had been met here."""
    known: type[FeatcacheError] = getattr(errors, kind, FeatcacheError)
    return known(message, hint)
