"""Augmented views in a cache: drawn from nothing but seed, id and number; added, resumed, mended, read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featcache
from featcache.backbones.lane import Lane
from featcache.commands.root import run
from featcache.errors import DamagedError, DatasetError, FormatError, OptionError
from featcache.extraction import views as drawing
from featcache.extraction.drift import drift
from featcache.extraction.dry_run import dry_run
from featcache.extraction.extract import extract
from featcache.extraction.repair import repair
from featcache.extraction.request import Request, Settings
from featcache.images.decode import decode
from featcache.images.policies import text_of
from featcache.recipe import sha256_of
from featcache.store import records
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan
from tests.kit_images import make_folder, tree

SIZE = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def request_(photos: Path) -> Request:
    return Request(f"folder:{photos}", "squeezenet1_1", "random:0", image_size=SIZE, views=3, augment="crop")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "features", tmp_path / "data", "cpu", rows_per_shard=5)


class Passes:
    """Counts the images that go through the backbone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        real = Lane.submit

        def submit(lane: Lane, pixels: Any, rows: Any) -> Any:
            self.images += len(pixels)
            return real(lane, pixels, rows)

        monkeypatch.setattr(Lane, "submit", submit)


def test_rows_hold_views_and_view_0_is_the_image(request_: Request, settings: Settings) -> None:
    found = extract(request_, settings)
    assert found.rows == {"train": 24, "test": 12} and found.images == 24 * 3 + 12
    elsewhere = replace(settings, features_dir=settings.features_dir / "plain")
    cache, plain = Cache(found.path), Cache(extract(replace(request_, views=1, augment=None), elsewhere).path)
    assert cache.record["format"] == cache.recipe.format == 3 and plain.record["format"] == 1
    table = cache.table("train", val_fraction=0)
    whole = cache.table("train", val_fraction=0, views="all")
    assert table.X.shape == (24, 512) and whole.X.shape == (24, 3, 512)
    assert np.shares_memory(table.X, table.base) and np.shares_memory(whole.X, whole.base)
    assert np.array_equal(table.X, whole.X[:, 0])
    assert np.array_equal(table.X, plain.table("train", val_fraction=0).X)
    assert np.array_equal(cache.table("test").X, plain.table("test").X)
    assert cache.table("test", views="all").X.shape == (12, 1, 512)
    apart = np.abs(whole.X[:, 1:].astype(float) - whole.X[:, :1]).max(axis=2)
    assert (apart > 0).all(), "every view differs from the image"
    assert extract(request_, settings).hit


