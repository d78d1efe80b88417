"""`featcache predict`: a trained head on new images."""

from __future__ import annotations

import csv
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.commands import options
from featcache.commands.output import clean, duration, progress_bar, say, show, show_json

if TYPE_CHECKING:
    from featcache.inference.predict import Predicted


@click.command(short_help="Classify new images with a trained head.")
@click.argument("images", metavar="IMAGE|DIR|-...", nargs=-1, required=True)
@click.option("--run", "run_name", required=True, metavar="RUN", help="The run whose head to use.")
@click.option(
    "--top", type=click.IntRange(1), default=1, show_default=True, help="Classes to name, best first."
)
@click.option("--weights", help="Where the backbone's weights are now [default: where they were].")
@options.device
@click.option("--batch-size", type=options.AutoOrNumber(), default="auto", show_default=True)
@click.option(
    "--on-bad-image", type=click.Choice(["error", "skip"]), default="error", show_default=True,
    help="An image that cannot be read stops everything, or is named and left out.",
)  # fmt: skip
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print CSV: path, then class and probability, --top times."
)
@options.features_dir
@options.as_json
def predict(
    images: tuple[str, ...],
    run_name: str,
    top: int,
    weights: str | None,
    device: str,
    batch_size: int | None,
    on_bad_image: str,
    as_csv: bool,
    features_dir: Path,
    as_json: bool,
) -> None:
    """Classify images: files, all images below folders, or, for -, the files that stdin names line by line.

    Backbone, weights, layer, preprocessing and head are rebuilt from the run; weights other than those its
    features were computed with are refused. Prints probability, class and path of each image.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    from featcache.training.runs import find_run

    folder = find_run(features_dir, run_name)  # before anything heavy is imported
    from featcache.api import predictor as open_predictor
    from featcache.inference.files import image_files
    from featcache.inference.predict import predict_files

    with progress_bar(as_json) as progress:
        rebuilt = open_predictor(
            str(folder),
            weights=weights,
            device=device,
            progress=lambda done, total: progress("weights", done, total),
        )
    begin = time.perf_counter()
    paths = image_files(_places(images))
    skip = on_bad_image == "skip"
    found = predict_files(rebuilt, paths, top=top, batch_size=batch_size, skip_bad=skip)
    count = _Count(found)
    if as_json:
        predictions = [_plain(each) for each in count]
    elif as_csv:
        _print_csv(count, min(top, len(rebuilt.classes)))
    else:
        _print(count, max(map(len, rebuilt.classes)))
    seconds = time.perf_counter() - begin
    if as_json:
        show_json({
            "run": folder.name, "images": count.good, "bad_images": count.bad, "seconds": round(seconds, 4),
            "images_per_second": round(count.good / seconds, 2), "predictions": predictions,
        })  # fmt: skip
        return
    bad = f" · {count.bad} could not be read" if count.bad else ""
    say(f"{count.good} images in {duration(seconds)}, {count.good / seconds:,.1f} images/s{bad}")


class _Count:
    """Passes predictions on and counts them."""

    def __init__(self, found: Iterable[Predicted]) -> None:
        self.found, self.good, self.bad = found, 0, 0

    def __iter__(self) -> Iterator[Predicted]:
        for each in self.found:
            self.bad += bool(each.error)
            self.good += not each.error
            yield each


def _places(given: Iterable[str]) -> Iterator[str]:
    for place in given:
        if place == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield place


def _print(found: Iterable[Predicted], width: int) -> None:
    for each in found:
        if each.error:
            say(f"note: {each.path}: {each.error}")
            continue
        (name, probability), *others = each.top
        rest = "".join(f"  ({other} {value:.3f})" for other, value in others)
        show(f"{probability:.4f}  {name:<{width}}  {each.path}{rest}")


def _print_csv(found: Iterable[Predicted], top: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    numbered = [("class", "probability"), *((f"class_{i}", f"probability_{i}") for i in range(2, top + 1))]
    writer.writerow(["path", *itertools.chain.from_iterable(numbered), "error"])
    for each in found:
        cells: list[Any] = list(
            itertools.chain.from_iterable((clean(name), f"{p:.6f}") for name, p in each.top)
        )
        cells += [""] * (2 * top - len(cells))
        writer.writerow([clean(each.path), *cells, each.error])


def _plain(each: Predicted) -> dict[str, Any]:
    top = [{"class": name, "probability": round(value, 6)} for name, value in each.top]
    return {"path": each.path, **(top[0] if top else {"class": None, "probability": None}), "top": top,
            "error": each.error or None}  # fmt: skip
