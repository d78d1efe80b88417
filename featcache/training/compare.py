"""Compare runs on the same rows: how sure is each accuracy, and is one head really better than another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from featcache.costs import costs_of
from featcache.errors import OptionError, RunError
from featcache.training import intervals, runs
from featcache.training.scored import Scored, read_scored

SPLITS = ("test", "val", "cv")  # in the order of preference; cv: the pooled predictions of folds
ALPHA = 1 - intervals.LEVEL


def compare(
    folders: Sequence[Path],
    split: str | None = None,
    *,
    seed: int = 0,
    resamples: int = intervals.RESAMPLES,
) -> dict[str, Any]:
    """Compare runs by their stored predictions; nothing is predicted again.

    Runs of one cache or of several caches of the same data set: rows are matched by the samples' ids.

    Args:
        folders: of the runs, at least one.
        split: "test", "val" or "cv" (cross-validation's pooled predictions); None takes the first that all
            runs have.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        split, rows, seed, resamples; `runs`: run, head, cache, subset, accuracy, low, high, costs; `pairs`:
        a, b, difference (b - a), low, high, only_a and only_b (rows that one head alone got right),
        p (McNemar), p_holm (corrected for the number of pairs), better (a run or None), verdict (a sentence);
        `notes`.

    Raises:
        OptionError: a run is named twice, or the split is unknown.
        RunError: a run has no such predictions, or the runs were not evaluated on the same rows.
        DamagedError: a run or a plan differs from what was written.
    """
    records = [runs.read_run(folder) for folder in folders]
    _check_names(records)
    chosen = _split(records, split)
    scored = read_scored(folders, records, chosen)
    drawing = {"seed": seed, "resamples": resamples}
    return {
        "split": chosen,
        "rows": len(scored[0].right),
        **drawing,
        "runs": [
            {**_alone(each, **drawing), "costs": costs_of(record).told()}
            for each, record in zip(scored, records, strict=True)
        ],
        "pairs": _pairs(scored, **drawing),
        "notes": _notes(scored, records, chosen),
    }


def _check_names(records: Sequence[dict[str, Any]]) -> None:
    names = [record["run"] for record in records]
    if not names:
        raise OptionError("There is nothing to compare.", "Name at least one run: featcache runs lists them.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(f"The run {twice[0]} is named twice.", "Name every run once.")


def _split(records: Sequence[dict[str, Any]], asked: str | None) -> str:
    if asked is not None and asked not in SPLITS:
        raise OptionError(f"Unknown split {asked!r}.", f"Known: {', '.join(SPLITS)}.")
    for split in (asked,) if asked else SPLITS:
        if all(record.get(split) for record in records):
            return split
    split = asked or "val"
    without = [record["run"] for record in records if not record.get(split)]
    raise RunError(
        f"No predictions on {split} in {', '.join(without)}.",
        f"Make them with: featcache evaluate {without[0]}."
        if split == "test"
        else "Train with a validation split, or evaluate every run on test: featcache evaluate RUN.",
    )


def _alone(scored: Scored, *, seed: int, resamples: int) -> dict[str, Any]:
    found = intervals.accuracy_interval(scored.right, seed=seed, resamples=resamples)
    names = {"run": scored.run, "head": scored.head, "cache": scored.cache, "subset": scored.subset}
    return {**names, "accuracy": found.value, "low": found.low, "high": found.high}


def _pairs(scored: Sequence[Scored], *, seed: int, resamples: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for a, b in combinations(scored, 2):
        apart = intervals.discordant(a.right, b.right)
        between = intervals.difference_interval(a.right, b.right, seed=seed, resamples=resamples)
        found.append(
            {
                "a": a.run,
                "b": b.run,
                "difference": between.value,
                "low": between.low,
                "high": between.high,
                "only_a": apart.only_a,
                "only_b": apart.only_b,
                "p": intervals.mcnemar(apart),
            }
        )
    corrected = intervals.holm([pair["p"] for pair in found])
    return [_judged({**pair, "p_holm": p}, len(found)) for pair, p in zip(found, corrected, strict=True)]


def _judged(pair: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Add which run is better, if both the test and the interval say so, and the sentence that says it."""
    sure = pair["p_holm"] <= ALPHA and (pair["low"] > 0 or pair["high"] < 0)
    better = (pair["b"] if pair["difference"] > 0 else pair["a"]) if sure else None
    whole = {**pair, "better": better}
    return {**whole, "verdict": verdict(whole, pairs)}


def verdict(pair: Mapping[str, Any], pairs: int) -> str:
    """Return what a pair shows, as a sentence: "B is better than A by 1.2 points, interval 0.4 to 2.0 …"."""
    a, b = pair["a"], pair["b"]
    if not pair["only_a"] + pair["only_b"]:
        return f"No difference between {a} and {b}: they are right on the very same rows."
    sign, ahead, behind = (1, b, a) if pair["difference"] >= 0 else (-1, a, b)
    points = 100 * sign * pair["difference"]
    low, high = sorted(100 * sign * pair[end] for end in ("low", "high"))
    p = f"McNemar p {_p(pair['p_holm'])}" + (f", corrected for {pairs} pairs" if pairs > 1 else "")
    sizes = f"interval {low:.2f} to {high:.2f} ({p})"
    if pair["better"]:
        return f"{ahead} is better than {behind} by {points:.2f} points, {sizes}."
    lead = f"{ahead} has {points:.2f} points more" if points else "both are right equally often"
    return f"No difference between {a} and {b} can be told: {lead}, {sizes}."


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}" if value < 0.01 else f"= {value:.2f}"


def _subset_notes(scored: Sequence[Scored]) -> list[str]:
    """Say which runs saw other training rows than the rest, where any did."""
    if len({each.subset for each in scored}) < 2:
        return []
    whole = "all training rows"
    saw = ", ".join(f"{each.run} {each.subset or whole}" for each in scored)
    return [f"The heads did not see the same training rows: {saw}."]


def _notes(scored: Sequence[Scored], records: Sequence[dict[str, Any]], split: str) -> list[str]:
    notes = []
    if split == "val" and any(record.get("epochs") for record in records):
        notes.append("The validation rows also chose when to stop: expect a little less on new images.")
    notes += _subset_notes(scored)
    for each in scored:
        if each.right.all():
            least = intervals.least_plausible(len(each.right))
            notes.append(
                f"{each.run} is right on every row, which the bootstrap takes for certain; the exact "
                f"interval reaches down to {least:.4f}."
            )
    return notes
