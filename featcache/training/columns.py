"""The columns of the ledger: where each stands in a run's record, and conditions on them as SQL."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.costs import costs_of
from featcache.errors import OptionError, unknown
from featcache.training.subsets import from_record

_COSTS = "costs"
# column → its SQL type and where in a run's record it stands
COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run": ("TEXT PRIMARY KEY", ("run",)),
    "created": ("TEXT", ("created",)),
    "cache": ("TEXT", ("cache",)),
    "dataset": ("TEXT", ("dataset",)),
    "backbone": ("TEXT", ("backbone",)),
    "node": ("TEXT", ("node",)),
    "head": ("TEXT", ("head",)),
    "subset": ("TEXT", ("subset",)),  # of the training rows, in words
    "train_rows": ("INTEGER", ("train_rows",)),
    "val_accuracy": ("REAL", ("val", "accuracy")),
    "val_macro_f1": ("REAL", ("val", "macro_f1")),
    "val_log_loss": ("REAL", ("val", "log_loss")),
    "val_ece": ("REAL", ("val", "ece")),
    "test_accuracy": ("REAL", ("test", "accuracy")),
    "test_macro_f1": ("REAL", ("test", "macro_f1")),
    "test_log_loss": ("REAL", ("test", "log_loss")),
    "test_ece": ("REAL", ("test", "ece")),
    "cv_accuracy": ("REAL", ("cv", "mean")),
    "temperature": ("REAL", ("calibration", "temperature")),
    "val_ece_before": ("REAL", ("calibration", "val", "ece_before")),
    "test_ece_before": ("REAL", ("calibration", "test", "ece_before")),
    "epochs": ("INTEGER", ("epochs",)),
    "best_epoch": ("INTEGER", ("best_epoch",)),
    "fit_seconds": ("REAL", ("fit_seconds",)),
    "predict_seconds_per_1000": ("REAL", (_COSTS, "predict_seconds_per_1000")),
    "images_per_second": ("REAL", (_COSTS, "images_per_second")),
    "reads": ("TEXT", (_COSTS, "reads")),
    "peak_rss_bytes": ("INTEGER", (_COSTS, "peak_ram_bytes")),
    "rss_since": ("TEXT", (_COSTS, "ram_since")),
    "peak_gpu_bytes": ("INTEGER", (_COSTS, "peak_gpu_bytes")),
    "parameters_trained": ("INTEGER", (_COSTS, "parameters_trained")),
    "parameters": ("INTEGER", (_COSTS, "parameters")),
    "disk_bytes": ("INTEGER", (_COSTS, "disk_bytes")),
    "fitted_together": ("INTEGER", (_COSTS, "together")),
    "params": ("TEXT", ("params",)),
}
# what a best run can be best by → in which order the best comes first
MEASURES = {
    "val_accuracy": "DESC",
    "val_macro_f1": "DESC",
    "val_log_loss": "ASC",
    "val_ece": "ASC",
    "cv_accuracy": "DESC",
    "test_accuracy": "DESC",
    "test_macro_f1": "DESC",
    "test_log_loss": "ASC",
    "test_ece": "ASC",
    "fit_seconds": "ASC",
    "predict_seconds_per_1000": "ASC",
    "peak_rss_bytes": "ASC",
    "peak_gpu_bytes": "ASC",
    "disk_bytes": "ASC",
}
GROUPS = ("cache", "head", "dataset", "backbone")  # what there can be a best run of each of
_PARAMS = "params."
_CONDITION = re.compile(r"([\w.]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*)")


def measure(by: str) -> str:
    """Return the name of a measure; without a split it is the validation split's: "ece" is "val_ece".

    Raises:
        OptionError: there is none.
    """
    for name in (by, f"val_{by}"):
        if name in MEASURES:
            return name
    raise unknown("measure", by, MEASURES)


def values_of(run: Mapping[str, Any]) -> list[Any]:
    """Return a run's row of the ledger, in the order of the columns."""
    return [_value(run, where) for _, where in COLUMNS.values()]


def _value(run: Mapping[str, Any], where: Sequence[str]) -> Any:
    if where[0] == _COSTS:
        return getattr(costs_of(run), where[1])
    value: Any = run
    for key in where:
        value = value.get(key) if isinstance(value, Mapping) else None
    if where == ("subset",):
        return None if value is None else str(from_record(value))
    return json.dumps(value, sort_keys=True) if where == ("params",) else value


def conditions(where: Sequence[str]) -> tuple[str, list[Any]]:
    """Return conditions such as "head=mlp" as an SQL expression, and its values.

    Raises:
        OptionError: a condition cannot be read, or its column is unknown.
    """
    clauses, values = ["1"], []
    for text in where:
        match = _CONDITION.fullmatch(text.strip())
        if match is None:
            raise OptionError(
                f"Cannot read the condition {text!r}.", "Write it as column=value, e.g. head=mlp."
            )
        name, operator, value = match.groups()
        if operator == "~":
            clauses.append(f"instr({column(name)}, ?) > 0")
        else:
            clauses.append(f"{column(name)} {operator} ?")
        values.append(value if operator == "~" else _operand(name, value))
    return " AND ".join(clauses), values


def column(name: str) -> str:
    """Return a column, or one option out of the column `params`, as SQL.

    Raises:
        OptionError: it is unknown.
    """
    option = name.removeprefix(_PARAMS)
    if option != name and re.fullmatch(r"\w+", option):
        return f"json_extract(params, '$.{option}')"
    if name not in COLUMNS:
        raise OptionError(f"Unknown column {name!r}.", f"Known: {', '.join(COLUMNS)}, params.OPTION.")
    return name


def _operand(column: str, value: str) -> float | str:
    """Return what a column is compared with: a number where it holds numbers."""
    if column.startswith(_PARAMS):
        return _typed(value)
    if COLUMNS[column][0].startswith("TEXT"):
        return value
    found = _typed(value)
    if isinstance(found, str):
        raise OptionError(f"{column} holds numbers, got {value!r}.", "Write e.g. val_accuracy>=.7.")
    return found


def _typed(value: str) -> float | str:
    """Return the number that a text is, else the text: what JSON holds is compared by its type."""
    try:
        return float(value)
    except ValueError:
        return value.replace(" ", "")  # lists, which SQLite writes without blanks
