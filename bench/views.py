"""What augmented views cost and what they give: caches with and without them, heads trained on each.

    python bench/views.py --data DIR --weights FILE --features DIR [--caches none,flip:2,crop:5] [--heads …]

Per cache: images a second and bytes. Per head and way of using the views: accuracy on validation and test,
mean and deviation over seeds, on clean test images and averaged over their views. Options of a head are
chosen by validation accuracy alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import featcache
from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
from featcache.images.policies import text_of
from featcache.store.cache import Cache

GRIDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear": ("linear", {"lr": [1e-4, 3e-4]}, {"batch_size": 256}),
    "mlp": ("mlp", {"lr": [3e-4, 1e-3]}, {"batch_size": 256}),
    "mlp-512": ("mlp", {"lr": [1e-4, 3e-4]}, {"hidden": (512,), "dropout": 0.3, "batch_size": 256}),
    "logreg": ("logreg", {"C": [0.001, 0.003, 0.01, 0.03]}, {}),
}
NETWORKS = ("linear", "mlp", "mlp-512")


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--caches", default="none,flip:2,crop:5")
    parser.add_argument("--heads", default="linear,mlp,mlp-512,logreg", help="empty: extraction alone")
    parser.add_argument("--mode", default="random", help="of network heads; others take all views")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def cached(options: argparse.Namespace, name: str) -> tuple[Cache, dict[str, Any]]:
    """Extract, and return the cache and what it cost."""
    augment, _, count = name.partition(":")
    views: dict[str, Any] = {}
    if augment != "none":
        views = {"views": int(count), "augment": text_of(augment), "views_of": "all"}
    request = Request(
        f"folder:{options.data}",
        options.backbone,
        options.weights,
        image_size=options.image_size,
        precision=options.precision,
        limit=options.limit,
        **views,
    )
    start = time.perf_counter()
    found = extract(request, Settings(features_dir=options.features, device=options.device))
    seconds = time.perf_counter() - start
    rate = found.images / found.extraction_seconds if found.images else 0.0
    facts = {"cache": name, "images": found.images, "seconds": seconds, "rate": rate, "bytes": found.bytes}
    return Cache(found.path), facts


def trained(cache: Cache, head: str, mode: str, seeds: int, device: str) -> dict[str, Any]:
    """Train a head's grid, and return the numbers of the configuration that validation chose."""
    kind, grid, fixed = GRIDS[head]
    many = seeds if head in NETWORKS else 1
    start = time.perf_counter()
    swept = featcache.sweep(
        cache, kind, grid, seeds=many, view_mode=mode, features_dir=cache.path.parent, device=device, **fixed
    )
    seconds = time.perf_counter() - start
    best = swept.configurations[0]
    test, averaged = [], []
    for record in best.records:
        run, where = record["run"], {"features_dir": cache.path.parent}
        test.append(featcache.evaluate(run, **where)["test"]["accuracy"])
        if cache.recipe.views_in("test") > 1:
            averaged.append(featcache.evaluate(run, test_views=True, **where)["test"]["accuracy"])
    return {
        "head": head,
        "mode": mode,
        "values": best.values,
        "epochs": [record["best_epoch"] for record in best.records],
        "val": [record["val"]["accuracy"] for record in best.records],
        "test": test,
        "test_views": averaged,
        "seconds": seconds,
    }


def shown(values: list[float]) -> str:
    """Return mean and deviation of accuracies."""
    if not values:
        return f"{'-':>13}"
    return f"{mean(values):.4f}" + (f" ±{stdev(values):.4f}" if len(values) > 1 else "        ")


def main() -> None:
    """Extract, train, print a table."""
    options = parsed()
    found: list[dict[str, Any]] = []
    for name in options.caches.split(","):
        cache, facts = cached(options, name)
        found.append(facts)
        print(
            f"{name:<18} {facts['images']:>7} images {facts['seconds']:>7.1f} s "
            f"{facts['rate']:>8.0f} images/s {facts['bytes'] / 1e6:>8.0f} MB",
            flush=True,
        )
        for head in filter(None, options.heads.split(",")):
            modes = ["clean"] if name == "none" else [options.mode] if head in NETWORKS else ["all"]
            for mode in modes:
                one = trained(cache, head, mode, options.seeds, options.device)
                found.append({"cache": name, **one})
                print(
                    f"  {name:<16} {head:<8} {mode:<7} val {shown(one['val'])}  test {shown(one['test'])}  "
                    f"test over views {shown(one['test_views'])}  {one['seconds']:>6.1f} s  {one['values']}",
                    flush=True,
                )
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
