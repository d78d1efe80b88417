"""A study's TOML file, read and checked.

name = "…"                    about = "…"
dataset = "cifar10"
split = { val_fraction = 0.2, split_seed = 42, split_mode = "random" }

[[system]]
name = "frozen ResNet-18 + linear"
extract = { backbone = "resnet18", preprocess = "squash" }      # as featcache.extract takes them
head = { kind = "linear", lr = 1e-4 }                           # as featcache.train_head takes them
curve = { few_shot = [1, 5, 10], trials = 3 }                   # optional: a learning curve
study = { accuracy = 0.7918, log_loss = 0.6350 }                # the study's own, of `featcache.figures`

[[system]]
name = "ResNet-18 fine-tuned"
finetune = { network = "resnet18", lr = 1e-4 }                  # as featcache.finetune takes them
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from featcache import figures
from featcache.errors import OptionError, unknown
from featcache.finetuning.options import SCRATCH, Finetuning

PIXELS = "pixels"
SPLIT = ("val_fraction", "split_seed", "split_mode")
CURVE = ("few_shot", "fractions", "trials", "draw_seed")
_SYSTEM = ("name", "extract", "head", "node", "curve", "finetune", "from", "study")
_STUDY = ("name", "about", "dataset", "split", "limit", "system")


@dataclass(frozen=True)
class System:
    """One thing to compare: a head on a cache (`extract`, `head`), or a whole network (`finetune`).

    `start` names a system before it, with a head, from whose run a fine-tuning begins. `figures` are what the
    study itself reports of it. `digest` is a hash of all else that the file says of it.
    """

    name: str
    extract: Mapping[str, Any] | None = None
    head: Mapping[str, Any] = field(default_factory=dict)
    node: str | None = None
    curve: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] | None = None
    start: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Study:
    """A study: its systems, and the data set and split that they share.

    `changes` says in words what is another way than the file has it.
    """

    name: str
    dataset: str
    systems: tuple[System, ...]
    about: str = ""
    split: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """What is to be another way than the file has it, to try a study on what is there.

    `weights` and `backbones` are by backbone; "" stands for all that have no entry of their own.
    """

    dataset: str | None = None
    limit: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    backbones: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    epochs: int | None = None

    def in_words(self) -> list[str]:
        """Return what is changed, for whoever reads the figures."""
        plain = {
            "dataset": self.dataset,
            "limit": self.limit,
            "image_size": self.image_size,
            "epochs": self.epochs,
        }
        words = [f"{name} {value}" for name, value in plain.items() if value is not None]
        words += [f"{new} for {old}" for old, new in self.backbones.items()]
        return words + [f"weights {new}" + (f" of {of}" if of else "") for of, new in self.weights.items()]


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        OptionError: the file cannot be read or says what no study says.
    """
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"Cannot read the study {path}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path} is no TOML: {error}.") from error
    _check_keys(plain, _STUDY, str(path))
    for name in ("name", "dataset", "system"):
        if name not in plain:
            raise OptionError(f"{path} has no {name!r}.", "Say it at the top of the file.")
    _check_keys(plain.get("split", {}), SPLIT, f"split of {path}")
    shared = {name: plain.get(name) for name in ("dataset", "split", "limit")}
    systems = tuple(_system(each, path, shared) for each in plain["system"])
    _check_systems(systems, path)
    known = {name: plain[name] for name in ("name", "dataset", "about", "split", "limit") if name in plain}
    return Study(systems=systems, **known)


def changed(study: Study, changes: Changes) -> Study:
    """Return the study with the changes made."""
    systems = tuple(_changed(system, changes) for system in study.systems)
    limit = changes.limit if changes.limit is not None else study.limit
    dataset, words = changes.dataset or study.dataset, tuple(changes.in_words())
    return replace(study, systems=systems, dataset=dataset, limit=limit, changes=words)


