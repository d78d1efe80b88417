"""Run a study: extract what is missing, train what is missing, and collect what there is then."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from featcache import api, figures, whole
from featcache.errors import OptionError, RunError, unknown
from featcache.finetuning.options import Place
from featcache.progress import Progress, silent
from featcache.store.table import has_split
from featcache.studies.file import Study, System
from featcache.studies.memory import remember

_NOT_ASKED = ("dataset", "limit", "data_dir", "features_dir", "progress", "notify", "device")


@dataclass(frozen=True)
class Row:
    """What became of a system: its run's record, whether it was there, its curve, the study's own figures."""

    system: str
    record: Mapping[str, Any]
    found: bool
    figures: Mapping[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)

    def ours(self) -> dict[str, Any]:
        """Return our figures under the names of the study's, of the test split where there is one."""
        return figures.ours(self.record)


@dataclass(frozen=True)
class Watch:
    """Who is told: of the system that comes next, of how far it is, of sentences worth knowing."""

    system: Callable[[str], None] = lambda name: None
    progress: Progress = silent
    notify: Callable[[str], None] = lambda text: None


def run_study(study: Study, place: Place, watch: Watch = Watch()) -> list[Row]:
    """Return a row for every system, trained or found; what was finished before is not done again.

    Raises:
        FeatcacheError: of a system; the systems before it are kept.
    """
    for system in study.systems:
        _check_extract(system)
    rows: dict[str, Row] = {}
    for system in study.systems:
        watch.system(system.name)
        if system.extract is not None:
            rows[system.name] = _head(study, system, place, watch)
        else:
            rows[system.name] = _network(study, system, place, watch, rows)
        remember(place.features_dir, study, system, str(rows[system.name].record["run"]))
    return list(rows.values())


def _check_extract(system: System) -> None:
    known = [name for name in inspect.signature(api.extract).parameters if name not in _NOT_ASKED]
    for name in system.extract or {}:
        if name not in known:
            raise unknown(f"option of extract in {system.name!r}:", name, known)


def _head(study: Study, system: System, place: Place, watch: Watch) -> Row:
    """Extract, then train with the search that finds a run that is there already."""
    options: dict[str, Any] = dict(system.extract or {})
    cache = api.extract(
        study.dataset, limit=study.limit, data_dir=place.data_dir, features_dir=place.features_dir,
        device=place.device, progress=watch.progress, notify=watch.notify, **options,
    )  # fmt: skip
    params = {name: value for name, value in system.head.items() if name != "kind"}
    curve = dict(system.curve)
    swept = api.sweep(
        cache, system.head["kind"], None, node=system.node, test=has_split(cache, "test"),
        features_dir=place.features_dir, **study.split, **curve, **params,
    )  # fmt: skip
    if swept.best is None:
        raise RunError(f"The head of {system.name!r} could not be trained.")
    return Row(system.name, swept.best, swept.found == swept.heads, system.figures, _points(swept))


def _points(swept: Any) -> list[dict[str, Any]]:
    return [
        {
            "size": str(point.size),
            "trials": point.trials,
            **{f"{split}_accuracy": point.best.mean(split, "accuracy") for split in ("val", "test")},
            **{f"{split}_accuracy_sd": point.best.deviation(split, "accuracy") for split in ("val", "test")},
        }
        for point in swept.curve
    ]


def _network(study: Study, system: System, place: Place, watch: Watch, rows: Mapping[str, Row]) -> Row:
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in (system.finetune or {}).items()}
    start = None if system.start is None else str(rows[system.start].record["run"])
    if start is None:
        given |= {"dataset": study.dataset, "limit": study.limit, **study.split}
    elif not rows[system.start or ""].record.get("node"):
        raise OptionError(f"{system.start!r} is a whole network: {system.name!r} cannot start from it.")
    asked = whole.Asked({**given, "test": True}, start)
    done, found = whole.finetune_once(asked, place, whole.Watch(progress=watch.progress))
    return Row(system.name, done.record, found, system.figures)
