"""What a comparison shows, in words: who is best, who cannot be told apart from it, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featcache.errors import FeatcacheError
from featcache.reporting import words
from featcache.reporting.gathering import Entry, Group
from featcache.training import intervals
from featcache.training.scored import read_scored

ALPHA = 1 - intervals.LEVEL
_NOTABLE = 1.2  # times as fast
_FEW = 4  # names in a sentence, at most
_SPLITS = {"test": "the test split", "val": "the validation split", "cv": "the folds of cross-validation"}


@dataclass(frozen=True)
class Against:
    """A run beside the most accurate one: the best one's accuracy minus its own, paired, and its interval."""

    run: str
    difference: float
    low: float
    high: float
    p_holm: float

    @property
    def worse(self) -> bool:
        """Whether the best is better for sure: both the test and the interval say so."""
        return self.p_holm <= ALPHA and self.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {**asdict(self), "worse": self.worse}


@dataclass(frozen=True)
class Judged:
    """A group, its runs beside the best (None where they cannot be paired), and what there is to say."""

    group: Group
    against: tuple[Against, ...] | None
    front: tuple[str, ...]  # ids of the runs on the Pareto front of accuracy and fit time, fastest first
    sentences: tuple[str, ...]
    notes: tuple[str, ...]


def judge(group: Group, *, seed: int = 0) -> Judged:
    """Compare every run of a group with its most accurate one, McNemar's test corrected after Holm."""
    against, note = _against(group, seed)
    front = pareto([(entry.costs.fit_seconds, entry.accuracy.value) for entry in group.entries])
    fastest_first = tuple(group.entries[at].run for at in front)
    sentences = [_first(group), *_equals(group, against), *_front(group, fastest_first)]
    return Judged(group, against, fastest_first, tuple(sentences), (*note, *_notes(group)))


def pareto(points: Sequence[tuple[float | None, float]]) -> list[int]:
    """Return which (cost, accuracy) no other is at least as good in both and better in one; cheapest first.

    Points of unknown cost are on no front.
    """
    known = [(cost, -accuracy, at) for at, (cost, accuracy) in enumerate(points) if cost is not None]
    front: list[int] = []
    best: tuple[float, float] | None = None
    for cost, minus, at in sorted(known):
        if best is None or minus < best[1] or (cost, minus) == best:
            front.append(at)
            best = (cost, minus)
    return front


def _against(group: Group, seed: int) -> tuple[tuple[Against, ...] | None, list[str]]:
    entries = group.entries
    if len(entries) < 2:
        return (), []
    try:
        scored = read_scored(
            [each.folder for each in entries], [each.record for each in entries], group.split
        )
    except FeatcacheError as error:
        return None, [f"The runs cannot be paired row by row: {error.message}"]
    best, rest = scored[0].right, scored[1:]
    found = [intervals.difference_interval(each.right, best, seed=seed) for each in rest]
    p = intervals.holm([intervals.mcnemar(intervals.discordant(best, each.right)) for each in rest])
    return tuple(
        Against(each.run, own.value, own.low, own.high, value)
        for each, own, value in zip(rest, found, p, strict=True)
    ), []


def _first(group: Group) -> str:
    best = group.entries[0]
    own = best.accuracy
    sure = f"{words.percent(own.value)} (95 % interval {words.span(own.low, own.high)})"
    where = f"{words.count(group.rows)} rows of {_SPLITS[group.split]}"
    if len(group.entries) == 1:
        return f"{best.label} is right on {sure} of {where}."
    return f"{best.label} is the most accurate of {len(group.entries)} runs: {sure} on {where}."


def _equals(group: Group, against: Sequence[Against] | None) -> list[str]:
    """Say which runs cannot be told apart from the best, and which of these is the fastest to fit."""
    if not against:
        return []
    best, alike = group.entries[0], {each.run for each in against if not each.worse}
    test = f"McNemar's exact test, corrected for {len(against)} comparison{'s'[: len(against) > 1]}"
    if not alike:
        return [f"It is better than every other run ({test}, and an interval without 0)."]
    equals = [entry for entry in group.entries[1:] if entry.run in alike]
    lead = f"No difference between it and {_names(equals)} can be told ({test})"
    rest = len(against) - len(equals)
    tail = "" if not rest else "; the other is worse" if rest == 1 else f"; the other {rest} are worse"
    return [f"{lead}{tail}.", *_fastest(best, equals)]


def _fastest(best: Entry, equals: Sequence[Entry]) -> list[str]:
    known = [entry for entry in (best, *equals) if entry.costs.fit_seconds]
    if best not in known or len(known) < 2:
        return []
    fastest = min(known, key=lambda entry: (entry.costs.fit_seconds or 0.0, entry.label))
    times = (best.costs.fit_seconds or 0.0) / (fastest.costs.fit_seconds or 1.0)
    if times < _NOTABLE:
        return ["None of those that are as good fits notably faster."]
    took = words.seconds(fastest.costs.fit_seconds)
    return [f"Of these {fastest.label} fits fastest, in {took}: {times:.1f} times as fast as {best.label}."]


def _front(group: Group, front: Sequence[str]) -> list[str]:
    if len(group.entries) < 3 or not front:
        return []
    members = [entry for run in front for entry in group.entries if entry.run == run]
    if len(members) == 1:
        return [f"{members[0].label} is both the most accurate and the fastest to fit."]
    listed = [f"{each.label} ({words.seconds(each.costs.fit_seconds)})" for each in members]
    shown = ", ".join(listed[:_FEW]) + (f" and {len(listed) - _FEW} more" if len(listed) > _FEW else "")
    return [f"No run is both faster to fit and more accurate than these: {shown}."]


def _names(entries: Sequence[Entry]) -> str:
    names = [entry.label for entry in entries]
    if len(names) > _FEW:
        return f"{', '.join(names[:_FEW])} and {len(names) - _FEW} more"
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _notes(group: Group) -> list[str]:
    notes = []
    if group.split == "val" and any(entry.record.get("epochs") for entry in group.entries):
        notes.append("The validation rows also chose when to stop: expect a little less on new images.")
    if len(group.entries) > 1:
        notes.append("The most accurate run was picked on these very rows, which flatters it a little.")
    unknown = [entry for entry in group.entries if entry.costs.fit_seconds is None]
    if unknown:
        notes.append(f"The time to fit is unknown for {_names(unknown)}.")
    if any((entry.costs.together or 1) > 1 for entry in group.entries):
        notes.append("Heads fitted together: seconds are each one's share, memory is that of all at once.")
    if any(entry.costs.ram_since == "process start" for entry in group.entries):
        notes.append("Of some runs the peak memory counts from the start of the process, not of the fit.")
    kinds = {entry.costs.reads for entry in group.entries}
    if kinds == {"features"}:
        notes.append("Times begin with features in a cache: for new images the backbone's come on top.")
    if len(kinds) > 1:
        notes.append(
            "Seconds of some runs begin with features that lie in a cache, of others with images: "
            "see the column “reads”."
        )
    for entry in group.entries:
        if entry.accuracy.value == 1:
            least = words.percent(intervals.least_plausible(entry.rows), 2)
            notes.append(f"{entry.label} is right on every row; the exact interval begins at {least}.")
    return notes
