"""`featcache train-head` and `featcache evaluate`: a head on cached features, and what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from featcache.commands import options
from featcache.commands.output import duration, progress_bar, say, show, show_json, show_table
from featcache.costs import costs_of

# Options that go to the head as they are; a head that does not know one says which it knows.
HEADS = "linear, mlp, logreg, svm, ridge, knn, tree, forest, boosting, naive-bayes or dummy."
PARAMETERS = {
    "hidden": (options.Sizes(), "Sizes of the hidden layers of mlp, e.g. 50,20."),
    "lr": (float, "Learning rate."),
    "weight_decay": (float, "Weight decay."),
    "dropout": (float, "Dropout between hidden layers."),
    "optimizer": (click.Choice(["adam", "adamw"]), "Optimiser."),
    "batch_size": (int, "Rows a step."),
    "epochs": (int, "Most epochs."),
    "patience": (int, "Epochs without a better one before stopping; 0 never stops."),
    "min_delta": (float, "How much better counts as better."),
    "monitor": (click.Choice(["val_loss", "val_accuracy"]), "What early stopping watches."),
    "C": (float, "Inverse penalty of logreg and svm."),
    "kernel": (click.Choice(["linear", "rbf", "rbf-approx"]), "Kernel of svm."),
    "gamma": (str, "Width of the rbf kernel: scale, auto or a number."),
    "landmarks": (int, "Rows that stand for all in svm --kernel rbf-approx."),
    "alpha": (float, "Penalty of ridge."),
    "solver": (
        click.Choice(["auto", "featcache", "sklearn", "intelex"]),
        "Who solves logreg and svm: auto is featcache, of svm --kernel rbf scikit-learn, the reference; "
        "intelex, of that kernel alone, is several times as fast: featcache[intelex].",
    ),
    "k": (int, "Neighbours of knn."),
    "metric": (click.Choice(["cosine", "euclidean"]), "Distance of knn."),
    "criterion": (click.Choice(["gini", "entropy"]), "What a split of tree and forest should lessen."),
    "n_estimators": (int, "Trees of forest; rounds of boosting, at most."),
    "max_depth": (int, "Depth of a tree, at most."),
    "max_leaf_nodes": (int, "Leaves of a tree of boosting, at most."),
    "min_samples_leaf": (int, "Training rows in a leaf, at least."),
    "max_features": (str, "Columns a split of forest looks at: sqrt, all or a share."),
    "standardize": (
        click.Choice(["auto", "yes", "no"]),
        "Scale columns by the training rows' mean and deviation.",
    ),
    "compute_precision": (
        click.Choice(["auto", "fp32", "bf16"]),
        "Of a network head's products while it trains; auto is fp32. bf16 rounds, and is faster.",
    ),
    "seed": (int, "Seed of initialisation, shuffling and dropout; of rbf-approx, the landmarks."),
    "device": (str, "auto, cpu or cuda[:i]."),
}


def parameters(function: Any) -> Any:
    """Add an option for each parameter of a head."""
    for name, (kind, text) in reversed(PARAMETERS.items()):
        flag = f"--{name.replace('_', '-')}"
        function = click.option(flag, name, type=kind, help=text)(function)
    return function


@click.command(name="train-head", short_help="Train a head on a cache, in seconds.")
@click.option("--head", default="mlp", show_default=True, help=HEADS)
@click.option("--cache", help="A cache, or part of its name [default: the one used last].")
@click.option("--node", help="Which node's features [default: the first].")
@parameters
@options.split
@options.memory_budget
@options.view_mode
@click.option("--calibrate", is_flag=True, help="Make probabilities honest: temperature scaling on val.")
@click.option("--test", is_flag=True, help="Evaluate on the test split too: once, for the head you chose.")
@options.test_views
@click.option(
    "--keep-checkpoints", type=click.IntRange(0), default=0, help="Keep the last N epochs, to resume from."
)
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run that kept checkpoints.")
@options.live
@options.features_dir
@options.as_json
def train_head(
    head: str,
    cache: str | None,
    node: str | None,
    val_fraction: float,
    split_seed: int,
    split_mode: str,
    memory_budget: int | None,
    view_mode: str | None,
    calibrate: bool,
    test: bool,
    test_views: bool,
    keep_checkpoints: int,
    resume: str | None,
    tensorboard: Path | None,
    mlflow: str | None,
    features_dir: Path,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a head on cached features; print its validation metrics and store the run.

    The validation split decides when to stop and which epoch is best. The test split is read only
    with --test, at the end. A data set without a validation split of its own lends one out of its
    training rows; changing how costs nothing, for the features stay the same.
    """
    from featcache.live.listeners import listening
    from featcache.training import fit

    chosen = chosen_parameters(given)
    if resume is not None:
        _refuse_beside_resume()
    with progress_bar(as_json) as progress, listening(tensorboard, mlflow, _note) as listener:
        watch = fit.Watch(
            layers=(lambda rows: None) if as_json else show_layers,
            epoch=lambda report: progress("epoch", report.epoch, report.epochs),
            warns=_note,
            listener=listener,
            keeps=lambda run: say(f"run {run}: if it is stopped, featcache train-head --resume {run}"),
        )
        if resume is not None:
            trained = fit.resume(features_dir, resume, chosen.get("epochs"), watch)
        else:
            training = fit.Training(
                head, chosen, node, val_fraction, split_seed, split_mode, test, keep_checkpoints, calibrate,
                memory_budget, view_mode=view_mode, test_views=test_views,
            )  # fmt: skip
            trained = fit.train(open_cache(features_dir, cache), training, watch)
    if as_json:
        show_json(result(trained.record))
    else:
        show_run(trained.record)


