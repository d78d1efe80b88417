"""The store: plan, shards, commit records, seal, mapping and tables."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import CacheError, DamagedError, FeatcacheError, FormatError, OptionError
from featcache.store import records, shard
from featcache.store.cache import Cache
from featcache.store.folders import find_cache
from featcache.store.mapping import one_array
from featcache.store.plan import Plan, rows_per_shard
from tests.kit_caches import empty_cache, features, fill, plan

COUNTS = {"train": 50, "val": 6, "test": 20}


def test_a_plan_survives_bytes_with_any_names() -> None:
    names = ["train/a b.png", "train/ü.png", "train/\udcff.png", "train/日本.png"]
    made = Plan(names, np.arange(4), np.zeros(4, np.uint8), np.zeros((4, 16), np.uint8))
    read = Plan.from_bytes(made.to_bytes())
    assert list(read.ids) == names
    assert np.array_equal(read.labels, made.labels)
    assert made.to_bytes() == read.to_bytes()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_plan_or_damaged(data: bytes) -> None:
    with pytest.raises(DamagedError):
        Plan.from_bytes(data)


@given(
    counts=st.fixed_dictionaries({s: st.integers(0, 40) for s in ("train", "val", "test")}),
    size=st.integers(1, 17),
)
def test_shards_hold_every_row_once_and_one_split_each(counts: dict[str, int], size: int) -> None:
    made = plan(counts)
    parts = list(made.shards(size))
    rows = [row for part in parts for row in part.rows.tolist()]
    assert rows == list(range(len(made)))
    assert all(1 <= len(part) <= size for part in parts)
    for part in parts:
        assert {int(code) for code in made.splits[part.first : part.stop]} == {
            ("train", "val", "test").index(part.name.split("-")[0])
        }


@given(st.integers(1, 200_000))
def test_shards_are_about_64_mib_and_whole_pages_where_that_is_cheap(row_bytes: int) -> None:
    rows = rows_per_shard(row_bytes)
    assert 1 <= rows <= 4096
    assert rows == 1 or rows * row_bytes <= 64 * 1024 * 1024
    if row_bytes % 256 == 0:
        assert rows * row_bytes % 4096 == 0


def test_a_shard_is_plain_hdf5_aligned_and_repeatable(tmp_path: Path) -> None:
    rows = np.arange(10, dtype=np.int64)
    arrays = {"a": features(rows, 5), "b": features(rows, 7)}
    data = shard.build(arrays, rows % 3, rows, np.zeros(10, np.uint8))
    assert data == shard.build(arrays, rows % 3, rows, np.zeros(10, np.uint8))
    path = tmp_path / "s.h5"
    path.write_bytes(data)
    found = shard.blocks(path, {"a": 5, "b": 7}, "float16", 10)
    assert all(block.offset % 4096 == 0 for block in found.values())
    assert np.array_equal(found["features/b"].map(), arrays["b"])
    with h5py.File(path) as file:
        assert np.array_equal(file["features/a"][:], arrays["a"])
        assert len(file.attrs) == 0


def test_a_filled_cache_gives_back_what_went_in(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS, {"flatten": 2048}, rows_per_shard=8))
    opened = Cache(cache.path)
    for split in COUNTS:
        table = opened.table(split)
        assert np.array_equal(table.X, features(table.rows, 2048))
        assert np.array_equal(table.y, table.rows % 3)
        assert table.ids == [opened.plan.ids[row] for row in table.rows]
        assert not table.X.flags.writeable
    assert opened.classes == ("ape", "bee", "cat")


@pytest.mark.parametrize("width", [2048, 5])
def test_shards_are_joined_whether_or_not_they_can_be_mapped(tmp_path: Path, width: int) -> None:
    cache = fill(empty_cache(tmp_path, {"train": 50}, {"flatten": width}, rows_per_shard=8))
    parts = [cache.blocks(commit)["features"] for commit in cache.commits().values()]
    joined = one_array(parts)
    assert len(parts) == 7
    assert np.array_equal(joined, features(np.arange(50), width))


def test_a_run_of_rows_is_a_view_and_other_rows_a_copy(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, {"train": 50}, {"flatten": 2048}, rows_per_shard=8))
    last = cache.table("train", split_mode="last")
    assert np.shares_memory(last.X, last.base)
    assert not np.shares_memory(cache.table("train").X, cache.table("train").base)


def test_the_validation_split_is_that_of_random_split(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, {"train": 50, "test": 4}, rows_per_shard=8))
    generator = torch.Generator().manual_seed(7)
    train, val = torch.utils.data.random_split(range(50), [0.7, 0.3], generator=generator)
    options = {"val_fraction": 0.3, "split_seed": 7}
    assert cache.table("train", **options).rows.tolist() == sorted(train.indices)
    assert cache.table("val", **options).rows.tolist() == sorted(val.indices)
    assert len(cache.table("train", val_fraction=0)) == 50
    with pytest.raises(CacheError, match="no rows for the split 'val'"):
        cache.table("val", val_fraction=0)


def test_a_validation_split_of_its_own_is_taken_as_it_is(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS))
    assert len(cache.table("train", val_fraction=0.5)) == 50
    assert cache.table("val", val_fraction=0.5).rows.tolist() == list(range(50, 56))


def test_rows_that_could_not_be_read_are_left_out_and_listed(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS), bad={3: "truncated", 49: "empty", 60: "HTML"})
    rows = np.concatenate([cache.table(s).rows for s in ("train", "val", "test")])
    assert set(range(76)) - set(rows.tolist()) == {3, 49, 60}
    assert cache.bad_images() == [
        ("train/000003.png", "truncated"),
        ("train/000049.png", "empty"),
        ("test/000060.png", "HTML"),
    ]
    whole = set(cache.table("train").rows.tolist()) | set(cache.table("val").rows.tolist())
    assert 3 not in whole


@pytest.mark.parametrize("said", [{}, {3: "x"}, {3: "truncated", 5: "x"}])
def test_a_record_that_names_other_bad_rows_than_its_shard_is_refused(
    tmp_path: Path, said: dict[int, str]
) -> None:
    """Else good rows would be missing, or zeros be features, and nobody would be told."""
    cache = fill(empty_cache(tmp_path, COUNTS), bad={3: "truncated"})
    commit = cache.commits()["train-00000"]
    changed = replace(commit, bad=tuple(sorted(said.items())))
    (cache.path / records.COMMITS / f"{commit.shard}.json").write_bytes(changed.to_bytes())
    if set(said) == {3}:  # another reason is no other row
        assert 3 not in cache.table("train", val_fraction=0).rows
        return
    with pytest.raises(DamagedError, match="bad rows are not those of its commit record"):
        cache.table("train", val_fraction=0)
    assert [why for _, why in cache.verify() if "bad rows" in why]


def test_several_nodes_stand_side_by_side(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS, {"b": 4, "a": 6}))
    assert cache.table("train").columns == 4
    assert np.array_equal(cache.table("test", node="a").X, features(np.arange(56, 76), 6))
    with pytest.raises(OptionError, match=r"Unknown node 'c'. Known: a, b"):
        cache.table("train", node="c")


def test_torch_users_get_a_data_set(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS))
    data = cache.torch_dataset("test")
    row, label = data[3]
    assert row.dtype == torch.float32 and row.tolist() == features(np.array([59]), 16)[0].tolist()
    assert (label, len(data)) == (59 % 3, 20)


def test_an_unfinished_cache_gives_no_table(tmp_path: Path) -> None:
    cache = empty_cache(tmp_path, COUNTS)
    with pytest.raises(CacheError, match="not finished"):
        cache.table("train")
    with pytest.raises(CacheError, match="11 shards are missing"):
        cache.seal()


def test_the_second_to_commit_a_shard_changes_nothing(tmp_path: Path) -> None:
    cache = empty_cache(tmp_path, COUNTS)
    part = cache.shards()[0]
    assert cache.commit(part, {"flatten": features(part.rows, 16)}) is True
    before = (cache.path / records.COMMITS / f"{part.name}.json").read_bytes()
    assert cache.commit(part, {"flatten": features(part.rows + 1, 16)}) is False
    assert (cache.path / records.COMMITS / f"{part.name}.json").read_bytes() == before


def _fill_path(path: str) -> None:
    cache = Cache(path)
    parts = cache.todo()
    random.shuffle(parts)
    for part in parts:
        cache.commit(part, {"flatten": features(part.rows, 16)})
    cache.seal()


def test_many_processes_may_fill_one_cache(tmp_path: Path) -> None:
    alone = fill(empty_cache(tmp_path / "alone", COUNTS))
    shared = empty_cache(tmp_path / "shared", COUNTS)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill_path, args=(str(shared.path),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert _tree(alone.path) == _tree(shared.path)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- damage ---


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    cache = fill(empty_cache(folder, {"train": 12, "test": 6}, rows_per_shard=6))
    files = sorted(p for p in cache.path.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)
    with pytest.raises(FeatcacheError) as error:
        opened = Cache(cache.path)
        for split in ("train", "test"):
            opened.table(split, val_fraction=0)
    assert str(cache.path) in str(error.value) or "recipe" in str(error.value) or "plan" in str(error.value)


@pytest.mark.parametrize("harm", ["truncate", "empty", "delete", "zero page", "swap", "link"])
def test_a_harmed_shard_is_named(tmp_path: Path, harm: str) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS))
    first, second = sorted((cache.path / records.SHARDS).iterdir())[1:3]
    content = first.read_bytes()
    if harm == "truncate":
        first.write_bytes(content[:-100])
    elif harm == "empty":
        first.write_bytes(b"")
    elif harm == "delete":
        first.unlink()
    elif harm == "zero page":
        first.write_bytes(content[:4096] + bytes(4096) + content[8192:])
    elif harm == "swap":
        other = second.read_bytes()
        second.write_bytes(content)
        first.write_bytes(other)
    else:
        elsewhere = tmp_path / "elsewhere.h5"
        first.rename(elsewhere)
        first.symlink_to(elsewhere)
    wrong = {part.name for part, why in cache.verify() if why}
    assert first.name[:10] in {name[:10] for name in wrong}
    with pytest.raises(DamagedError, match=first.name):
        for split in COUNTS:
            Cache(cache.path).table(split)


def test_a_foreign_commit_record_is_refused(tmp_path: Path) -> None:
    ours = fill(empty_cache(tmp_path, COUNTS))
    theirs = fill(empty_cache(tmp_path, COUNTS, store_dtype="float32"))
    stranger = next((theirs.path / records.COMMITS).iterdir())
    (ours.path / records.COMMITS / stranger.name).write_bytes(stranger.read_bytes())
    with pytest.raises(DamagedError, match="belongs to another cache"):
        ours.table("train")


@pytest.mark.parametrize(
    "file", ["../../etc/passwd", "train-00000-0123456789abcdef.h5/../x", "/etc/passwd", "train-00000.h5"]
)
def test_a_record_that_names_a_path_is_refused(tmp_path: Path, file: str) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS))
    path = cache.path / records.COMMITS / "train-00000.json"
    record = records.read(path)
    path.write_bytes(records.to_bytes({**record, "file": file}))
    with pytest.raises(DamagedError, match="names the file"):
        Cache(cache.path).table("train")


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    cache = fill(empty_cache(tmp_path, COUNTS))
    path = cache.path / records.RECIPE
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    path.write_bytes(records.to_bytes({**record, "format": 4}))
    with pytest.raises(FormatError, match="Unknown format 4"):
        Cache(cache.path)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
    | st.dictionaries(st.text(), st.integers())
)
def test_any_json_is_no_record(value: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        path.write_text(json.dumps(value))
        with pytest.raises(FeatcacheError):
            records.read_recipe(Path(folder))


class TestHostileShards:
    """Files that are HDF5 but not the shard that was expected."""

    def expect_refused(self, path: Path) -> None:
        with pytest.raises(DamagedError, match="is damaged"):
            shard.blocks(path, {"flatten": 4}, "float16", 3)

    def write(self, path: Path, **changes: object) -> Path:
        arrays = {
            "features": np.zeros((3, 4), np.float16),
            "label": np.zeros(3, np.int64),
            "row": np.zeros(3, np.int64),
            "status": np.zeros(3, np.uint8),
        } | changes
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                if array is not None:
                    file[name] = array
        return path

    def test_the_plain_one_is_accepted(self, tmp_path: Path) -> None:
        shard.blocks(self.write(tmp_path / "s.h5"), {"flatten": 4}, "float16", 3)

    @pytest.mark.parametrize(
        "changes",
        [
            {"extra": np.zeros(3)},
            {"label": None},
            {"features": np.zeros((3, 5), np.float16)},
            {"features": np.zeros((3, 4), np.float32)},
            {"features": h5py.SoftLink("/label")},
            {"features": h5py.ExternalLink("other.h5", "/features")},
            {"row": np.zeros((3, 1), np.int64)},
        ],
    )
    def test_other_content(self, tmp_path: Path, changes: dict[str, object]) -> None:
        self.expect_refused(self.write(tmp_path / "s.h5", **changes))

    def test_filters_and_external_storage(self, tmp_path: Path) -> None:
        for options in (
            {"compression": "gzip"},
            {"chunks": (1, 4)},
            {"external": [(str(tmp_path / "raw"), 0, 24)]},
        ):
            path = self.write(tmp_path / "s.h5", features=None)
            with h5py.File(path, "a") as file:
                file.create_dataset(
                    "features", (3, 4), np.float16, data=np.zeros((3, 4), np.float16), **options
                )
            self.expect_refused(path)

    @pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"<html>" * 100, bytes(5000)])
    def test_no_hdf5(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "s.h5"
        path.write_bytes(content)
        self.expect_refused(path)


def test_caches_are_found_by_any_part_of_their_name(tmp_path: Path) -> None:
    a = fill(empty_cache(tmp_path, COUNTS))
    b = fill(empty_cache(tmp_path, COUNTS, {"flatten": 8}, store_dtype="float32", name="birds"))
    assert find_cache(tmp_path, a.name) == a.path
    assert find_cache(tmp_path, "birds") == b.path
    assert find_cache(tmp_path, str(b.path)) == b.path
    with pytest.raises(CacheError, match="names 2 caches"):
        find_cache(tmp_path, "resnet18")
    with pytest.raises(CacheError, match=f"No cache 'dogs' .*{a.name}"):
        find_cache(tmp_path, "dogs")
    with pytest.raises(CacheError, match="none yet"):
        find_cache(tmp_path / "nowhere", "dogs")
