"""What a report on a study needs: the runs its systems came to, under their names, and its own figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.errors import RunError
from featcache.reporting.reported import Subject, Told
from featcache.studies.file import read_study
from featcache.studies.memory import Known, recall
from featcache.training.runs import find_run


def subject_of(features_dir: Path, path: Path) -> tuple[Subject, list[Path]]:
    """Return what a study's file says of the runs that its systems came to last, and the runs' folders.

    Raises:
        OptionError: the file cannot be read or says what no study says.
        RunError: none of its systems has been run.
    """
    study = read_study(path)
    recalled = recall(features_dir, study)
    there, folders, missing = [], [], list(recalled.missing)
    for known in recalled.known:
        try:
            folders.append(find_run(features_dir, known.run))
            there.append(known)
        except RunError:
            missing.append(f"{known.system.name}: its run {known.run} is gone")
    if not there:
        raise RunError(f"The runs of {study.name!r} are gone.", f"Run it again: featcache study {path}.")
    runs: dict[str, Told] = {}
    for known in there:
        before = runs.get(known.run)  # two systems may have come to one run
        name = known.system.name if before is None else f"{before.label}, {known.system.name}"
        runs[known.run] = Told(name, known.system.figures if before is None else before.figures)
    return Subject(study.name, study.about, _notes(there), runs, tuple(missing)), folders


def _notes(there: Sequence[Known]) -> tuple[str, ...]:
    ways = dict.fromkeys(known.changes for known in there if known.changes)
    return tuple(
        f"Changed from the study's file: {', '.join(way)}. Its figures are no measure of these runs."
        for way in ways
    )