_WITH_RESUME = ("resume", "epochs", "features_dir", "as_json", "tensorboard", "mlflow")


def _note(text: str) -> None:
    say(f"note: {text}")


def _refuse_beside_resume() -> None:
    """An interrupted run knows its options; another value given beside it would be ignored."""
    context = click.get_current_context()
    for name in context.params:
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _WITH_RESUME:
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} cannot be given with --resume: the run goes on as it began.")


def chosen_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that were given, as the head takes them."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if "gamma" in chosen and chosen["gamma"] not in ("scale", "auto"):
        chosen["gamma"] = _number(chosen["gamma"], "--gamma")
    if "max_features" in chosen and chosen["max_features"] not in ("sqrt", "all"):
        chosen["max_features"] = _number(chosen["max_features"], "--max-features")
    if chosen.get("patience") == 0:
        chosen["patience"] = None
    return chosen


def open_cache(features_dir: Path, name: str | None) -> Any:
    """Return the cache named, or the one used last, which is said.

    Raises:
        CacheError: there is none, or several match; those there are are listed.
    """
    from featcache.store.cache import Cache
    from featcache.store.folders import find_cache
    from featcache.store.recent import last_used, mark_used

    chosen = name if name is not None else last_used(features_dir)
    cache = Cache(find_cache(features_dir, chosen or ""))
    if name is None:
        say(f"cache {cache.name} (used last; another one: --cache)")
    mark_used(features_dir, cache.name)
    return cache


def result(record: dict[str, Any]) -> dict[str, Any]:
    """Return the documented keys of `train-head --json` and `evaluate --json`."""
    keys = (
        "run",
        "head",
        "cache",
        "val",
        "test",
        "best_epoch",
        "epochs",
        "cv",
        "subset",
        "views",
        "train_rows",
        "calibration",
        "fit_seconds",
        "peak_rss_bytes",
        "params",
    )
    return {**{key: record.get(key) for key in keys}, "costs": costs_of(record).told()}


