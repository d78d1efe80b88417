"""A run on disk: one trained head, its configuration, history, predictions and numbers.

heads/<run id>/head.safetensors   the head, self-contained
               history.csv        one line an epoch
               predictions.npz    per split: rows of the plan, labels, probabilities
               run.json           written last: what makes the run visible
"""

from __future__ import annotations

import csv
import io
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache import atomic, limits
from featcache.errors import DamagedError, FeatcacheError, RunError
from featcache.objects import is_url
from featcache.recipe import FORMAT
from featcache.store import expected, keeping, records
from featcache.store.arrays import unpack
from featcache.store.checked import read_checked
from featcache.store.folders import places_of_runs

RUN = "run.json"
HEAD = "head.safetensors"
HISTORY = "history.csv"
PREDICTIONS = "predictions.npz"
TEST_PREDICTIONS = "predictions-test.npz"
RUN_ID = re.compile(r"[a-z0-9-]{1,40}-[0-9a-f]{8}")


def new_id(head: str) -> str:
    """Return a new run id: the head's kind and eight random hexadecimal digits."""
    return f"{head}-{secrets.token_hex(4)}"


def folder_of(cache: Path, run: str) -> Path:
    """Return a run's folder."""
    return cache / records.HEADS / run


def write_run(
    folder: Path,
    facts: Mapping[str, Any],
    head: bytes,
    history: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, NDArray[Any]],
    name: str = HEAD,
) -> dict[str, Any]:
    """Write a run whole; until `run.json` is there, readers see none. Return the record.

    `head` are the bytes of what was trained, in a file of this `name`.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    atomic.make_folder(folder)
    files = {name: head, HISTORY: _csv(history), PREDICTIONS: _npz(predictions)}
    for file, data in files.items():
        keeping.write(folder / file, data, settled=file == PREDICTIONS)  # the last, for all of them
    hashes = {file: xxhash.xxh3_128_hexdigest(data) for file, data in files.items()}
    record = {"format": FORMAT, **facts, "files": hashes}
    keeping.write(folder / RUN, records.to_bytes(record))
    return record


def add_predictions(
    folder: Path, record: Mapping[str, Any], predictions: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Add the predictions of the test split to a stored run in a file of their own; return the new record.

    No file that the present record names is touched, so that a crash leaves the run as it was.

    Raises:
        SpaceError, CacheError: it cannot be written.
    """
    data = _npz(predictions)
    files = {**record["files"], TEST_PREDICTIONS: xxhash.xxh3_128_hexdigest(data)}
    keeping.write(folder / TEST_PREDICTIONS, data)
    whole = {**record, "files": files}
    keeping.write(folder / RUN, records.to_bytes(whole))
    return whole


def read_run(folder: Path) -> dict[str, Any]:
    """Return a run's record.

    Raises:
        RunError: there is no finished run in the folder.
        DamagedError, FormatError: its record is damaged, another run's or of an unknown format, or the folder
            is a link.
    """
    try:
        record = records.read_as(folder / RUN, expected.RUN)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"No finished run in {folder}: {RUN} is missing.", "featcache runs lists them."
        ) from None
    for place in (folder, folder.parent):
        if place.is_symlink():
            raise DamagedError(f"{place} is a link to elsewhere, and not read.", "Copy what it leads to.")
    if record["run"] != folder.name:
        raise DamagedError(
            f"{folder / RUN} is damaged: it speaks of run {record['run']!r}.", "A run's folder has its name."
        )
    return record


def read_file(folder: Path, record: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of one of a run's files, checked against its record.

    Raises:
        DamagedError: it is missing or differs.
    """
    path = folder / name
    try:
        data = read_checked(path, limits.RUN_FILE_BYTES(), str(record["files"].get(name)))
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing.", "Train the head again.") from None
    if data is None:
        raise DamagedError(f"{path} differs from what was written.", "Train the head again.")
    return data


def read_predictions(folder: Path, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return a run's predictions: "val/row", "val/label", "val/proba" and the same for test.

    Raises:
        DamagedError: the file is missing or differs.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in (PREDICTIONS, TEST_PREDICTIONS):
        if name in record["files"]:
            try:
                stored = unpack(read_file(folder, record, name))
            except ValueError as error:
                raise DamagedError(
                    f"{folder / name} is damaged: {error}.", "Train the head again."
                ) from error
            found |= {key.replace("__", "/"): array for key, array in stored.items()}
    return found


def all_runs(features_dir: Path) -> Iterator[Path]:
    """Yield the folders of all finished runs of all caches and rosters."""
    for cache in places_of_runs(features_dir):
        for path in sorted((cache / records.HEADS).glob(f"*/{RUN}")):
            yield path.parent


def find_run(features_dir: Path, name: str, unfinished: bool = False) -> Path:
    """Return the folder of the run with this id, folder, or unambiguous beginning of an id.

    Raises:
        RunError: none or several match; the message lists them.
    """
    if is_url(name):
        name = keeping.below(features_dir, name).rpartition("/")[2]
    if name and (Path(name) / RUN).is_file():
        return Path(name).resolve()
    there = _folders(features_dir, unfinished)
    exact = [path for path in there if path.name == name]
    matching = exact or [path for path in there if name and path.name.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = ", ".join(path.name for path in matching[:10])
        raise RunError(f"{name!r} names {len(matching)} runs: {listed}.", "Give more of the id.")
    listed = ", ".join(path.name for path in there[-10:]) or "none yet"
    raise RunError(
        f"No run {name!r} in {keeping.shown(features_dir)}. The latest there: {listed}.",
        "Train one with: featcache train-head --head mlp.",
    )


def _folders(features_dir: Path, unfinished: bool) -> list[Path]:
    if not unfinished:
        return list(all_runs(features_dir))
    folders = [path for cache in places_of_runs(features_dir) for path in (cache / records.HEADS).glob("*")]
    return sorted(path for path in folders if RUN_ID.fullmatch(path.name))


def readable(folders: Iterator[Path]) -> Iterator[dict[str, Any]]:
    """Yield the records of the runs that can be read; a damaged one is left out."""
    for folder in folders:
        try:
            yield read_run(folder)
        except FeatcacheError:
            continue


def _csv(history: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    return text.getvalue().encode()


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    named: dict[str, Any] = {name.replace("/", "__"): array for name, array in arrays.items()}
    np.savez(buffer, **named)
    return buffer.getvalue()
