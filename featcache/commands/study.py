"""`featcache study`: every system of a study, its figures beside the study's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.commands import options
from featcache.commands.output import duration, progress_bar, say, show, show_json, show_table

if TYPE_CHECKING:
    from featcache.studies.run import Row


@click.command(short_help="Run a study's file: extract, train and compare what is missing.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="NAME|folder:DIR|csv:FILE", help="Another data set than the file's.")
@click.option("--weights", multiple=True, metavar="[BACKBONE=]SPEC",
              help="Other weights, of all backbones or of one; may be given again.")  # fmt: skip
@click.option(
    "--backbone", multiple=True, metavar="OLD=NEW", help="Another backbone in one's place; likewise."
)
@click.option("--system", "systems", multiple=True, metavar="NAME",
              help="This system alone, and what it starts from; may be given again.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Only the first N images of each class and split.")
@click.option("--image-size", type=click.IntRange(1), help="Another input size of backbones, in pixels.")
@click.option("--epochs", type=click.IntRange(1), help="At most so many epochs of whole networks.")
@options.device
@options.data_dir
@options.features_dir
@options.as_json
def study(
    file: Path,
    dataset: str | None,
    weights: tuple[str, ...],
    backbone: tuple[str, ...],
    systems: tuple[str, ...],
    limit: int | None,
    image_size: int | None,
    epochs: int | None,
    device: str,
    data_dir: Path,
    features_dir: Path,
    as_json: bool,
) -> None:
    """Extract and train whatever a study's file asks for and is not there yet; show all of it in one table.

    Stopped, it goes on where it was; run again, it does nothing and shows the table. With other data,
    weights, sizes or backbones than the file's, which is for trying, the study's figures are no measure.
    """
    from featcache.finetuning.options import Place
    from featcache.studies.file import Changes, changed, only, read_study

    changes = Changes(
        dataset,
        limit,
        _pairs(weights, "--weights", alone=True),
        _pairs(backbone, "--backbone"),
        image_size,
        epochs,
    )
    read = changed(read_study(file), changes)
    read = only(read, systems) if systems else read
    from featcache.studies.run import Watch, run_study

    with progress_bar(as_json) as progress:
        watch = Watch(say, progress, lambda text: None)
        rows = run_study(read, Place(features_dir, data_dir, device, keep_checkpoints=1), watch)
    if as_json:
        show_json({"study": read.name, "dataset": read.dataset, "changes": list(read.changes),
                   "systems": [_plain(row) for row in rows]})  # fmt: skip
        return
    show(f"{read.name}, on {read.dataset}\n")
    _show(rows)
    for row in rows:
        if row.curve:
            _show_curve(row)
    if read.changes:
        words = ", ".join(read.changes)
        say(f"note: changed from the file: {words}; the study's figures are no measure of these.")
    say(f"next: featcache report {file}")


def _pairs(given: tuple[str, ...], flag: str, alone: bool = False) -> dict[str, str]:
    """Return "name=value" texts as a mapping; where they may, one without a name stands under ""."""
    found = {}
    for text in given:
        name, _, value = text.rpartition("=")
        if not value or (not name and not alone):
            raise click.BadParameter(f"{text!r} is not of the form OLD=NEW.", param_hint=flag)
        found[name] = value
    return found


def _plain(row: Row) -> dict[str, Any]:
    record = row.record
    return {
        "system": row.system,
        "run": record["run"],
        "found": row.found,
        "ours": row.ours(),
        "study": dict(row.figures),
        "split": _split(record),
        "val_accuracy": (record.get("val") or {}).get("accuracy"),
        "curve": row.curve,
    }


def _split(record: Any) -> str:
    return "test" if record.get("test") else "val"


_ALWAYS = ("accuracy", "log_loss", "macro_f1", "fit_seconds")


def _show(rows: list[Row]) -> None:
    """Write the table, the study's own figures in brackets behind ours."""
    from featcache.figures import FIGURES

    names = [n for n in FIGURES if n in _ALWAYS or any(n in row.figures for row in rows)]
    told = {n for n in names if any(n in row.figures for row in rows)}
    titles = [f"{FIGURES[n].title} (study)" if n in told else FIGURES[n].title for n in names]
    lines = [[row.system, _split(row.record), *(_beside(row, n) for n in names), row.record["run"]]
             for row in rows]  # fmt: skip
    show_table(["system", "on", *titles, "run"], lines, right=titles)


def _beside(row: Row, name: str) -> str | None:
    ours = _figure(name, row.ours()[name])
    if name not in row.figures:
        return ours
    return f"{ours or '-'} ({_figure(name, row.figures[name])})"


def _figure(name: str, value: Any) -> str | None:
    from featcache.figures import FIGURES

    unit = FIGURES[name].unit
    if value is None or unit in ("class", "epoch"):
        return None if value is None else str(value)
    if unit == "seconds":
        return duration(value)
    return f"{value:.3g} GB" if unit == "gigabytes" else f"{value:.4f}"


def _show_curve(row: Row) -> None:
    show(f"\n{row.system}, by training rows")
    names = ["size", "trials", "val_accuracy", "val_accuracy_sd", "test_accuracy", "test_accuracy_sd"]
    show_table(
        [name.replace("_", " ") for name in names], [[each[name] for name in names] for each in row.curve]
    )