def show_layers(rows: Any) -> None:
    """Write the table of layers with their trainable and frozen parameters to stderr."""
    wide = max(len(row.name) for row in rows)
    say(f"{'layer':<{wide}}  {'kind':<14}  {'shape':<14} {'trainable':>10} {'frozen':>10}")
    for row in rows:
        shape = " × ".join(map(str, row.shape))
        say(f"{row.name:<{wide}}  {row.kind:<14}  {shape:<14} {row.trainable:>10,} {row.frozen:>10,}")
    trainable, frozen = sum(row.trainable for row in rows), sum(row.frozen for row in rows)
    say(f"{'all':<{wide}}  {'':<14}  {'':<14} {trainable:>10,} {frozen:>10,}\n")


def show_run(record: dict[str, Any]) -> None:
    """Write a run's metrics to stdout, and what to do next to stderr."""
    rows = []
    for split in ("cv", "val", "test"):
        if found := record.get(split):
            worst = found["worst_class"]
            rows.append(
                [split, found["accuracy"], found["top5"], found["macro_f1"], found["log_loss"], found["ece"],
                 f"{worst['class']} (F1 {worst['f1']:.3f})"]
            )  # fmt: skip
    if rows:
        columns = ["split", "accuracy", "top5", "macro F1", "log-loss", "ECE", "worst class"]
        show_table(columns, rows, right=columns[1:6])
    if calibration := record.get("calibration"):
        show(f"\n{_calibration(calibration)}")
    epochs = f" · {record['epochs']} epochs, best {record.get('best_epoch')}" if record.get("epochs") else ""
    views = f" · views: {v['mode']}, of {v['count']}" if (v := record.get("views")) else ""
    show(f"\nrun {record['run']} · fit {duration(record['fit_seconds'])}{epochs}{views}")
    for note in record["notes"]:
        say(f"note: {note}")
    if record["test"] is None:
        say(f"next: featcache evaluate {record['run']}")


def _calibration(record: dict[str, Any]) -> str:
    errors = [
        f"ECE on {split} {record[split]['ece_before']:.4f} → {record[split]['ece_after']:.4f}"
        for split in ("val", "test")
        if record[split]
    ]
    return " · ".join([f"calibrated, temperature {record['temperature']:.4g}", *errors])


@click.command(short_help="Metrics of a run on the validation and test splits, class by class.")
@click.argument("run")
@options.test_views
@options.features_dir
@options.as_json
def evaluate(run: str, test_views: bool, features_dir: Path, as_json: bool) -> None:
    """Load a run's head and evaluate it on the validation and the test split.

    RUN is a run's id or the beginning of one (`featcache runs`). Shows accuracy, top-5, macro precision,
    recall and F1, log-loss, expected calibration error, the confusion matrix, every class and the worst one.
    """
    from featcache.api import evaluate as run_evaluation

    found = run_evaluation(run, test_views=test_views, features_dir=features_dir)
    if as_json:
        details = {split: {**(found[split] or {}), **each} for split, each in found["details"].items()}
        show_json({**result(found), **details})
        return
    show_run(found)
    split = "test" if "test" in found["details"] else "val"
    details = found["details"][split]
    show(f"\n{split}, class by class")
    columns = ["class", "precision", "recall", "F1", "rows"]
    rows = [
        [row["class"], row["precision"], row["recall"], row["f1"], row["support"]]
        for row in details["per_class"]
    ]
    show_table(columns, rows, right=columns[1:])
    if len(rows) <= 20:
        _show_confusion([row["class"] for row in details["per_class"]], details["confusion"])


def _show_confusion(names: list[str], counts: list[list[int]]) -> None:
    show("\nconfusion: rows are the true class, columns the predicted one")
    numbers = [str(number) for number in range(len(names))]
    lines = [[f"{number} {name}", *line] for number, name, line in zip(numbers, names, counts, strict=True)]
    show_table(["", *numbers], lines, right=numbers)


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number nor one of its names.", param_hint=flag
        ) from None