@pytest.mark.parametrize("there", [1, 2, 5])
def test_only_the_new_views_are_computed(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    alone = extract(request_, replace(settings, features_dir=tmp_path / "alone"))
    first = replace(request_, views=there, augment=None if there == 1 else "crop")
    extract(first, settings)
    before = {path: data for path, data in tree(settings.features_dir).items() if "--" in path}
    passes, told = Passes(monkeypatch), list[str]()
    added = extract(request_, settings, notify=told.append)
    new = max(0, 3 - there)
    assert passes.images == added.images == 24 * new
    assert any(text.startswith(f"Copied, not computed: {84 - 24 * new} from ") for text in told)
    assert tree(added.path) == tree(alone.path), "byte for byte the cache that is made at once"
    after = tree(settings.features_dir)
    assert all(after[path] == data for path, data in before.items())


def test_another_policy_or_seed_shares_the_clean_view_alone(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(request_, settings)
    passes = Passes(monkeypatch)
    extract(replace(request_, view_seed=1), settings)
    assert passes.images == 24 * 2, "view 0 of the training images and the test images were there"
    extract(replace(request_, augment="flip", views=2, views_of="all"), settings)
    assert passes.images == 24 * 2 + 36
    first = Cache(extract(request_, settings).path).table("train", views="all").X
    other = Cache(extract(replace(request_, view_seed=1), settings).path).table("train", views="all").X
    assert np.array_equal(first[:, 0], other[:, 0]) and not np.array_equal(first[:, 1], other[:, 1])


def test_an_interrupted_addition_goes_on(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = extract(request_, replace(settings, features_dir=tmp_path / "alone"))
    extract(replace(request_, views=2), settings)
    real = Cache.commit

    def commit(cache: Cache, part: ShardPlan, *arguments: Any) -> bool:
        if part.name == "train-00003":
            raise KeyboardInterrupt
        return real(cache, part, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Cache, "commit", commit)
        extract(request_, settings)
    passes, told = Passes(monkeypatch), list[str]()
    found = extract(request_, settings, notify=told.append)
    assert any(text.startswith("Going on with") for text in told)
    assert passes.images in (5 + 4, 4 + 5 + 5) and tree(found.path) == tree(alone.path)


def test_what_a_damaged_cache_has_is_computed(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = extract(request_, replace(settings, features_dir=tmp_path / "alone"))
    source = extract(replace(request_, views=2), settings).path
    shard = sorted((source / records.SHARDS).glob("train-00001-*"))[0]
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    passes = Passes(monkeypatch)
    found = extract(request_, settings)
    assert passes.images == 24 - 5 + 5 * 3, "all views of the damaged shard's five rows, one of the others"
    assert tree(found.path) == tree(alone.path)


def test_more_views_than_are_decoded_at_once(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = extract(replace(request_, views=5), settings)
    monkeypatch.setattr(drawing, "GROUP", 2)
    monkeypatch.setattr("featcache.extraction.reader.GROUP", 2)
    by_two = extract(
        replace(request_, views=5), replace(settings, features_dir=tmp_path / "other", workers=1)
    )
    assert at_once.images == by_two.images and tree(at_once.path) == tree(by_two.path)


def test_images_that_cannot_be_read(settings: Settings, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    (folder / "train" / "bee" / "003.png").write_bytes(b"GIF89a")
    asked = Request(f"folder:{folder}", "squeezenet1_1", "random:0", image_size=SIZE, views=2, augment="flip")
    with pytest.raises(DatasetError, match=r"Cannot read the image train/bee/003\.png"):
        extract(asked, settings)
    skipping = replace(settings, on_bad_image="skip")
    for count in (2, 4, 3):  # computed, added to, copied as a whole
        cache = Cache(extract(replace(asked, views=count), skipping).path)
        assert [name for name, _ in cache.bad_images()] == ["train/bee/003.png"]
        table = cache.table("train", val_fraction=0, views="all")
        assert table.X.shape == (23, count, 512) and (np.abs(table.X).sum(axis=2) > 0).all()
        whole = np.asarray(table.base).reshape(-1, count, 512)
        assert (np.abs(whole).sum(axis=(1, 2)) == 0).sum() == 1
    with pytest.raises(DatasetError, match=r"Cannot read|could not be read"):
        extract(replace(asked, views=2, view_seed=9), settings)


def test_rows_chosen_and_in_eight_bits(request_: Request, settings: Settings) -> None:
    cache = Cache(extract(replace(request_, store_dtype="float32"), settings).path)
    small = Cache(extract(replace(request_, store_dtype="int8"), settings).path)
    assert small.record["format"] == 3
    for split in ("train", "val"):
        table, all_views = cache.table(split), cache.table(split, views="all")
        X, whole = np.asarray(table.X), np.asarray(all_views.X)
        assert whole.shape == (len(table), 3, 512) and np.array_equal(whole[:, 0], X)
        assert np.array_equal(np.asarray(table.selection), X) and np.array_equal(table.labels, table.y)
        assert np.array_equal(np.asarray(all_views.selection), whole.reshape(-1, 512))
        assert np.array_equal(all_views.labels, np.repeat(all_views.y, 3)) and table.ids == all_views.ids
        some = all_views.take(np.array([0, 2, 3]))
        assert np.array_equal(np.asarray(some.X), whole[[0, 2, 3]]) and some.selection.shape == (9, 512)
        coded, every = small.table(split), small.table(split, views="all")
        span = np.ptp(np.asarray(cache.table("train", val_fraction=0, views="all").base), axis=0)
        assert (np.abs(np.asarray(every.X) - whole) <= span / 255 + 1e-6).all()
        assert np.array_equal(np.asarray(coded.X), np.asarray(every.X)[:, 0])
        assert np.array_equal(np.asarray(coded.selection), np.asarray(coded.X))
    feature, label = cache.torch_dataset("val")[1]
    table = cache.table("val")
    assert np.array_equal(feature.numpy(), np.asarray(table.X)[1]) and label == table.y[1]
    with pytest.raises(OptionError, match="Unknown views 'some'"):
        cache.table("train", views="some")


def test_repair_and_drift(request_: Request, settings: Settings) -> None:
    found = extract(replace(request_, views_of="all"), settings)
    before = tree(found.path)
    shard = sorted((found.path / records.SHARDS).glob("test-00000-*"))[0]
    shard.write_bytes(b"")
    assert repair(found.path, settings) == ["test-00000"] and tree(found.path) == before
    apart = drift(found.path, settings, 40)
    assert apart.rows == 36 and apart.within
    cache = Cache(found.path)
    (whole,) = [part for part in cache.shards() if part.name == "train-00002"]
    wrong = {
        node: np.array(cache.table("train", val_fraction=0, views="all").X[10:15]) for node in cache.nodes
    }
    for rows in wrong.values():
        rows[2, 1] += rows.std() * 3
    (found.path / records.COMMITS / "train-00002.json").unlink()
    cache.commit(whole, wrong)
    apart = drift(found.path, settings, 40)
    assert not apart.within and next(iter(apart.nodes.values())).worst.endswith(", view 1")


def test_a_dry_run_counts_views(request_: Request, settings: Settings) -> None:
    assert dry_run(request_, settings)["views"] == 24 * 3 + 12
    extract(request_, settings)
    more = dry_run(replace(request_, views=5), settings)
    assert (more["views"], more["views_left"], more["images"]) == (24 * 5 + 12, 24 * 2, 36)
    hit = dry_run(request_, settings)
    assert hit["hit"] and hit["views_left"] == 0
    features = (24 * 5 + 12) * 512 * 2
    assert features <= more["bytes"] < features + 12 * 70_000


def test_a_file_that_changes_is_another_cache(request_: Request, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    keys = []
    for scale in (0.4, 0.6, 0.4):
        path.write_text(f'[[step]]\nname = "crop"\nscale = [{scale}, 1.0]\n')
        found = extract(replace(request_, views=2, augment=text_of(str(path))), settings)
        keys.append((found.fingerprint, found.hit))
    path.unlink()
    assert keys[0][0] == keys[2][0] != keys[1][0] and [hit for _, hit in keys] == [False, False, True]
    assert not [name for name, _ in Cache(found.path).bad_images()]
    shard = sorted((found.path / records.SHARDS).glob("train-00000-*"))[0]
    shard.unlink()
    assert repair(found.path, settings) == ["train-00000"], "the policy stands in the cache, not in its file"


@pytest.mark.parametrize("views", [None, 5, [], {}, {"count": "5"}, {"count": 0}, {"count": 5, "seed": 0}])
def test_views_of_strangers_are_checked(
    request_: Request, settings: Settings, views: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A recipe that is well signed but says nonsense of views is refused by name, and `ls` goes on."""
    path = extract(replace(request_, views=2), settings).path
    record = records.read(path / records.RECIPE)
    record["recipe"]["views"] = views
    record["key"] = records.cache_key(sha256_of(record["recipe"]), record["dataset"]["fingerprint"])
    (path / records.RECIPE).write_bytes(records.to_bytes(record))
    with pytest.raises((DamagedError, FormatError), match=r"views|The recipe is not one of a known format"):
        Cache(path).recipe  # noqa: B018
    assert run(["ls", "--features-dir", str(settings.features_dir)]) == 0
    assert path.name in capfd.readouterr().out


def test_an_older_reader_stops_at_the_format(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extract(request_, settings)
    monkeypatch.setattr("featcache.recipe.FORMATS", (1, 2))
    with pytest.raises(FormatError, match=r"Unknown format 3 in .*recipe.json: this featcache reads formats"):
        Cache(found.path)


def test_a_shard_without_its_views_is_damaged(request_: Request, settings: Settings) -> None:
    cache = Cache(extract(request_, settings).path)
    part = cache.shards()[0]
    (cache.path / records.COMMITS / f"{part.name}.json").unlink()
    cache.commit(
        part, {node: np.zeros((len(part), width), np.float16) for node, width in cache.columns.items()}
    )
    (commit,) = [each for each in cache.commits().values() if each.shard == part.name]
    with pytest.raises(DamagedError, match=r"'features' is not float16 \(5, 3, 512\)"):
        cache.blocks(commit)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"augment": "crop"}, "nothing to augment"),
        ({"view_seed": 1}, "nothing to augment"),
        ({"views": 0}, "views must be from 1 to 1000"),
        ({"views": 2}, "2 views need to know how they are made"),
        ({"views": 2, "view_seed": -1}, "view_seed must be at least 0"),
        ({"views": 2, "views_of": "test"}, "Unknown views_of 'test'"),
        ({"views": 2, "augment": "crap"}, "Unknown augmentation 'crap'"),
        ({"views": 2.0}, "views must be of type int"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        Request(**options)


def test_requests_without_views_say_nothing_of_them() -> None:
    assert not {"views", "augment", "view_seed", "views_of"} & set(Request().to_dict())
    asked = Request(views=2, augment="crop")
    assert Request.from_dict(asked.to_dict()) == asked
    assert asked.notes() == [] and "same view each time" in Request(views=3, augment="flip").notes()[0]


def test_heads_on_views_predict_clean_images(request_: Request, settings: Settings, photos: Path) -> None:
    cache = Cache(extract(request_, settings).path)
    trained = featcache.train_head(cache, "logreg", features_dir=settings.features_dir)
    table = cache.table("test")
    images = [decode((photos / name).read_bytes()) for name in table.ids]
    proba = featcache.predictor(trained.record["run"], device="cpu", features_dir=settings.features_dir)(
        images
    )
    assert np.allclose(proba, trained.head.predict_proba(table.X), atol=1e-3)


def test_commands(request_: Request, settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    def cli(*arguments: str, code: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        assert run([*arguments, "--features-dir", str(settings.features_dir), "--json"]) == code
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    asked = ["--dataset", request_.dataset, "--backbone", "squeezenet1_1", "--weights", "random:0"]
    asked += ["--image-size", "64", "--views", "2", "--augment", "flip", "--views-of", "all"]
    found = cli("extract", *asked, "--device", "cpu")
    assert found["rows"] == {"train": 24, "test": 12} and found["columns"] == 512
    (listed,) = cli("ls")["caches"]
    assert listed["columns"] == "512 × 2 views" and listed["state"] == "finished"
    assert cli("info")["recipe"]["views"]["policy"] == [{"name": "flip", "p": 1.0}]
    assert cli("verify")["damaged"] == {}
    trained = cli("train-head", "--head", "linear", "--epochs", "2", "--test")
    assert trained["views"] == {"mode": "random", "count": 2} and "views" not in trained["test"]
    assert cli("evaluate", trained["run"], "--test-views")["test"]["views"] == 2
    swept = cli("sweep", "--head", "ridge", "--grid", "alpha=1", "--view-mode", "clean")
    assert swept["best"]["views"] == {"mode": "clean", "count": 2}
    refused = cli("train-head", "--head", "ridge", "--view-mode", "random", code=1)
    assert "not trained by epochs" in refused["error"]
