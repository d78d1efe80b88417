"""Data that grow: what finished caches have of an image is copied, equal images are computed once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache.backbones.lane import Lane
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run as command
from featcache.errors import BadImageError
from featcache.extraction import memory
from featcache.extraction.dry_run import dry_run
from featcache.extraction.extract import extract
from featcache.extraction.repair import repair
from featcache.extraction.request import Request, Settings
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan
from featcache.store.retention import Wish, find
from tests.kit_images import make_folder, tree

SIZE = 64
APART = 2e-3  # between values of up to 3: a unit in float16's last place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


@pytest.fixture
def request_(photos: Path) -> Request:
    return Request(f"folder:{photos}", "pixels", image_size=12)


@pytest.fixture
def network(request_: Request) -> Request:
    return replace(request_, backbone="squeezenet1_1", weights="random:0", image_size=SIZE)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "features", tmp_path / "data", "cpu", rows_per_shard=5, batch_size=4)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that go through the backbone."""
    found: list[int] = []
    real = Lane.submit

    def submit(lane: Lane, pixels: Any, rows: Any) -> Any:
        found.append(len(pixels))
        return real(lane, pixels, rows)

    monkeypatch.setattr(Lane, "submit", submit)
    return found


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, 99]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def rows_of(path: Path) -> dict[str, np.ndarray]:
    """Return id → its row, of all splits; each is finite."""
    cache, found = Cache(path), dict[str, np.ndarray]()
    for split in cache.plan.counts():
        table = cache.table(split, val_fraction=0)
        found |= dict(zip(table.ids, np.asarray(table.X), strict=True))
    assert all(np.isfinite(row).all() and row.any() for row in found.values())
    return found


def same_as_from_nothing(path: Path, request: Request, settings: Settings, where: Path) -> None:
    """Compare a cache with one that had nothing to copy from."""
    alone = extract(request, replace(settings, features_dir=where))
    assert not alone.hit
    ours, theirs = rows_of(path), rows_of(alone.path)
    assert list(ours) == list(theirs)
    for name, row in ours.items():
        np.testing.assert_allclose(row.astype(float), theirs[name].astype(float), atol=APART)
    assert np.array_equal(Cache(path).plan.labels, Cache(alone.path).plan.labels)


def test_only_what_is_new_is_computed(
    photos: Path, network: Request, settings: Settings, tmp_path: Path, passes: list[int]
) -> None:
    request_ = network
    extract(request_, settings)
    passes.clear()
    for number in range(7):
        picture(photos / "train" / ("bee", "cat")[number % 2] / f"{number}-new.png", number)
    told: list[str] = []
    ahead = dry_run(request_, settings)
    assert (ahead["images"], ahead["copied"], ahead["views_left"]) == (43, 36, 7)
    passes.clear()
    found = extract(request_, settings, notify=told.append)
    assert (found.images, found.copied, sum(passes)) == (7, 36, 7)
    assert any(text.startswith("Copied, not computed: 36 from folder-photos--") for text in told)
    assert found.to_dict()["copied"] == 36
    same_as_from_nothing(found.path, request_, settings, tmp_path / "alone")
    again = extract(request_, settings)
    assert again.hit and again.copied == again.images == 0


def _rename(photos: Path) -> None:
    (photos / "train" / "bee" / "003.png").rename(photos / "train" / "bee" / "z.png")
    (photos / "train" / "cat").rename(photos / "train" / "dog")
    (photos / "test" / "cat").rename(photos / "test" / "dog")


def _relabel(photos: Path) -> None:
    for name in ("001.png", "002.png"):
        (photos / "train" / "bee" / name).rename(photos / "train" / "cat" / f"was-{name}")


def _split(photos: Path) -> None:
    (photos / "test" / "bee" / "001.png").rename(photos / "train" / "bee" / "t.png")
    (photos / "val" / "bee").mkdir(parents=True)
    (photos / "train" / "bee" / "005.png").rename(photos / "val" / "bee" / "005.png")


def _delete(photos: Path) -> None:
    shutil.rmtree(photos / "test")
    (photos / "train" / "bee" / "000.png").unlink()


@pytest.mark.parametrize("change", [_rename, _relabel, _split, _delete])
def test_nothing_is_computed_where_no_image_is_new(
    photos: Path,
    request_: Request,
    settings: Settings,
    tmp_path: Path,
    passes: list[int],
    change: Callable[[Path], None],
) -> None:
    extract(request_, settings)
    passes.clear()
    change(photos)
    left = len(list(photos.rglob("*.png")))
    found = extract(request_, settings)
    assert (passes, found.images, found.copied, found.runtime) == ([], 0, left, "torch")
    assert sum(found.rows.values()) == left, "deleted images leave the plan"
    same_as_from_nothing(found.path, request_, settings, tmp_path / "alone")


