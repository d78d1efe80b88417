"""A roster: the rows of a data set without features, which the runs of whole networks refer to.

roster.json   write-once: key, the data set (name, fingerprint, classes, rows), where its images were
plan.npz      as in a cache: id, label, split, content hash per row
heads/        runs, as in a cache

It is to such runs what a cache is to heads, so that their predictions can be matched row by row with those of
heads on cached features of the same data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from featcache import atomic
from featcache.errors import CacheError
from featcache.recipe import FORMAT, sha256_of
from featcache.store import expected, keeping, plan_file, records
from featcache.store.cache import Cache
from featcache.store.plan import Plan

NAME = "finetune"  # what stands in the folder's name where a cache has its backbone
_MEND = "Move the folder away and train again."


class Roster:
    """A folder of runs of whole networks on one data set.

    Raises:
        CacheError: there is no roster in the folder.
        DamagedError, FormatError: its record is damaged or of an unknown format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.record = records.read_as(self.path / records.ROSTER, expected.ROSTER)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheError(
                f"No {records.ROSTER} in {self.path}.", "featcache runs lists the runs."
            ) from error

    @classmethod
    def create(
        cls, features_dir: Path, dataset: Mapping[str, Any], request: Mapping[str, Any], plan: Plan
    ) -> Roster:
        """Create the roster of a data set, or open the one there is.

        Args:
            features_dir: where caches are.
            dataset: name, fingerprint, classes, rows.
            request: where the images are: `dataset`, `limit`, `max_pixels`.
            plan: all rows.

        Raises:
            SpaceError, CacheError: it cannot be written.
        """
        key = _key(dataset["fingerprint"])
        path = cls.path_of(features_dir, dataset["name"], dataset["fingerprint"])
        atomic.make_folder(path / records.HEADS)
        if not (path / records.ROSTER).exists():
            facts = plan_file.write_plan(path, plan)
            whole = {"format": FORMAT, "key": key, "dataset": dataset, "request": request, "plan": facts}
            keeping.publish_once(path / records.ROSTER, records.to_bytes(whole))
        found = cls(path)
        if found.key != key:
            raise CacheError(f"{path} holds the rows of another data set.", _MEND)
        return found

    @staticmethod
    def path_of(features_dir: Path, name: str, fingerprint: str) -> Path:
        """Return the folder that the roster of a data set has, whether it is there or not."""
        return features_dir / records.folder_name(name, NAME, _key(fingerprint))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def key(self) -> str:
        """The key of the data set, 64 hexadecimal digits."""
        return str(self.record["key"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return tuple(self.record["dataset"]["classes"])

    @cached_property
    def plan(self) -> Plan:
        """The plan, checked against the hash in the record.

        Raises:
            DamagedError: it is missing or differs.
        """
        return plan_file.open_plan(self.path, self.record["plan"], len(self.classes), _MEND)


def _key(dataset_fingerprint: str) -> str:
    return sha256_of({"roster": dataset_fingerprint})


def is_roster(path: Path) -> bool:
    """Return whether a folder is a roster; nothing in it is read."""
    return (path / records.ROSTER).is_file()


def open_rows(path: Path) -> Cache | Roster:
    """Return what the runs in a folder refer to: a cache or a roster; both have name, plan and classes.

    Raises:
        CacheError: the folder is neither.
    """
    return Roster(path) if is_roster(path) else Cache(path)
