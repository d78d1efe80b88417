"""`featcache demo`: the whole way in under a minute, offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import duration, progress_bar, say, show, show_json, show_table

BACKBONE = "resnet18"
# Digits are 8 × 8 pixels: half the usual input size shows as much of them and takes a quarter of the time.
IMAGE_SIZE = 112
# C=1 is scikit-learn's default: as good for 64 pixels as for 512 features, so that the comparison is fair.
HEADS: dict[str, dict[str, Any]] = {"linear": {}, "mlp": {}, "logreg": {"C": 1.0}, "svm": {}}


@click.command(short_help="Try it: digits through ResNet-18, four heads, one table. Offline.")
@options.data_dir
@options.features_dir
@options.as_json
def demo(data_dir: Path, features_dir: Path, as_json: bool) -> None:
    """Embed scikit-learn's digits with ResNet-18, train four heads on the cache and compare.

    Uses the official ImageNet weights if they are on this machine or can be fetched at once, else random
    ones: even those make better features than raw pixels.
    """
    from featcache.extraction.extract import extract
    from featcache.extraction.request import Request, Settings

    weights = _weights()
    request = Request("digits", BACKBONE, weights, image_size=IMAGE_SIZE)
    settings = Settings(features_dir, data_dir)
    say(f"1. extract: 1797 digits through {BACKBONE} with {weights} weights, once")
    with progress_bar(as_json) as progress:
        found = extract(request, settings, progress)
    say(f"   {found.path} · {duration(found.seconds)}")
    again = extract(request, settings)
    say(f"2. extract again: {'hit' if again.hit else 'miss'} in {again.seconds * 1000:.0f} ms")
    say("3. train heads on the cached features, and one on the raw pixels")
    rows = [*_on_features(found.path), _on_pixels(found.path, data_dir)]
    if as_json:
        show_json(
            {"weights": weights, "extract": found.to_dict(), "hit_seconds": again.seconds, "rows": rows}
        )
        return
    columns = ["head", "features", "val_accuracy", "test_accuracy", "fit_seconds"]
    show_table(columns, [[row[name] for name in columns] for row in rows], right=columns[2:])
    show("\nNext:")
    show(f"  featcache evaluate {rows[0]['run']}                     every class, and the worst one")
    show("  featcache train-head --head mlp --hidden 128,64      another head on the same cache")
    show("  featcache extract --dataset folder:PHOTOS --backbone resnet18      your own images")


def _weights() -> str:
    """Return DEFAULT if the official weights are there or can be had at once, else random:0."""
    from featcache.backbones.weights import load, resolve
    from featcache.errors import WeightsError

    choice = resolve(BACKBONE)
    if not choice.on_disk and not _reachable(choice.url):
        return "random:0"
    try:
        load(BACKBONE, choice)
    except WeightsError as error:
        say(f"   the official weights cannot be used: {error.message}")
        return "random:0"
    return "DEFAULT"


def _reachable(url: str, seconds: float = 3.0) -> bool:
    """Return whether a connection to the server of a URL can be made quickly."""
    import socket
    from urllib.parse import urlsplit

    try:
        with socket.create_connection((urlsplit(url).hostname or "", 443), timeout=seconds):
            return True
    except OSError:
        return False


def _on_features(path: Path) -> list[dict[str, Any]]:
    from featcache.store.cache import Cache
    from featcache.training import fit

    cache, rows = Cache(path), []
    for head, params in HEADS.items():
        record = fit.train(cache, fit.Training(head, params, test=True)).record
        rows.append(
            {
                "head": head,
                "features": BACKBONE,
                "val_accuracy": record["val"]["accuracy"],
                "test_accuracy": record["test"]["accuracy"],
                "fit_seconds": record["fit_seconds"],
                "run": record["run"],
            }
        )
    return rows


def _on_pixels(path: Path, data_dir: Path) -> dict[str, Any]:
    """Train the same logistic regression on the 64 pixels of each digit, with the same splits."""
    import numpy as np

    from featcache.heads.catalogue import create
    from featcache.images.catalogue import open_source
    from featcache.store.cache import Cache

    cache, dataset = Cache(path), open_source("digits", data_dir).open()
    pixels = {}
    for split in ("train", "val", "test"):
        table = cache.table(split)
        values = np.stack([np.asarray(dataset.raw(row)).reshape(-1) for row in table.rows.tolist()])
        pixels[split] = (values.astype(np.float32), table.y)
    head = create("logreg", **HEADS["logreg"])
    begin = time.perf_counter()
    head.fit(*pixels["train"])
    seconds = time.perf_counter() - begin
    return {
        "head": "logreg",
        "features": "raw pixels",
        "val_accuracy": float(head.score(*pixels["val"])),
        "test_accuracy": float(head.score(*pixels["test"])),
        "fit_seconds": round(seconds, 4),
    }