def test_data_sets_that_share_images_share_the_work(
    request_: Request, settings: Settings, tmp_path: Path, passes: list[int]
) -> None:
    """From several caches at once, whatever the images are called there."""
    both = tmp_path / "both"
    for seed, name in enumerate(("first", "second")):
        folder = make_folder(tmp_path / name, 3, 1, seed=seed + 10)
        extract(replace(request_, dataset=f"folder:{folder}"), settings)
        for number, path in enumerate(sorted(folder.rglob("*.png"))):
            target = both / ("train" if number % 5 else "test") / "bee" / f"{name}{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    picture(both / "train" / "bee" / "zz.png", 1)
    passes.clear()
    asked, told = replace(request_, dataset=f"folder:{both}"), list[str]()
    found = extract(asked, settings, notify=told.append)
    assert (found.images, found.copied, sum(passes)) == (1, 24, 1)
    assert any("12 from folder-first--" in text and "12 from folder-second--" in text for text in told)
    same_as_from_nothing(found.path, asked, settings, tmp_path / "alone")


def test_equal_images_are_computed_once(
    photos: Path, request_: Request, settings: Settings, passes: list[int]
) -> None:
    """Within a shard, in later shards, in other splits, and in shards of which nothing else is left."""
    for number in range(3):
        for source in sorted((photos / "train" / "bee").glob("00?.png")):
            shutil.copy(source, photos / "test" / "cat" / f"{number}-{source.name}")
    shutil.copy(photos / "train" / "bee" / "001.png", photos / "train" / "bee" / "001-again.png")
    ahead = dry_run(request_, settings)
    assert (ahead["views_left"], ahead["copied"]) == (36, 25)
    passes.clear()
    told: list[str] = []
    found = extract(request_, settings, notify=told.append)
    assert (found.images, found.copied, sum(passes)) == (36, 25, 36)
    assert "25 equal another image byte for byte and are computed once." in told
    rows = rows_of(found.path)
    assert len(rows) == 61
    for name, row in rows.items():
        twin = "train/bee/" + Path(name).name[2:]
        if name.startswith("test/cat/") and twin in rows:
            assert np.array_equal(row, rows[twin]), name
    assert np.array_equal(rows["train/bee/001-again.png"], rows["train/bee/001.png"])


def test_bad_images_that_are_equal_are_all_named(photos: Path, request_: Request, settings: Settings) -> None:
    for name in ("train/bee/a.png", "train/bee/b.png", "test/cat/c.png"):
        (photos / name).write_bytes(b"GIF89a, nearly")
    skipping = replace(settings, on_bad_image="skip")
    found = extract(request_, skipping)
    assert found.bad_images == 3
    bad = dict(Cache(found.path).bad_images())
    assert (
        set(bad) == {"train/bee/a.png", "train/bee/b.png", "test/cat/c.png"} and len(set(bad.values())) == 1
    )
    for split in ("train", "test"):
        assert not set(bad) & set(Cache(found.path).table(split, val_fraction=0).ids)
    picture(photos / "train" / "bee" / "new.png", 1)
    more = extract(request_, skipping)
    assert more.bad_images == 3 and more.copied == 36 + 2, "tried again, once, and still bad"


