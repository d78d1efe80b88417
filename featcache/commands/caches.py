"""`featcache ls` and `featcache info`: what caches there are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import duration, one_line, say, show, show_json, show_table, size
from featcache.errors import FeatcacheError
from featcache.store import keeping


@click.command(short_help="List the caches, or the data sets known by name.")
@click.option("--datasets", is_flag=True, help="List the data sets known by name instead.")
@options.features_dir
@options.as_json
def ls(datasets: bool, features_dir: Path, as_json: bool) -> None:
    """List the caches of the features folder: rows, columns, size and whether they are finished."""
    if datasets:
        _list_datasets(as_json)
        return
    from featcache.store.folders import caches_in

    found = [_line(path) for path in caches_in(features_dir)]
    if as_json:
        show_json({"caches": found})
        return
    if not found:
        say(f"No caches in {keeping.shown(features_dir)}. Make one with: featcache extract --backbone vgg16")
        return
    rows = [[row["cache"], row["rows"], row["columns"], row["size"], row["state"]] for row in found]
    show_table(["cache", "rows", "columns", "size", "state"], rows, right=["rows", "columns", "size"])


def _line(path: Path) -> dict[str, Any]:
    from featcache.store import records, sealed

    row: dict[str, Any] = {
        "cache": path.name,
        "rows": None,
        "columns": None,
        "size": None,
        "state": "finished",
    }
    try:
        record = records.read_recipe(path)
        row["rows"] = sum(record["dataset"]["rows"].values())
        row["columns"] = " + ".join(str(width) for width in record["columns"].values())
        if views := record["recipe"].get("views"):
            row["columns"] += f" × {views['count']} views"
        seal = sealed.check_sealed(path, record["key"])
        if seal is None:
            done = sum(commit.rows for commit in records.read_commits(path, record["key"]))
            row["state"] = f"{done} of {row['rows']} rows"
        else:
            row["size"] = size(seal["bytes"])
    except FeatcacheError as error:
        row["state"] = f"damaged: {error.message}"
    return row


def _list_datasets(as_json: bool) -> None:
    from featcache.images.catalogue import known

    found = [{"name": name, "about": about} for name, about in known()]
    if as_json:
        show_json({"datasets": found})
        return
    show_table(["name", "about"], [[row["name"], row["about"]] for row in found])


@click.command(short_help="What is in a cache: recipe, splits, classes, bad images, heads.")
@click.argument("cache", required=False)
@options.features_dir
@options.as_json
def info(cache: str | None, features_dir: Path, as_json: bool) -> None:
    """Show a cache's recipe, sizes, splits, classes, unreadable images, timings and heads.

    CACHE is a cache's name or part of it; without it, the one used last.
    """
    from featcache.commands.train import open_cache

    facts = _facts(open_cache(features_dir, cache), features_dir)
    if as_json:
        show_json(facts)
        return
    _show_facts(facts)


def _show_facts(facts: dict[str, Any]) -> None:
    show(f"{facts['cache']}\n")
    for name, value in _flat(facts["recipe"]):
        show(f"  {one_line(name):<26} {one_line(value)}")
    show(f"\n  {'rows':<26} " + ", ".join(f"{split} {count}" for split, count in facts["rows"].items()))
    show(f"  {'columns':<26} " + ", ".join(f"{node} {width}" for node, width in facts["nodes"].items()))
    show(
        f"  {'size':<26} {size(facts['bytes'])} in {facts['shards']} shards"
        + ("" if facts["sealed"] else ", unfinished")
    )
    show(
        f"  {'classes':<26} {len(facts['classes'])}: {one_line(', '.join(facts['classes'][:12]))}"
        + (" …" if len(facts["classes"]) > 12 else "")
    )
    ignored, bad = facts["ignored"], facts["bad_images"]
    for label, count, listed in (
        ("ignored files", ignored["count"], ignored["first"]),
        ("unreadable images", len(bad), bad),
    ):
        if listed:
            show(f"\n  {label}: {count}")
            for each in listed[:20]:
                show(f"    {one_line(each if isinstance(each, str) else each['id'] + ': ' + each['reason'])}")
            if count > 20:
                show(f"    and {count - 20} more (--json names more)")
    for each in facts["extractions"]:
        rate = each["images"] / max(each["seconds"], 1e-9)
        took = (
            f"{duration(each['seconds'])} ({rate:.1f}/s) on {each['device']}, {each.get('runtime', 'torch')}"
        )
        show(f"\n  extracted {each['images']} images in {took}")
    if facts["runs"]:
        show("\n  heads")
        show_table(
            ["run", "val_accuracy", "test_accuracy"],
            [[r["run"], r["val_accuracy"], r["test_accuracy"]] for r in facts["runs"]],
        )


def _facts(cache: Any, features_dir: Path) -> dict[str, Any]:
    from featcache.extraction.memory import extractions
    from featcache.training.ledger import Ledger

    commits = cache.commits()
    return {
        "cache": keeping.shown(cache.path),
        "fingerprint": cache.key,
        "sealed": cache.sealed() is not None,
        "recipe": cache.record["recipe"],
        "request": cache.record["request"],
        "versions": cache.record["versions"],
        "rows": cache.plan.counts(),
        "nodes": {node: cache.columns[node] for node in cache.nodes},
        "bytes": sum(commit.size for commit in commits.values()),
        "shards": len(commits),
        "rows_per_shard": cache.record["rows_per_shard"],
        "classes": list(cache.classes),
        "ignored": cache.record["dataset"]["ignored"],
        "bad_images": [{"id": name, "reason": reason} for name, reason in cache.bad_images()],
        "extractions": extractions(features_dir, cache.name),
        "runs": Ledger(features_dir).runs([f"cache={cache.name}"]),
    }


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, each in enumerate(value):
                lines += _flat(each, f"{prefix}{name}[{number}].")
        else:
            lines.append(
                (f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    return lines
