"""`featcache runs`: every head ever trained, the best of each kind, and whether the ledger is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import say, show, show_json, show_table
from featcache.errors import RunError

COLUMNS = (
    "run", "head", "cache", "subset", "val_accuracy", "val_ece_before", "val_ece", "temperature",
    "cv_accuracy", "test_accuracy", "best_epoch", "fit_seconds", "created",
)  # fmt: skip
_SOMETIMES = ("subset", "cv_accuracy")  # shown where a run has one
_CALIBRATED = ("val_ece_before", "val_ece", "temperature")  # shown where a run is calibrated


@click.command(short_help="List the runs of all caches, or the best of each cache or head.")
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="e.g. head=mlp, val_accuracy>=.7, cache~vgg16, params.lr=1e-3.",
)
@click.option("--sort", help="A column; -column for largest first.  [default: created]")
@click.option(
    "--best-by", metavar="COLUMN", help="Only the best run of each cache, e.g. by val_accuracy, ece."
)
@click.option("--per", help="With --best-by: the best of each cache, head, dataset or backbone.")
@click.option("--limit", type=click.IntRange(1), help="At most N runs.")
@click.option("--check", is_flag=True, help="Compare the ledger with the run folders; exit 1 if it differs.")
@click.option("--rebuild", is_flag=True, help="Make the ledger anew from the run folders first.")
@options.features_dir
@options.as_json
def runs(
    where: tuple[str, ...],
    sort: str | None,
    best_by: str | None,
    per: str | None,
    limit: int | None,
    check: bool,
    rebuild: bool,
    features_dir: Path,
    as_json: bool,
) -> None:
    """List trained heads with their metrics, from the ledger of the features folder.

    The ledger is an index: the run folders are the truth, --check compares and --rebuild mends.
    """
    from featcache.training.columns import measure
    from featcache.training.ledger import Ledger

    if per is not None and best_by is None:
        raise click.UsageError("--per needs --best-by, e.g. --best-by val_accuracy.")
    if sort is not None and best_by is not None:
        raise click.UsageError("--best-by puts the best first: leave out --sort.")
    ledger = Ledger(features_dir)
    if rebuild:
        say(f"{ledger.rebuild()} runs found.")
    if check:
        _check(ledger.check(), as_json)
        return
    if best_by is not None:
        best_by = measure(best_by)
        found = ledger.best(best_by, per or "cache", where, limit)
        _warn(found, best_by, per or "cache")
    else:
        found = ledger.runs(where, sort or "created", limit)
    if as_json:
        show_json({"runs": found})
    elif found:
        _show(found, best_by)
    else:
        say("No runs. Train one with: featcache train-head --head mlp")


def _show(found: list[dict[str, Any]], best_by: str | None) -> None:
    calibrated = any(row["temperature"] is not None for row in found)
    left_out = [name for name in _SOMETIMES if all(row[name] is None for row in found)]
    left_out += [] if calibrated else _CALIBRATED
    columns = [name for name in COLUMNS if name not in left_out]
    if best_by is not None and best_by not in columns:
        columns.insert(3, best_by)
    words = ("run", "head", "cache", "subset", "created")
    rows = [[row[name] for name in columns] for row in found]
    show_table(columns, rows, right=[name for name in columns if name not in words])


def _warn(found: list[dict[str, Any]], best_by: str, per: str) -> None:
    """Say what makes such a list mean less than it seems to."""
    datasets = sorted({row["dataset"] for row in found})
    if per in ("head", "backbone") and len(datasets) > 1:
        say(f"note: runs of {len(datasets)} data sets are mixed; one alone: --where dataset={datasets[0]}")
    if best_by.startswith("test_"):
        say("note: what is chosen on the test split looks better there than it is; choose by val_…")


def _check(found: Any, as_json: bool) -> None:
    wrong = {**found.differing, **found.unreadable}
    if not as_json:
        for run, what in wrong.items():
            show(f"{run}: {what}")
    if wrong:
        listed = ", ".join(list(wrong)[:5]) + (" …" if len(wrong) > 5 else "")
        raise RunError(
            f"The ledger and the {found.runs} run folders differ in {len(wrong)}: {listed}. "
            f"{next(iter(wrong))}: {next(iter(wrong.values()))}",
            "Run: featcache runs --rebuild."
            if found.differing
            else "These records cannot be read: train the heads again, or move the folders away.",
        )
    if as_json:
        show_json({"runs": found.runs, "differences": wrong})
    else:
        show(f"The ledger and the {found.runs} run folders agree.")
