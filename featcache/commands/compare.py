"""`featcache compare`: how sure an accuracy is, and whether one head is really better than another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import say, show, show_json, show_table, size


@click.command(short_help="Is one run really better than another?")
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--split",
    type=click.Choice(["test", "val", "cv"]),
    help="Compare on these rows [default: the first of them that every run has].",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap.")
@options.features_dir
@options.as_json
def compare(names: tuple[str, ...], split: str | None, seed: int, features_dir: Path, as_json: bool) -> None:
    """Compare runs on the same rows by their stored predictions.

    RUN is a run's id or the beginning of one (`featcache runs`). The runs may be of several caches of one
    data set. Each accuracy gets its 95 % interval (bootstrap, 10 000 resamples); each pair the difference's
    interval (paired bootstrap) and McNemar's exact test, corrected for the number of pairs (Holm). One is
    called better only where both the test and the interval say so.
    """
    from featcache.training.compare import compare as run_comparison
    from featcache.training.runs import find_run

    found = run_comparison([find_run(features_dir, name) for name in names], split, seed=seed)
    if as_json:
        show_json(found)
        return
    show(f"on {found['split']}, {found['rows']} rows; from–to: 95 % intervals")
    keys = {"run": "run", "cache": "cache", "trained on": "subset", "accuracy": "accuracy"}
    keys |= {"from": "low", "to": "high"}
    if all(each["subset"] is None for each in found["runs"]):
        del keys["trained on"]
    rows = [[each[key] for key in keys.values()] for each in found["runs"]]
    show_table(list(keys), rows, right=("accuracy", "from", "to"))
    _show_costs(found["runs"])
    if found["pairs"]:
        show("")
    for pair in found["pairs"]:
        show(pair["verdict"])
    for note in found["notes"]:
        say(f"note: {note}")


def _show_costs(runs: list[dict[str, Any]]) -> None:
    """Write what each run cost; "-" is unknown."""
    columns = ["run", "fit s", "s per 1000", "reads", "peak RAM", "peak GPU", "parameters", "on disk"]
    rows = []
    for each in runs:
        costs = each["costs"]
        sizes = [
            None if costs[key] is None else size(costs[key])
            for key in ("peak_ram_bytes", "peak_gpu_bytes", "disk_bytes")
        ]
        spent = [costs["fit_seconds"], costs["predict_seconds_per_1000"], costs["reads"]]
        rows.append([each["run"], *spent, *sizes[:2], costs["parameters"], sizes[2]])
    show("")
    show_table(columns, rows, right=[name for name in columns if name not in ("run", "reads")])
