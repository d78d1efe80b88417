"""`featcache runs`: every head ever trained, filtered and sorted."""

from __future__ import annotations

from pathlib import Path

import click

from featcache.commands import options
from featcache.commands.output import say, show_json, show_table

COLUMNS = ("run", "head", "cache", "val_accuracy", "test_accuracy", "best_epoch", "fit_seconds", "created")


@click.command(short_help="List the runs of all caches.")
@click.option(
    "--where", multiple=True, metavar="CONDITION", help="e.g. head=mlp, val_accuracy>=.7, cache~vgg16."
)
@click.option("--sort", default="created", show_default=True, help="A column; -column for largest first.")
@click.option("--limit", type=click.IntRange(1), help="At most N runs.")
@click.option("--rebuild", is_flag=True, help="Make the ledger anew from the run folders first.")
@options.features_dir
@options.as_json
def runs(
    where: tuple[str, ...], sort: str, limit: int | None, rebuild: bool, features_dir: Path, as_json: bool
) -> None:
    """List trained heads with their metrics, from the ledger of the features folder."""
    from featcache.training.ledger import Ledger

    ledger = Ledger(features_dir)
    if rebuild:
        say(f"{ledger.rebuild()} runs found.")
    found = ledger.runs(where, sort, limit)
    if as_json:
        show_json({"runs": found})
        return
    if not found:
        say("No runs. Train one with: featcache train-head --head mlp")
        return
    right = ("val_accuracy", "test_accuracy", "best_epoch", "fit_seconds")
    show_table(COLUMNS, [[row[name] for name in COLUMNS] for row in found], right=right)