def only(study: Study, names: Sequence[str]) -> Study:
    """Return the study with these systems alone, and those that they start from.

    Raises:
        OptionError: it has no system of a name.
    """
    by_name = {system.name: system for system in study.systems}
    for name in names:
        if name not in by_name:
            raise unknown(f"system of {study.name!r}:", name, by_name)
    wanted = set(names)
    for system in reversed(study.systems):  # who is started from stands before
        if system.name in wanted and system.start is not None:
            wanted.add(system.start)
    return replace(study, systems=tuple(system for system in study.systems if system.name in wanted))


def _system(plain: Any, path: Path, shared: Mapping[str, Any]) -> System:
    where = f"a system of {path}"
    _check_keys(plain, _SYSTEM, where)
    name = str(plain.get("name", ""))
    whole, cached = "finetune" in plain, "extract" in plain
    if not name or whole == cached or cached != ("head" in plain):
        raise OptionError(
            f"{where} ({name or 'without a name'}) must have a name, and either extract and head or finetune."
        )
    if cached and "kind" not in plain["head"]:
        raise OptionError(f"The head of {name!r} in {path} has no kind.", 'Write head = { kind = "linear" }.')
    reported = plain.get("study", {})
    _check_keys(reported, figures.FIGURES, f"the figures of {name!r} in {path}")
    figures.checked(reported, f"the figures of {name!r} in {path}")
    _check_keys(plain.get("curve", {}), CURVE, f"the curve of {name!r} in {path}")
    allowed = [
        each.name for each in fields(Finetuning) if each.name not in (*SPLIT, "dataset", "limit", "test")
    ]
    _check_keys(plain.get("finetune", {}), allowed, f"finetune of {name!r} in {path}")
    head = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.get("head", {}).items()}
    return System(
        name, plain.get("extract"), head, plain.get("node"), plain.get("curve", {}), plain.get("finetune"),
        plain.get("from"), reported, _digest({**plain, "study": None, "shared": shared}),
    )  # fmt: skip


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _check_systems(systems: tuple[System, ...], path: Path) -> None:
    before: list[str] = []
    for system in systems:
        if system.name in before:
            raise OptionError(f"{path} has two systems {system.name!r}.", "Name each once.")
        if system.start is not None and (system.start not in before or system.finetune is None):
            raise OptionError(f"{system.name!r} in {path} cannot start from {system.start!r}.",
                              "Name a system with a head that stands before it.")  # fmt: skip
        before.append(system.name)
    if not systems:
        raise OptionError(f"{path} has no system.", "Write a [[system]].")


def _changed(system: System, changes: Changes) -> System:
    if system.extract is not None:
        return replace(system, extract=_replaced(system.extract, "backbone", changes))
    done = _replaced(system.finetune or {}, "network", changes)
    if changes.epochs is not None:
        done["epochs"] = min(changes.epochs, done.get("epochs", changes.epochs))
    return replace(system, finetune=done)


def _replaced(options: Mapping[str, Any], key: str, changes: Changes) -> dict[str, Any]:
    done = dict(options)
    name = changes.backbones.get(done.get(key, ""), done.get(key, ""))
    if name != done.get(key):
        done[key] = name
        for gone in ("layers", "pool"):  # of the backbone that was replaced
            done.pop(gone, None)
    backbone = bool(name) and "-" not in name  # the small networks have names of their own kind
    spec = changes.weights.get(name, changes.weights.get(""))
    if backbone and name != PIXELS and done.get("weights") != SCRATCH and spec is not None:
        done["weights"] = spec
    if backbone and changes.image_size is not None:
        done["image_size"] = min(changes.image_size, done.get("image_size", changes.image_size))
    return done


def _check_keys(plain: Any, known: Any, where: str) -> None:
    if not isinstance(plain, dict):
        raise OptionError(f"Expected keys and values in {where}, got {plain!r}.")
    for name in plain:
        if name not in known:
            error = unknown("key", name, known)
            raise OptionError(f"{error.message[:-1]} in {where}.", error.hint)
