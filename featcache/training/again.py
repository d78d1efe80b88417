"""The command line that trains a run's head again, from what its record says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from featcache.training.subsets import Fold, from_record

# what a fine-tuning that begins with a run takes from it
_SPLIT = ("val_fraction", "split_seed", "split_mode")
_BEGUN = {"hidden", "channels", "preprocess", "image_size", "normalize", "limit", "max_pixels", *_SPLIT}


def train_command(run: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the command that makes a run like this one, None where there is no single one, and a remark.

    Every option is given, so that it does not depend on defaults that may change. `request` says where a
    whole network had its images from; runs of heads do not need it.
    """
    if isinstance(run.get("network"), Mapping):
        return _finetune(run, request), ""
    if run.get("subset") is not None:
        rows = from_record(run["subset"])
        kind = "--cv" if isinstance(rows, Fold) else "--few-shot or --fractions"
        return None, f"It was trained on a part of the rows ({rows}) by: featcache sweep … {kind}."
    words = ["featcache", "train-head", "--head", str(run["head"]), "--cache", str(run["cache"])]
    words += ["--node", str(run["node"])]
    for name, value in run["params"].items():
        words += _option(name, value)
    for name, value in run["split"].items():
        words += _option(name, value)
    if run.get("views"):
        words += _option("view_mode", run["views"]["mode"])
    words += ["--calibrate"] if run.get("calibration") else []
    words += ["--test"] if run.get("test") else []
    words += ["--test-views"] if (run.get("test") or {}).get("views", 1) != 1 else []
    remark = "The number of epochs and the choice are those of cross-validation." if run.get("cv") else ""
    return shlex.join(words), remark


def _finetune(run: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return the command that trains a whole network; one begun with a run takes data and split from it."""
    words = ["featcache", "finetune"]
    begun = bool(run["params"].get("from_run"))
    if not begun:
        words += ["--network", str(run["backbone"]), *_option("dataset", request.get("dataset"))]
    for name, value in {**run["params"], **run["split"]}.items():
        unsaid = value in ([], "auto") or (value is None and name != "patience")
        if not unsaid and not (begun and name in _BEGUN):
            words += _option(name, value)
    return shlex.join([*words, *(["--test"] if run.get("test") else [])])


def extract_command(request: Mapping[str, Any]) -> str:
    """Return the command that extracts a cache's features, from the request that its record holds."""
    words = ["featcache", "extract"]
    for name, value in request.items():
        if name == "layers":
            words += [word for layer in value for word in ("--layer", str(layer))]
        else:
            words += _option(name, value)
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return [flag, "0"] if name == "patience" else []  # 0 never stops; others are at their "none"
    if isinstance(value, (list, tuple)):
        return [flag, ",".join(map(str, value))]
    return [flag, str(value)]
