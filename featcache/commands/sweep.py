"""`featcache sweep`: a head for every point of a grid, trained together, compared on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.commands import options
from featcache.commands.output import duration, say, show, show_json, show_table, status_line
from featcache.commands.train import chosen_parameters, open_cache, parameters, result

if TYPE_CHECKING:
    from featcache.training.curve import Point
    from featcache.training.ranking import Configuration
    from featcache.training.sweep import News, Swept

_GIB = 1 << 30


class Numbers(click.ParamType[Any]):
    """Numbers with commas between them: `1,5,10`."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the numbers, each once."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(self.kind(part) for part in value.split(",")))
        except ValueError:
            example = "1,5,10,50" if self.kind is int else ".01,.1,1"
            self.fail(f"{value!r} is no list of numbers such as {example}.", param, ctx)


@click.command(short_help="Train a head for every point of a grid, many at once.")
@click.option("--head", default="mlp", show_default=True, help="linear, mlp, logreg, svm, ridge or knn.")
@click.option("--cache", help="A cache, or part of its name [default: the one used last].")
@click.option("--node", help="Which node's features [default: the first].")
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=V,V,…",
    help="Values of an option, e.g. lr=1e-4,1e-3; a slash between values that hold commas: "
    "hidden=50,20/128,64; or with --random or --optuna a range: lr=1e-5..1e-2.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Heads a configuration.")