def test_what_a_cache_could_not_read_is_tried_again(
    photos: Path, request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.extraction import decoding

    victim = (photos / "train" / "bee" / "004.png").read_bytes()
    real = decoding.decode

    def decode(data: Any, most: int) -> Any:
        if data == victim:
            raise BadImageError("no memory just now")
        return real(data, most)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", decode)
        first = extract(request_, replace(settings, on_bad_image="skip", decode_in="threads"))
    assert first.bad_images == 1
    picture(photos / "test" / "bee" / "new.png", 1)
    found = extract(request_, settings)
    assert (found.images, found.copied, found.bad_images) == (2, 35, 0)
    assert len(rows_of(found.path)) == 37


def _harm(cache: Path, shard: str) -> None:
    (path,) = (cache / records.SHARDS).glob(f"{shard}-*")
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def test_a_damaged_shard_gives_nothing(
    photos: Path, request_: Request, settings: Settings, tmp_path: Path
) -> None:
    first = extract(request_, settings)
    _harm(first.path, "train-00001")
    picture(photos / "train" / "bee" / "new.png", 1)
    found = extract(request_, settings)
    assert (found.images, found.copied) == (1 + 5, 31)
    same_as_from_nothing(found.path, request_, settings, tmp_path / "alone")
    (found.path / records.PLAN).write_bytes(b"no plan")
    picture(photos / "train" / "bee" / "newer.png", 2)
    third = extract(request_, settings)
    assert (third.images, third.copied) == (2 + 5, 31), "of two siblings the sound shards of one"


@pytest.mark.parametrize(
    "other",
    [{"store_dtype": "float32"}, {"image_size": 13}, {"normalize": "imagenet"}, {"max_pixels": 10**6}],
    ids=str,
)
def test_another_recipe_has_nothing_to_give(
    photos: Path, request_: Request, settings: Settings, other: dict[str, Any]
) -> None:
    extract(replace(request_, **other), settings)
    found = extract(request_, settings)
    assert (found.images, found.copied) == (36, 0)


def test_eight_bits_are_not_copied(photos: Path, request_: Request, settings: Settings) -> None:
    """A scale is a shard's own; equal images are still computed once, before they are rounded."""
    asked = replace(request_, store_dtype="int8")
    extract(asked, settings)
    for name in ("new.png", "new-again.png"):
        picture(photos / "train" / "bee" / name, 1)
    assert dry_run(asked, settings)["copied"] == 1
    found = extract(asked, settings)
    assert (found.images, found.copied) == (37, 1)
    table = Cache(found.path).table("train", val_fraction=0)
    assert np.array_equal(
        table.take(np.array([table.ids.index("train/bee/new.png")])).X,
        table.take(np.array([table.ids.index("train/bee/new-again.png")])).X,
    )


def test_views_go_with_the_name_and_the_image_with_its_content(
    photos: Path, request_: Request, settings: Settings, tmp_path: Path
) -> None:
    asked = replace(request_, views=3, augment="crop")
    extract(asked, settings)  # 24 training images of 3 views, 12 test images of one
    picture(photos / "train" / "bee" / "new.png", 1)  # 3 views to compute
    (photos / "train" / "cat" / "000.png").rename(photos / "train" / "cat" / "renamed.png")  # views 1 and 2
    shutil.copy(photos / "train" / "cat" / "001.png", photos / "train" / "cat" / "again.png")  # views 1 and 2
    shutil.copy(photos / "train" / "cat" / "001.png", photos / "test" / "cat" / "again.png")  # none
    (photos / "test" / "bee" / "001.png").rename(photos / "train" / "bee" / "moved.png")  # views 1 and 2
    found = extract(asked, settings)
    assert (found.images, found.copied) == (3 + 2 + 2 + 2, 23 * 3 + 3 + 12)
    alone = extract(asked, replace(settings, features_dir=tmp_path / "alone"))
    for split in ("train", "test"):
        ours, theirs = (
            Cache(path).table(split, val_fraction=0, views="all") for path in (found.path, alone.path)
        )
        assert ours.ids == theirs.ids
        np.testing.assert_allclose(
            np.asarray(ours.X).astype(float), np.asarray(theirs.X).astype(float), atol=APART
        )
    plain = extract(request_, settings)
    assert (plain.images, plain.copied) == (0, 39), "the image itself is a view of these caches"


def test_an_interrupted_run_goes_on(
    photos: Path, request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(request_, settings)
    for number in range(4):
        picture(photos / "train" / "cat" / f"new-{number}.png", number)
    shutil.copy(photos / "train" / "cat" / "new-0.png", photos / "test" / "bee" / "twin.png")
    shutil.copytree(first.path, tmp_path / "other" / first.path.name)
    whole = extract(request_, replace(settings, features_dir=tmp_path / "other"))
    real = Cache.commit

    def commit(cache: Cache, part: ShardPlan, *arguments: Any) -> bool:
        if part.name == "test-00001":  # it waits for train-00004, where the twin is
            raise KeyboardInterrupt
        return real(cache, part, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Cache, "commit", commit)
        extract(request_, settings)
    found = extract(request_, settings)
    assert found.images == 3 and found.copied in (5, 8), "the twin is of a shard that was committed"
    assert tree(found.path) == tree(whole.path)


def test_repair_copies_too_and_makes_the_same_bytes(
    photos: Path, request_: Request, settings: Settings, passes: list[int]
) -> None:
    first = extract(request_, settings)
    picture(photos / "train" / "bee" / "new.png", 1)
    found = extract(request_, settings)
    before = tree(found.path)
    _harm(found.path, "train-00000")
    passes.clear()
    assert repair(found.path, settings) == ["train-00000"] and tree(found.path) == before
    assert passes == []
    shutil.rmtree(first.path)
    _harm(found.path, "train-00000")
    assert repair(found.path, settings) == ["train-00000"] and sum(passes) == 5
    assert len(rows_of(found.path)) == 37


def test_gc_lets_the_cache_go_that_was_grown_out_of(
    photos: Path, request_: Request, settings: Settings
) -> None:
    first = extract(request_, settings)
    picture(photos / "train" / "bee" / "new.png", 1)
    found = extract(request_, settings)
    items, choice = find(settings.features_dir, Wish(superseded=True), lambda cache: "its images are gone")
    assert [item.path for item in items if item.kind == "cache"] == [first.path]
    assert choice.copies == {first.path: found.path}
    before = rows_of(found.path)
    shutil.rmtree(first.path)
    assert all(np.array_equal(row, before[name]) for name, row in rows_of(found.path).items())


def test_a_cache_that_could_not_read_an_image_is_no_copy_of_one_that_could(
    photos: Path, request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.extraction import decoding

    first, real = extract(request_, settings), decoding.decode
    picture(photos / "train" / "bee" / "new.png", 1)
    monkeypatch.setattr("featcache.extraction.engines.compute", _without_siblings)
    victim = (photos / "train" / "bee" / "004.png").read_bytes()

    def decode(data: Any, most: int) -> Any:
        if data == victim:
            raise BadImageError("no memory just now")
        return real(data, most)

    monkeypatch.setattr(decoding, "decode", decode)
    second = extract(request_, replace(settings, on_bad_image="skip", decode_in="threads"))
    assert second.bad_images == 1
    items, _ = find(settings.features_dir, Wish(superseded=True), lambda cache: "its images are gone")
    assert first.path not in [item.path for item in items]


def _without_siblings(
    cache: Cache, job: Any, extractor: Any, settings: Settings, *rest: Any, **more: Any
) -> int:
    from featcache.extraction import pipeline

    return pipeline.run(cache, job.dataset, extractor, batch_size=4, max_pixels=10**6, skip_bad=True)


def test_files_at_rest_are_not_read_again(
    photos: Path, request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.extraction import known
    from featcache.images.stored import FileDataset

    read: list[str] = []
    real = FileDataset.raw

    def raw(dataset: FileDataset, i: int) -> bytes:
        read.append(dataset.ids[i])
        return real(dataset, i)

    monkeypatch.setattr(FileDataset, "raw", raw)
    extract(request_, settings)
    kept = settings.features_dir / memory.FOLDER / "contents"
    assert not kept.exists(), "what was written a moment ago is not remembered"
    monkeypatch.setattr(known, "SETTLED_NS", -(10**10))
    picture(photos / "train" / "bee" / "one.png", 1)
    extract(request_, settings)
    read.clear()
    picture(photos / "train" / "bee" / "two.png", 2)
    (photos / "train" / "cat" / "002.png").write_bytes((photos / "train" / "cat" / "003.png").read_bytes())
    found = extract(request_, settings)
    assert sorted(set(read)) == ["train/bee/two.png", "train/cat/002.png"]
    assert found.images == 1 and found.copied == 37
    rows = rows_of(found.path)
    assert np.array_equal(rows["train/cat/002.png"], rows["train/cat/003.png"])
    (path,) = kept.iterdir()
    good = path.read_bytes()
    for harmed in (b"", good[:-1], good[:40] + bytes([good[40] ^ 1]) + good[41:]):
        path.write_bytes(harmed)
        read.clear()
        picture(photos / "train" / "bee" / "three.png", len(harmed))
        extract(request_, settings)
        assert len(set(read)) == 39, "what is damaged is not believed"


def test_a_file_changed_behind_the_back_is_noticed(
    photos: Path, request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same size and modification time, other bytes: the time of the change tells."""
    from featcache.extraction import known

    monkeypatch.setattr(known, "SETTLED_NS", -(10**10))
    victim = photos / "train" / "bee" / "004.png"
    before, facts = rows_of(extract(request_, settings).path), victim.stat()
    picture(victim, 5)
    data = victim.read_bytes()
    victim.write_bytes(data[: facts.st_size].ljust(facts.st_size, b"\0"))
    os.utime(victim, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    found = extract(request_, settings)
    assert not found.hit and found.images == 1
    name = "train/bee/004.png"
    assert not np.array_equal(rows_of(found.path)[name], before[name])


def test_the_command_says_it(
    photos: Path, request_: Request, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    def cli(*more: str) -> tuple[str, str]:
        capfd.readouterr()
        base = ["extract", "--dataset", request_.dataset, "--backbone", "pixels", "--image-size", "12"]
        folders = ["--features-dir", str(settings.features_dir), "--device", "cpu"]
        assert command([*base, *folders, *more]) == 0
        return capfd.readouterr()

    cli()
    picture(photos / "train" / "bee" / "new.png", 1)
    assert "work     1 to compute, 36 to copy" in cli("--dry-run")[0]
    assert set(json.loads(cli("--dry-run", "--json")[0])) == set(KEYS["extract --dry-run"])
    out, err = cli()
    assert "36 copied" in out and "Copied, not computed: 36 from folder-photos--" in err
    found = json.loads(cli("--json")[0])
    assert set(found) == set(KEYS["extract"]) and found["hit"] and found["copied"] == 0
