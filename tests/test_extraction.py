"""Extraction from images to a sealed cache: hits, misses, resumption, bad images, repair."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms
from torchvision.models import squeezenet1_1

from featcache.backbones import download, weights
from featcache.errors import (
    CacheError,
    DamagedError,
    DatasetError,
    FeatcacheError,
    OptionError,
    SpaceError,
    WeightsError,
)
from featcache.extraction import extract as extraction
from featcache.extraction import memory, pipeline
from featcache.extraction.dry_run import dry_run
from featcache.extraction.extract import Extraction, extract
from featcache.extraction.repair import repair
from featcache.extraction.request import Request, Settings
from featcache.images.catalogue import open_source
from featcache.progress import silent
from featcache.store import records
from featcache.store.cache import Cache
from tests.kit_images import make_folder, tree

SIZE = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def request_(photos: Path) -> Request:
    return Request(f"folder:{photos}", "squeezenet1_1", "random:0", image_size=SIZE)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "features", tmp_path / "data", "cpu", rows_per_shard=5)


Run = Callable[..., Extraction]


def test_features_are_those_of_the_official_way(photos: Path, request_: Request, settings: Settings) -> None:
    # The definition: Pillow, torchvision's transforms on its images, eager float32, one image at a time.
    network = _network()
    steps = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    cache = Cache(extract(replace(request_, store_dtype="float32"), settings).path)
    for split in ("train", "test"):
        table = cache.table(split, val_fraction=0)
        for row, name, label in zip(table.X, table.ids, table.y.tolist(), strict=True):
            image = Image.open(photos / name).convert("RGB")
            small = image.width < SIZE and image.height < SIZE
            if small:
                image = transforms.Resize((SIZE, SIZE))(image)
            else:
                image = transforms.CenterCrop(SIZE)(transforms.Resize(round(SIZE * 256 / 224))(image))
            with torch.inference_mode():
                expected = network.features(steps(image)[None]).mean((2, 3))[0].numpy()
            cosine = row @ expected / np.linalg.norm(row) / np.linalg.norm(expected)
            assert cosine > 0.999999
            assert np.abs(row - expected).max() < 1e-3 * expected.std()
            assert cache.classes[label] == name.split("/")[1]


def _network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return squeezenet1_1(weights=None).eval()


def test_the_second_time_is_a_hit_that_opens_no_shard(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(request_, settings)
    assert not first.hit and first.images == 36
    assert first.rows == {"train": 24, "test": 12}
    assert first.nodes == {"features.12.cat": 512} or list(first.nodes.values()) == [512]

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a shard was opened")

    monkeypatch.setattr("featcache.store.shard.hash_of_file", never)
    monkeypatch.setattr("h5py.File", never)
    again = extract(request_, settings)
    assert again.hit and again.images == 0 and again.path == first.path
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"workers": 1},
        {"batch_size": 1, "workers": 5},
    ],
)
def test_batch_size_and_workers_do_not_matter(
    request_: Request, settings: Settings, tmp_path: Path, change: dict[str, int]
) -> None:
    wide = replace(request_, store_dtype="float32")  # float16 would round a difference up
    first = extract(wide, settings)
    assert extract(wide, replace(settings, **change)).hit
    other = extract(wide, replace(settings, features_dir=tmp_path / "other", **change))
    a, b = (Cache(found.path).table("train").X.astype(np.float32) for found in (first, other))
    assert np.abs(a - b).max() < 1e-4 * a.std()
    assert other.fingerprint == first.fingerprint


def test_a_moved_or_renamed_data_folder_hits(request_: Request, settings: Settings, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "here")
    first = extract(replace(request_, dataset=f"folder:{folder}"), settings)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    folder.rename(moved)
    again = extract(replace(request_, dataset=f"folder:{moved}"), settings)
    assert again.hit and again.path == first.path
    copied = tmp_path / "copied"
    shutil.copytree(moved, copied, copy_function=shutil.copy)  # other times, other inodes, same bytes
    assert extract(replace(request_, dataset=f"folder:{copied}"), settings).path == first.path


def test_a_moved_features_folder_hits(request_: Request, settings: Settings, tmp_path: Path) -> None:
    first = extract(request_, settings)
    settings.features_dir.rename(tmp_path / "moved")
    again = extract(request_, replace(settings, features_dir=tmp_path / "moved"))
    assert again.hit and again.path.name == first.path.name


CHANGES = {
    "backbone": ("squeezenet1_0", "backbone"),
    "weights": ("random:1", "weights.sha256"),
    "layers": (("features.11.cat",), "nodes"),
    "pool": ("max", "nodes"),
    "preprocess": ("squash", "preprocess.mode"),
    "image_size": (72, "preprocess.crop"),
    "normalize": ("half", "preprocess.mean"),
    "precision": ("bf16", "precision"),
    "store_dtype": ("float32", "store_dtype"),
    "max_pixels": (10**6, "decoding.max_pixels"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_of_the_recipe_misses_and_the_miss_is_explained(
    request_: Request, settings: Settings, name: str
) -> None:
    value, field = CHANGES[name]
    first = extract(request_, settings)
    notes: list[str] = []
    if name == "layers":
        value = (_a_node(),)
    other = extract(replace(request_, **{name: value}), settings, notify=notes.append)
    assert not other.hit and other.path != first.path
    assert any("same data, recipe differs" in note and field in note for note in notes), notes


def _a_node() -> str:
    from featcache.backbones import catalogue

    return [row.name for row in catalogue.layers("squeezenet1_1", SIZE) if len(row.shape) == 3][-8]


def test_every_option_of_a_request_is_known_to_these_tests(request_: Request) -> None:
    # A new option must be shown to miss (above); those that choose the data are tested below.
    of_the_data = {"dataset", "limit"}
    assert set(CHANGES) | of_the_data == set(request_.to_dict())


def _edit(folder: Path, harm: str) -> None:
    victim = folder / "train" / "bee" / "003.png"
    if harm == "byte":
        facts = victim.stat()
        content = bytearray(victim.read_bytes())
        content[-20] ^= 1
        victim.write_bytes(content)
        os.utime(victim, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # lie about the time
    elif harm == "swap":
        other = folder / "train" / "cat" / "003.png"
        a, b = victim.read_bytes(), other.read_bytes()
        victim.write_bytes(b)
        other.write_bytes(a)
    elif harm == "rename":
        victim.rename(victim.with_name("zzz.png"))
    elif harm == "delete":
        victim.unlink()
    elif harm == "relabel":
        victim.rename(folder / "train" / "cat" / "003b.png")
    elif harm == "class":
        (folder / "train" / "bee").rename(folder / "train" / "wasp")
        (folder / "test" / "bee").rename(folder / "test" / "wasp")


@pytest.mark.parametrize("harm", ["byte", "swap", "rename", "delete", "relabel", "class"])
def test_changed_data_misses(request_: Request, settings: Settings, tmp_path: Path, harm: str) -> None:
    folder = make_folder(tmp_path / "photos")
    asked = replace(request_, dataset=f"folder:{folder}")
    first = extract(asked, settings)
    time.sleep(0.02)
    _edit(folder, harm)
    notes: list[str] = []
    on_bad = replace(settings, on_bad_image="skip")
    other = extract(asked, on_bad, notify=notes.append)
    assert not other.hit and other.fingerprint != first.fingerprint
    assert any("same recipe, data differs" in note for note in notes)


def test_other_weights_under_the_same_name_miss(
    request_: Request, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    network = _network()
    save_file(network.state_dict(), file)
    asked = replace(request_, weights=str(file))
    first = extract(asked, settings)
    # The same tensors from another file, or from the seed, are the same weights but for their name.
    assert Cache(first.path).recipe.weights.name == "file"
    with torch.no_grad():
        network.features[0].bias += 0.1
    save_file(network.state_dict(), file)
    assert extract(asked, settings).fingerprint != first.fingerprint


def test_nothing_recent_is_remembered(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file written a moment ago may be written again without a change of its times.
    folder = make_folder(tmp_path / "photos")
    asked = replace(request_, dataset=f"folder:{folder}")
    remembered = settings.features_dir / memory.FOLDER / "requests"
    extract(asked, settings)
    assert not list(remembered.glob("*"))
    monkeypatch.setattr(memory, "SETTLED_NS", 0)
    assert extract(asked, settings).hit
    assert len(list(remembered.glob("*"))) == 1


def test_a_damaged_memory_costs_a_look_and_nothing_else(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SETTLED_NS", 0)
    first = extract(request_, settings)
    for path in (settings.features_dir / memory.FOLDER).rglob("*.json"):
        path.write_bytes(b"{")
    assert extract(request_, settings).path == first.path
    shutil.rmtree(settings.features_dir / memory.FOLDER)
    assert extract(request_, settings).hit


def test_dataset_statistics_become_part_of_the_recipe(request_: Request, settings: Settings) -> None:
    found = Cache(extract(replace(request_, normalize="dataset"), settings).path).recipe.preprocess
    assert all(0.2 < value < 0.6 for value in found.mean) and all(0.05 < value < 0.4 for value in found.std)


def test_several_nodes_in_one_pass(request_: Request, settings: Settings) -> None:
    node = _a_node()
    default = Cache(extract(request_, settings).path)
    found = Cache(extract(replace(request_, layers=(default.nodes[0], node)), settings).path)
    assert found.nodes == (default.nodes[0], node)
    assert np.array_equal(found.table("test").X, default.table("test").X)
    assert found.table("test", node=node).columns == found.columns[node]


def test_the_limit_takes_the_first_of_each_class(request_: Request, settings: Settings) -> None:
    found = extract(replace(request_, limit=2), settings)
    assert found.rows == {"train": 6, "test": 6}
    assert [name[-7:] for name in Cache(found.path).plan.ids] == ["000.png", "001.png"] * 6


def test_our_own_folders_inside_the_images_are_no_classes(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SETTLED_NS", 0)
    folder = make_folder(tmp_path / "photos")
    monkeypatch.chdir(folder)
    here = replace(settings, features_dir=Path("features"), data_dir=Path("data"))
    asked = replace(request_, dataset="folder:.")
    assert not extract(asked, here).hit
    assert extract(asked, here).hit


# --- interruption ---

SCRIPT = """
import sys
from pathlib import Path
from featcache.extraction.extract import extract
from featcache.extraction.request import Request, Settings
data, features = sys.argv[1:]
extract(Request(f"folder:{data}", "squeezenet1_1", "random:0", image_size=64),
        Settings(Path(features), Path("data"), "cpu", batch_size=2, rows_per_shard=5))
