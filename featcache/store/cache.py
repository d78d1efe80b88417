"""One cache: one data set under one recipe. Todo = plan - commits; there is no other state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache import atomic, limits
from featcache.errors import CacheError, DamagedError, OptionError, unknown
from featcache.recipe import FORMAT, Recipe
from featcache.store import (
    claims,
    keeping,
    layout,
    plan_file,
    publishing,
    quantised,
    records,
    sealed,
    shard,
    sharing,
)
from featcache.store.plan import Plan, ShardPlan
from featcache.store.records import Commit

if TYPE_CHECKING:
    from featcache.store.table import Table


class Cache:
    """A cache folder: what is planned, what is committed, and the tables of its features.

    Many processes may write into one cache at once; a committed row is never changed.

    Raises:
        CacheError: there is no cache in the folder.
        DamagedError, FormatError: `recipe.json` is damaged or of an unknown format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = records.read_recipe(self.path)

    @classmethod
    def create(cls, path: Path, record: Mapping[str, Any], plan: Plan) -> Cache:
        """Create a cache, or open it where another process was first.

        `record` is the content of `recipe.json` but for the plan's hash.

        Raises:
            SpaceError, CacheError: it cannot be written.
        """
        alone = publishing.prepare(path, settled=False)
        if not (path / records.RECIPE).exists():
            facts = plan_file.write_plan(path, plan)
            whole = {"format": record["recipe"]["format"], **record, "plan": facts}
            publishing.publish_recipe(path, records.to_bytes(whole), alone)
        else:
            atomic.settle(path)  # another process may have linked the recipe a moment ago
        cache = cls(path)
        if cache.key != record["key"]:
            raise CacheError(
                f"{path} holds another cache (key {cache.key[:10]}, expected {record['key'][:10]})."
            )
        return cache

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def key(self) -> str:
        """The key of data set and recipe, 64 hexadecimal digits."""
        return str(self.record["key"])

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe its features were computed by."""
        return Recipe.from_dict(self.record["recipe"])

    @property
    def row_dtype(self) -> str:
        """The dtype of the rows that `commit` takes: "float16" or "float32"."""
        return self.recipe.row_dtype

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return tuple(self.record["dataset"]["classes"])

    @property
    def columns(self) -> dict[str, int]:
        """D of each node."""
        return dict(self.record["columns"])

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes in the order of the recipe."""
        return tuple(node.name for node in self.recipe.nodes)

    @cached_property
    def plan(self) -> Plan:
        """The plan, checked against the hash in `recipe.json`.

        Raises:
            DamagedError: it is missing or differs.
        """
        return plan_file.open_plan(self.path, self.record["plan"], len(self.classes), self._mend())

    def shards(self) -> list[ShardPlan]:
        """Return all planned shards in order."""
        return list(self.plan.shards(int(self.record["rows_per_shard"])))

    def commits(self) -> dict[str, Commit]:
        """Return the commit records by shard name.

        Raises:
            DamagedError: one is damaged, foreign, or speaks of other rows than the plan.
        """
        planned = {part.name: part for part in self.shards()}
        found = {commit.shard: commit for commit in records.read_commits(self.path, self.key)}
        for name, commit in found.items():
            if (part := planned.get(name)) is None or not commit.fits(part.first, part.stop):
                raise DamagedError(f"The commit record of shard {name} in {self.path} does not fit the plan.")
        return found

    def todo(self) -> list[ShardPlan]:
        """Return the shards that nobody has committed yet."""
        done = self.commits()
        return [part for part in self.shards() if part.name not in done]

    def commit(
        self,
        part: ShardPlan,
        features: Mapping[str, NDArray[np.floating]],
        bad: Sequence[tuple[int, str]] = (),
    ) -> bool:
        """Write one shard and commit it; return False if another process had committed it before.

        Args:
            part: the planned shard.
            features: node → (n, D) in `row_dtype`, (n, V, D) where the split has views; zero for `bad` rows.
            bad: (row, reason) of the images that could not be read.

        Raises:
            SpaceError, CacheError: it cannot be written, or another process writes where only one may;
                nothing half-written is visible.
        """
        alone = publishing.prepare(self.path)
        status = np.zeros(len(part), dtype=np.uint8)
        status[[row - part.first for row, _ in bad]] = shard.BAD
        stored, extra = quantised.as_stored(self.recipe.store_dtype, features, status == shard.OK)
        labels = self.plan.labels[part.first : part.stop]
        data = layout.pieces(shard.arrays(stored, labels, part.rows, status, extra))
        digest = layout.hash_of(data)
        record = Commit(
            key=self.key,
            shard=part.name,
            file=f"{part.name}-{digest[:16]}.h5",
            size=sum(len(piece) for piece in data),
            xxh3_128=digest,
            first=part.first,
            last=part.stop - 1,
            rows=len(part),
            bad=tuple(sorted(bad)),
        )
        return publishing.publish_shard(self.path, record, data, alone)

    def seal(self) -> dict[str, Any]:
        """Write the seal once every shard is committed, and return it.

        Raises:
            CacheError: shards are still missing.
        """
        if left := len(self.todo()):
            raise CacheError(f"{self.name} is not finished: {left} shards are missing.", "Extract again.")
        # The last record may be another process's, linked but not yet durable: the seal must not outlive it.
        atomic.settle(self.path / records.COMMITS)
        commits = list(self.commits().values())
        seal = {
            "format": FORMAT,
            "key": self.key,
            "rows": self.plan.counts(),
            "shards": len(commits),
            "bytes": sum(commit.size for commit in commits),
            "bad": sum(len(commit.bad) for commit in commits),
            "commits": records.digest_of(commits),
        }
        data = records.to_bytes(seal)
        path = self.path / records.SEAL
        if not path.exists() or records.read_regular(path, limits.RECORD_BYTES()) != data:
            keeping.write(path, data)
        else:
            atomic.settle(self.path)  # written by another process, perhaps a moment ago
        for folder in (self.path, self.path / records.SHARDS, self.path / records.COMMITS):
            atomic.sweep(folder)
        claims.forget(self.path)
        sharing.release(self.path)
        return seal

    def sealed(self) -> dict[str, Any] | None:
        """Return the seal if the cache is finished and whole by names and sizes, else None.

        Raises:
            DamagedError: a shard or record is missing or not the sealed one.
        """
        return sealed.check_sealed(self.path, self.key)

    def bad_images(self) -> list[tuple[str, str]]:
        """Return (id, reason) of every image that could not be read, in the order of the plan."""
        bad = sorted(each for commit in self.commits().values() for each in commit.bad)
        return [(self.plan.ids[row], reason) for row, reason in bad]

    def blocks(self, commit: Commit, afresh: bool = False) -> dict[str, shard.Block]:
        """Check a shard byte for byte and array by array; return where its arrays lie.

        With `afresh` a copy of one that is elsewhere is made anew.

        Raises:
            DamagedError: it is missing or differs from what was committed.
        """
        path = sealed.check_size(self.path, commit)
        try:
            found = shard.hash_brought(path, commit.xxh3_128, afresh)
        except OSError as error:
            raise self._harmed(path, f"it cannot be read ({error.strerror or error})") from error
        if found != commit.xxh3_128:
            raise self._harmed(path, "its bytes differ from what was committed")
        views = self.recipe.views_in(commit.shard.partition("-")[0])
        blocks = shard.blocks(path, self.columns, self.recipe.store_dtype, commit.rows, views)
        rows = slice(commit.first, commit.last + 1)
        if not np.array_equal(blocks["row"].map(), np.arange(rows.start, rows.stop)) or not np.array_equal(
            blocks["label"].map(), self.plan.labels[rows]
        ):
            raise self._harmed(path, "its rows or labels are not those of the plan")
        status = np.full(commit.rows, shard.OK, dtype=np.uint8)
        status[[row - commit.first for row, _ in commit.bad]] = shard.BAD
        if not np.array_equal(blocks["status"].map(), status):
            raise self._harmed(path, "its bad rows are not those of its commit record")
        return blocks

    def verify(self) -> Iterator[tuple[ShardPlan, str]]:
        """Check every shard; yield (shard, what is wrong) for each, with "" for a good one."""
        done = self.commits()
        for part in self.shards():
            if part.name not in done:
                yield part, "not extracted yet"
                continue
            try:
                self.blocks(done[part.name], afresh=True)
            except DamagedError as error:
                yield part, error.message
            else:
                yield part, ""

    def _harmed(self, path: Path, why: str) -> DamagedError:
        return DamagedError(f"Shard {keeping.shown(path)} is damaged: {why}.", self._mend())

    def _mend(self) -> str:
        return f"Run: featcache verify {self.name} --repair."

    def node(self, node: str | None) -> str:
        """Return the node asked for, the first one where none is named.

        Raises:
            OptionError: the cache has no such node.
        """
        if node is None:
            return self.nodes[0]
        if node not in self.columns:
            raise unknown("node", node, self.columns, OptionError)
        return node

    def table(self, split: str, **options: Any) -> Table:
        """Return the features, labels and ids of a split, see `featcache.store.table.read_table`."""
        from featcache.store.table import read_table

        return read_table(self, split, **options)

    def torch_dataset(self, split: str, **options: Any) -> Any:
        """Return a `torch.utils.data.Dataset` of (feature, label) for those who bring their own loop."""
        from featcache.store.torch_view import TableDataset

        return TableDataset(self.table(split, **options))

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"