@click.option(
    "--random", type=click.IntRange(1), metavar="N", help="Try N combinations, drawn evenly [default: all]."
)
@click.option(
    "--optuna", type=click.IntRange(1), metavar="N", help="Try N that Optuna suggests: featcache[optuna]."
)
@click.option(
    "--few-shot", type=Numbers(int), metavar="N,N,…", help="A learning curve: so many training rows a class."
)
@click.option("--fractions", type=Numbers(float), metavar="F,F,…", help="Likewise, shares of every class.")
@click.option(
    "--trials", type=click.IntRange(1), default=5, show_default=True, help="Draws of the rows for each size."
)
@click.option(
    "--cv", type=click.IntRange(2), metavar="K", help="K folds instead of a validation split, for few rows."
)
@click.option(
    "--draw-seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of rows, folds, values.",
)
@parameters
@options.split
@options.memory_budget
@options.view_mode
@click.option("--calibrate", is_flag=True, help="Make a calibrated copy of the chosen head.")
@click.option("--test", is_flag=True, help="Evaluate the chosen head, and no other, on the test split.")
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="What heads fitted together may take, besides the features.",
)
@options.live
@options.features_dir
@options.as_json
def sweep(
    head: str,
    cache: str | None,
    node: str | None,
    grid: tuple[str, ...],
    seeds: int,
    random: int | None,
    optuna: int | None,
    few_shot: tuple[int, ...] | None,
    fractions: tuple[float, ...] | None,
    trials: int,
    cv: int | None,
    draw_seed: int,
    val_fraction: float,
    split_seed: int,
    split_mode: str,
    memory_budget: int | None,
    view_mode: str | None,
    calibrate: bool,
    test: bool,
    memory: float,
    tensorboard: Path | None,
    mlflow: str | None,
    features_dir: Path,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a head for every combination of the grid's values, and name the best.

    The validation split alone decides; with --test the chosen head is evaluated on the test split at the
    end. Heads that can be fitted together are, and come out as train-head makes them. Every head is stored as
    a run as soon as it is done: an interrupted sweep goes on where it was, and heads trained before with the
    same options are not trained again.

    With --few-shot or --fractions the best configuration of every size is shown, its mean and deviation over
    the trials; with --test each of its heads is evaluated once. With --cv every training row validates in one
    of K folds, and the configuration with the best mean is trained on all of them: networks for the mean of
    the folds' best epochs.
    """
    from featcache.live.listeners import listening
    from featcache.training.fit import Training
    from featcache.training.grid import parse, ranges
    from featcache.training.subsets import sizes_of
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
        calibrate=calibrate,
        memory_budget=memory_budget,
        view_mode=view_mode,
    )
    sizes = sizes_of(few_shot or (), fractions or ())
    asked = Sweep(training, values, seeds, int(memory * _GIB), random, optuna, sizes, trials, cv, draw_seed)
    for name, wide in ranges(values).items():
        say(f"{name}: {wide}")
    opened = open_cache(features_dir, cache)
    with status_line(as_json) as line, listening(tensorboard, mlflow, _warn) as listener:
        swept = run_sweep(opened, asked, lambda news: line(_progress(news)), _warn, listener)
    if as_json:
        show_json(_result(opened.name, head, swept))
    elif swept.curve:
        _show_curve(swept)
    else:
        _show(swept)


def _warn(text: str) -> None:
    say(f"note: {text}")


def _progress(news: News) -> str:
    best = "" if news.best_accuracy is None else f" · best so far {news.best_accuracy:.4f}"
    left = "" if news.seconds_left is None else f" · {duration(news.seconds_left)} left"
    return f"{news.done} of {news.total} heads done · {news.alive} training{best}{left}"


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
        "curve": [_size(point) for point in swept.curve],
    }


def _size(point: Point) -> dict[str, Any]:
    best = _line(point.best)
    return {
        "size": str(point.size),
        "per_class": point.size.per_class,
        "fraction": point.size.fraction,
        "rows": point.rows,
        "trials": point.trials,
        **{key: best[key] for key in ("values", "runs", "val_accuracy", "val_accuracy_sd")},
        "test_accuracy": point.best.mean("test", "accuracy"),
        "test_accuracy_sd": point.best.deviation("test", "accuracy"),
        "configurations": [_line(configuration) for configuration in point.configurations],
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
    names = list(swept.configurations[0].values)
    split = "val" if swept.best["cv"] is None else "cv"
    columns = [*names, "runs", f"{split} accuracy", "± sd", f"{split} log-loss", "best epoch", "fit s"]
    rows = []
    for configuration in swept.configurations:
        line = _line(configuration)
        numbers = [line[key] for key in ("val_accuracy", "val_accuracy_sd", "val_log_loss")]
        epoch = None if line["best_epoch"] is None else f"{line['best_epoch']:.1f}"
        seconds = None if line["fit_seconds"] is None else f"{line['fit_seconds']:.2f}"
        rows.append([*_values(configuration), len(line["runs"]), *numbers, epoch, seconds])
    show_table(columns, rows, right=columns[len(names) :])
    _show_best(swept)
    _say_how(swept)


def _show_curve(swept: Swept) -> None:
    names = list(swept.configurations[0].values)
    numbers = ["rows", "trials", "val accuracy", "± sd"]
    tested = any(point.best.mean("test", "accuracy") is not None for point in swept.curve)
    numbers += ["test accuracy", "± sd (test)"] if tested else []
    rows = []
    for point in swept.curve:
        found = _size(point)
        some = [None if found["rows"] is None else f"{found['rows']:g}", found["trials"]]
        some += [found[key] for key in ("val_accuracy", "val_accuracy_sd")]
        some += [found[key] for key in ("test_accuracy", "test_accuracy_sd")] if tested else []
        rows.append([found["size"], *_values(point.best), *some])
    show_table(["training rows", *names, *numbers], rows, right=numbers)
    _say_how(swept)


def _values(configuration: Configuration) -> list[str]:
    from featcache.training.grid import text_of

    return [text_of(value) for value in configuration.values.values()]


def _show_best(swept: Swept) -> None:
    best, cv = swept.best, swept.best["cv"]
    if cv is not None:
        known = f"cv accuracy {cv['mean']:.4f} · trained on all {best['train_rows']} rows"
    else:
        known = f"val accuracy {best['val']['accuracy']:.4f}"
    if calibration := best["calibration"]:
        before, after = (calibration["val"][key] for key in ("ece_before", "ece_after"))
        known += f" · temperature {calibration['temperature']:.4g}, ECE {before:.4f} → {after:.4f}"
    tested = "" if best["test"] is None else f" · test accuracy {best['test']['accuracy']:.4f}"
    show(f"\nbest run {best['run']} · {known}{tested}")
    if best["test"] is None:
        say(f"next: featcache evaluate {best['run']}")


def _say_how(swept: Swept) -> None:
    found = f", {swept.found} of them found finished" if swept.found else ""
    many = f", up to {swept.together} at once" if swept.together > 1 else ""
    say(f"{swept.heads} heads in {duration(swept.seconds)}{found}{many}")
    points = [point.configurations for point in swept.curve] or [swept.configurations]
    failures = [text for point in points for configuration in point for text in configuration.failures]
    if failures:
        say(f"{len(failures)} heads failed, the first one: {failures[0]}")