"""


def test_killed_at_any_moment_and_resumed_it_is_the_uninterrupted_one(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "photos", train=60, test=10)
    command = [sys.executable, "-c", SCRIPT, str(data)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    rng, killed, part = random.Random(0), 0, tmp_path / "part"
    while killed < 3:
        process = subprocess.Popen([*command, str(part)])
        before = len(list(part.glob("*/commits/*.json")))
        while process.poll() is None and len(list(part.glob("*/commits/*.json"))) < before + rng.randint(
            1, 3
        ):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.03)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:
            break
    assert killed == 3, "the run was over before it could be killed often enough"
    left = sum(1 for _ in part.glob("*/commits/*.json"))
    subprocess.run([*command, str(part)], check=True)
    whole, resumed = (next(folder.glob("*--*")) for folder in (tmp_path / "whole", part))
    assert tree(whole) == tree(resumed)
    assert left < len(Cache(whole).shards())


def test_two_runs_at_once_share_the_work(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "photos", train=60, test=10)
    features = tmp_path / "features"
    command = [sys.executable, "-c", SCRIPT, str(data), str(features)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    cache = Cache(next(features.glob("*--*")))
    assert cache.sealed() is not None
    assert all(why == "" for _, why in cache.verify())
    done = memory.extractions(features, cache.name)
    # Each may compute what the other has in hand, a few batches read ahead, when nothing else is left.
    assert sum(each["images"] for each in done) <= len(cache.plan) + 80
    assert not (features / memory.FOLDER / "claims" / cache.name).exists()


def test_the_claims_of_the_dead_hold_nobody_up(request_: Request, settings: Settings) -> None:
    first = extract(request_, settings)
    shutil.rmtree(first.path)
    claims = settings.features_dir / memory.FOLDER / "claims" / first.path.name
    claims.mkdir(parents=True)
    for name in ("train-00000", "train-00003", "test-00000"):
        (claims / name).touch()
    again = extract(request_, settings)
    assert again.images == 36 and not again.hit and not claims.exists()


def test_weights_replaced_on_the_way_are_not_remembered(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SETTLED_NS", 0)
    file, network = tmp_path / "w.safetensors", _network()
    save_file(network.state_dict(), file)
    asked = replace(request_, weights=str(file))
    real_run = pipeline.run

    def run_and_replace(*arguments: object, **options: object) -> int:
        with torch.no_grad():
            network.features[0].bias += 0.1
        save_file(network.state_dict(), file)
        return real_run(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run", run_and_replace)
    first = extract(asked, settings)
    monkeypatch.setattr(pipeline, "run", real_run)
    second = extract(asked, settings)
    assert not second.hit and second.fingerprint != first.fingerprint


def test_an_image_that_comes_and_goes_during_a_run_is_not_remembered(
    request_: Request, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SETTLED_NS", 0)
    folder = make_folder(tmp_path / "photos")
    asked, extra = replace(request_, dataset=f"folder:{folder}"), folder / "train" / "bee" / "extra.png"
    real_open = extraction.open_dataset

    def add_and_open(*arguments: object) -> object:
        shutil.copy(folder / "train" / "bee" / "000.png", extra)
        return real_open(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(extraction, "open_dataset", add_and_open)
    first = extract(asked, settings)
    assert first.rows["train"] == 25
    monkeypatch.setattr(extraction, "open_dataset", real_open)
    extra.unlink()
    second = extract(asked, settings)
    assert not second.hit and second.rows["train"] == 24


def test_a_cache_in_a_folder_that_may_only_be_read_is_as_good(request_: Request, settings: Settings) -> None:
    first = extract(request_, settings)
    shutil.rmtree(settings.features_dir / memory.FOLDER)
    (settings.features_dir / memory.FOLDER).write_text("in the way")
    again = extract(request_, settings)
    assert again.hit and again.path == first.path


def test_a_great_many_other_files_do_no_harm(request_: Request, settings: Settings, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", train=2, test=1)
    for number in range(1500):
        (folder / "train" / "bee" / f"{number}.txt").touch()
    cache = Cache(extract(replace(request_, dataset=f"folder:{folder}"), settings).path)
    ignored = cache.record["dataset"]["ignored"]
    assert ignored["count"] == 1500 and len(ignored["first"]) == 1000


def test_an_image_that_changes_on_the_way_is_noticed(
    request_: Request, settings: Settings, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "photos")
    asked = replace(request_, dataset=f"folder:{folder}")
    source = open_source(asked.dataset, settings.data_dir)
    job = extraction.open_job(asked, source, silent)
    extractor = job.extractor("cpu")
    cache = extraction._create(job, settings, dict(extractor.columns))
    victim = folder / "train" / "bee" / "003.png"
    victim.write_bytes((folder / "train" / "bee" / "004.png").read_bytes())
    with pytest.raises(DatasetError, match=r"train/bee/003.png changed while"):
        pipeline.run(cache, job.dataset, extractor, batch_size=4, max_pixels=10**6)


# --- bad images and bad features ---


def _with_bad_images(root: Path) -> Path:
    folder = make_folder(root)
    (folder / "train" / "bee" / "bad1.png").write_bytes(b"")
    good = (folder / "train" / "cat" / "000.png").read_bytes()
    (folder / "train" / "cat" / "bad2.jpg").write_bytes(good[: len(good) // 2])
    (folder / "test" / "cat" / "bad3.png").write_bytes(b"<html>not found</html>")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    return folder


def test_a_bad_image_stops_the_run_and_is_named(
    request_: Request, settings: Settings, tmp_path: Path
) -> None:
    folder = _with_bad_images(tmp_path / "photos")
    with pytest.raises(DatasetError, match=r"Cannot read the image train/bee/bad1.png") as error:
        extract(replace(request_, dataset=f"folder:{folder}"), settings)
    assert "--on-bad-image skip" in error.value.hint


def test_bad_images_are_skipped_listed_and_never_invented(
    request_: Request, settings: Settings, tmp_path: Path
) -> None:
    folder = _with_bad_images(tmp_path / "photos")
    asked = replace(request_, dataset=f"folder:{folder}")
    found = extract(asked, replace(settings, on_bad_image="skip"))
    cache = Cache(found.path)
    names = {"train/bee/bad1.png", "train/cat/bad2.jpg", "test/cat/bad3.png"}
    assert found.bad_images == 3 and {name for name, _ in cache.bad_images()} == names
    assert all(reason for _, reason in cache.bad_images())
    assert cache.record["dataset"]["ignored"] == {"count": 1, "first": ["train/cat/notes.txt"]}
    for split in ("train", "val", "test"):
        assert not names & set(cache.table(split).ids)
    # The good rows are those of the folder without the bad ones.
    clean = Cache(extract(request_, settings).path)
    assert np.array_equal(
        clean.table("train", val_fraction=0).X.astype(np.float32).sum(0).round(1),
        cache.table("train", val_fraction=0).X.astype(np.float32).sum(0).round(1),
    ) or np.allclose(
        clean.table("train", val_fraction=0).X.astype(np.float32),
        cache.table("train", val_fraction=0).X.astype(np.float32),
        atol=2e-3,
    )
    # Who wants none skipped is told.
    with pytest.raises(DatasetError, match=r"3 images .* could not be read"):
        extract(asked, settings)


@pytest.mark.parametrize(("bias", "what"), [(1e5, "does not fit into float16"), (float("nan"), "not finite")])
def test_features_that_are_not_finite_are_never_stored(
    request_: Request, settings: Settings, tmp_path: Path, bias: float, what: str
) -> None:
    network = _network()
    with torch.no_grad():
        network.features[12].expand1x1.bias[3] = bias
    file = tmp_path / "w.safetensors"
    save_file(network.state_dict(), file)
    asked = replace(request_, weights=str(file))
    with pytest.raises(FeatcacheError, match=what):
        extract(asked, settings)
    assert not list(settings.features_dir.glob("*/commits/*.json"))
    if np.isfinite(bias):
        wide = Cache(extract(replace(asked, store_dtype="float32"), settings).path)
        assert float(wide.table("train").X[:, 3].min()) > 65504


# --- cost ---


def test_a_dry_run_tells_everything_and_writes_nothing(request_: Request, settings: Settings) -> None:
    plan = dry_run(request_, settings)
    assert not settings.features_dir.exists()
    assert (plan["images"], plan["columns"], plan["rows_there"], plan["hit"]) == (36, 512, 0, False)
    assert plan["bytes_per_image"] == 1024 and plan["images_per_second"] > 0
    found = extract(request_, settings)
    assert str(found.path) == plan["cache"] and found.fingerprint == plan["fingerprint"]
    shards = sum(p.stat().st_size for p in (found.path / records.SHARDS).iterdir())
    assert shards <= plan["bytes"]
    assert dry_run(request_, settings)["hit"]


def test_a_dry_run_counts_what_other_caches_have(
    request_: Request, settings: Settings, tmp_path: Path
) -> None:
    extract(request_, settings)
    folder = make_folder(tmp_path / "photos")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(folder / "train" / "bee" / "new.png")
    more = replace(request_, dataset=f"folder:{folder}")
    ahead = dry_run(more, settings)
    assert (ahead["copied"], ahead["views_left"]) == (36, 1)
    ahead = dry_run(replace(more, store_dtype="float32"), settings)
    assert (ahead["copied"], ahead["views_left"]) == (0, 37)


def test_what_does_not_fit_is_refused_before_it_starts(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SpaceError, match=r"need .* MB .* and 0.0 MB are free"):
        extract(request_, settings)
    assert not list(settings.features_dir.glob("*/shards/*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "Unknown precision 'fp8'"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"backbone": "resnet"}, "resnet"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"layers": ("nothing",)}, "nothing"),
        ({"dataset": "cifar11"}, "Unknown dataset 'cifar11'"),
        ({"dataset": Path("photos")}, "dataset must be of type str"),
        ({"limit": 1.5}, "limit must be of type int"),
        ({"layers": "features"}, "layers must be a list of names"),
    ],
)
def test_wrong_requests_get_one_clear_sentence(
    request_: Request, settings: Settings, change: dict[str, object], message: str
) -> None:
    with pytest.raises(FeatcacheError, match=message):
        extract(replace(request_, **change), settings)
    assert not list(settings.features_dir.glob("*--*"))


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="batch_size must be at least 1"):
        Settings(tmp_path, tmp_path, batch_size=0)


def test_a_classifier_that_the_weights_lack_is_refused_before_anything_is_fetched(
    request_: Request, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(weights, "load", never)
    monkeypatch.setattr(download, "fetch", never)
    asked = replace(
        request_, backbone="vgg16", weights="IMAGENET1K_FEATURES", layers=("flatten", "classifier.3")
    )
    for call in (extract, dry_run):
        with pytest.raises(WeightsError, match=r"no classifier, which layer 'classifier\.3' needs"):
            call(asked, settings)


# --- repair ---


def test_repair_computes_just_what_is_damaged(request_: Request, settings: Settings) -> None:
    found = extract(request_, settings)
    cache, before = Cache(found.path), tree(found.path)
    shards = sorted((found.path / records.SHARDS).iterdir())
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"?")
    shards[4].unlink()
    (found.path / records.COMMITS / "train-00000.json").write_bytes(b"{}")
    with pytest.raises(DamagedError):
        extract(request_, settings)
    untouched = {path.name: path.stat().st_mtime_ns for path in shards if path not in (shards[1], shards[4])}
    done = repair(found.path, settings)
    assert len(done) == 3 and "train-00000" in done
    assert tree(found.path) == before
    good = {path.name: path.stat().st_mtime_ns for path in shards}
    assert sum(good[name] == stamp for name, stamp in untouched.items()) >= len(untouched) - 1
    assert all(why == "" for _, why in cache.verify())
    assert extract(request_, settings).hit


def test_repair_writes_a_damaged_plan_again(request_: Request, settings: Settings) -> None:
    found = extract(request_, settings)
    before = tree(found.path)
    (found.path / records.PLAN).write_bytes(b"PK")
    with pytest.raises(DamagedError, match="--repair"):
        Cache(found.path).table("train")
    assert repair(found.path, settings) == []
    assert tree(found.path) == before


def test_a_damaged_recipe_is_made_anew_as_its_hint_says(request_: Request, settings: Settings) -> None:
    found = extract(request_, settings)
    before = tree(found.path)
    recipe = found.path / records.RECIPE
    recipe.write_bytes(recipe.read_bytes().replace(b"bee", b"bed"))
    with pytest.raises(DamagedError, match="Move it away"):
        Cache(found.path)
    recipe.unlink()
    again = extract(request_, settings)
    assert again.images == 0 and tree(found.path) == before


def test_repair_is_told_where_things_were_moved(
    request_: Request, settings: Settings, tmp_path: Path
) -> None:
    folder, file = make_folder(tmp_path / "photos"), tmp_path / "w.safetensors"
    save_file(_network().state_dict(), file)
    found = extract(replace(request_, dataset=f"folder:{folder}", weights=str(file)), settings)
    next((found.path / records.SHARDS).iterdir()).unlink()
    moved = (folder.rename(tmp_path / "moved"), file.rename(tmp_path / "v.safetensors"))
    with pytest.raises(FeatcacheError):
        repair(found.path, settings)
    assert len(repair(found.path, settings, f"folder:{moved[0]}", str(moved[1]))) == 1


def test_repair_refuses_other_images(request_: Request, settings: Settings, tmp_path: Path) -> None:
    found = extract(request_, settings)
    next((found.path / records.SHARDS).iterdir()).unlink()
    other = make_folder(tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match="not those"):
        repair(found.path, settings, f"folder:{other}")
