"""`featcache sweep`: a head for every point of a grid, trained together, compared on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.commands import options
from featcache.commands.output import duration, say, show, show_json, show_table, status_line
from featcache.commands.train import chosen_parameters, open_cache, parameters, result

if TYPE_CHECKING:
    from featcache.training.ranking import Configuration
    from featcache.training.sweep import News, Swept

_GIB = 1 << 30


@click.command(short_help="Train a head for every point of a grid, many at once.")
@click.option("--head", default="mlp", show_default=True, help="linear, mlp, logreg, svm, ridge or knn.")
@click.option("--cache", help="A cache, or part of its name [default: the one used last].")
@click.option("--node", help="Which node's features [default: the first].")
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=V,V,…",
    help="Values of an option, e.g. lr=1e-4,1e-3; a slash between values that hold commas: "
    "hidden=50,20/128,64.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Heads a configuration.")
@click.option(
    "--random", type=click.IntRange(1), metavar="N", help="Try N combinations, drawn evenly [default: all]."
)
@parameters
@options.split
@options.memory_budget
@click.option("--test", is_flag=True, help="Evaluate the chosen head, and no other, on the test split.")
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="What network heads trained together may take, besides the features.",
)
@options.features_dir
@options.as_json
def sweep(
    head: str,
    cache: str | None,
    node: str | None,
    grid: tuple[str, ...],
    seeds: int,
    random: int | None,
    val_fraction: float,
    split_seed: int,
    split_mode: str,
    memory_budget: int | None,
    test: bool,
    memory: float,
    features_dir: Path,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a head for every combination of the grid's values, and name the best.

    The validation split alone decides; with --test the chosen head is evaluated on the test split at the
    end. Linear and mlp heads of one shape train together, each with its own early stopping, and come out
    as train-head makes them. Every head is stored as a run as soon as it is done: an interrupted sweep
    goes on where it was, and heads trained before with the same options are not trained again.
    """
    from featcache.training.fit import Training
    from featcache.training.grid import parse
    from featcache.training.sweep import Sweep
    from featcache.training.sweep import sweep as run_sweep

    values = parse(head, grid)
    training = Training(
        head,
        chosen_parameters(given),
        node,
        val_fraction,
        split_seed,
        split_mode,
        test,
        memory_budget=memory_budget,
    )
    opened = open_cache(features_dir, cache)
    with status_line(as_json) as line:
        asked = Sweep(training, values, seeds, int(memory * _GIB), random)
        swept = run_sweep(opened, asked, lambda news: line(_progress(news)))
    if as_json:
        show_json(_result(opened.name, head, swept))
    else:
        _show(swept)


def _progress(news: News) -> str:
    best = "" if news.best_accuracy is None else f" · best so far {news.best_accuracy:.4f}"
    return f"{news.done} of {news.total} heads done · {news.alive} training{best}"


def _result(cache: str, head: str, swept: Swept) -> dict[str, Any]:
    return {
        "cache": cache,
        "head": head,
        "heads": swept.heads,
        "found": swept.found,
        "failed": swept.failed,
        "together": swept.together,
        "seconds": round(swept.seconds, 4),
        "configurations": [_line(configuration) for configuration in swept.configurations],
        "best": result(swept.best),
    }


def _line(configuration: Configuration) -> dict[str, Any]:
    return {
        "values": configuration.values,
        "runs": [record["run"] for record in configuration.records],
        "val_accuracy": configuration.mean("val", "accuracy"),
        "val_accuracy_sd": configuration.deviation("val", "accuracy"),
        "val_log_loss": configuration.mean("val", "log_loss"),
        "best_epoch": configuration.mean("best_epoch"),
        "fit_seconds": configuration.mean("fit_seconds"),
        "failures": configuration.failures,
    }


def _show(swept: Swept) -> None:
    from featcache.training.grid import text_of

    names = list(swept.configurations[0].values)
    columns = [*names, "seeds", "val accuracy", "± sd", "val log-loss", "best epoch", "fit s"]
    rows = []
    for configuration in swept.configurations:
        line = _line(configuration)
        numbers = [line[key] for key in ("val_accuracy", "val_accuracy_sd", "val_log_loss")]
        epoch = None if line["best_epoch"] is None else f"{line['best_epoch']:.1f}"
        seconds = None if line["fit_seconds"] is None else f"{line['fit_seconds']:.2f}"
        chosen = [text_of(configuration.values[name]) for name in names]
        rows.append([*chosen, len(line["runs"]), *numbers, epoch, seconds])
    show_table(columns, rows, right=columns[len(names) :])
    _show_best(swept)


def _show_best(swept: Swept) -> None:
    best, chosen = swept.best, swept.best["val"]["accuracy"]
    tested = "" if best["test"] is None else f" · test accuracy {best['test']['accuracy']:.4f}"
    show(f"\nbest run {best['run']} · val accuracy {chosen:.4f}{tested}")
    found = f", {swept.found} of them found finished" if swept.found else ""
    many = f", up to {swept.together} at once" if swept.together > 1 else ""
    say(f"{swept.heads} heads in {duration(swept.seconds)}{found}{many}")
    failures = [text for configuration in swept.configurations for text in configuration.failures]
    if failures:
        say(f"{len(failures)} heads failed, the first one: {failures[0]}")
    if best["test"] is None:
        say(f"next: featcache evaluate {best['run']}")
