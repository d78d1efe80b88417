"""Whole networks trained on images: from a run's head, from weights, from scratch; stopped and resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import featcache
from featcache import whole
from featcache.backbones import catalogue
from featcache.commands.root import run as command
from featcache.errors import BackboneError, DamagedError, DatasetError, OptionError, RunError
from featcache.finetuning import blocks, fit, running, telling
from featcache.finetuning.augment import Augment
from featcache.finetuning.images import Images, Intake, batches_of_epoch
from featcache.finetuning.job import prepare
from featcache.finetuning.model import Layout, assemble, columns_of, scoring_node, sum_channels
from featcache.finetuning.options import AUGMENTATIONS, Finetuning, Place
from featcache.finetuning.predicting import predict
from featcache.heads.state import EpochReport
from featcache.images.catalogue import open_source
from featcache.progress import silent
from featcache.recipe import Preprocess
from featcache.training import compare, networks, runs
from featcache.training.ledger import Ledger
from tests.kit_images import make_folder

pytest.importorskip("lightning", reason="needs pip install 'featcache[finetune]'")


@pytest.fixture(scope="module", autouse=True)
def _lightning_loads_quietly() -> None:
    """What its import warns about, if anything, is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch  # noqa: F401


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", train=10, test=4)


SMALL: dict[str, Any] = {"network": "small-cnn", "channels": 3, "lr": 1e-3, "epochs": 4, "batch_size": 8}


def _train(
    photos: Path, features: Path, watch: whole.Watch | None = None, keep: int = 0, **options: Any
) -> whole.Finetuned:
    asked = whole.Asked({"dataset": f"folder:{photos}", **SMALL, **options})
    return whole.finetune(asked, Place(features, device="cpu", keep_checkpoints=keep), watch or whole.Watch())


def _weights(done: whole.Finetuned) -> bytes:
    return (done.folder / networks.WEIGHTS).read_bytes()


# --- from a run ---


@pytest.fixture(scope="module")
def cached(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features folder with a cache and two heads on it."""
    features = tmp_path_factory.mktemp("features")
    cache = featcache.extract(
        f"folder:{photos}", backbone="resnet18", weights="random:0", image_size=48, store_dtype="float32",
        features_dir=features,
    )  # fmt: skip
    featcache.train_head(cache, "mlp", hidden=(9,), epochs=8, lr=0.01, test=True)
    featcache.train_head(cache, "logreg", calibrate=True)
    return features


@pytest.mark.parametrize("head", ["mlp", "logreg"])
def test_before_its_first_step_a_network_predicts_what_the_cached_run_did(cached: Path, head: str) -> None:
    folder = runs.find_run(cached, head)
    stored = runs.read_predictions(folder, runs.read_run(folder))
    asked = whole.Asked({}, from_run=head)
    place = Place(cached, device="cpu")
    start, fixed = whole._start(asked, place)
    job = prepare(Finetuning(**fixed), place, start, silent)
    found = predict(job, job.model, "val", "cpu")
    assert np.array_equal(found.rows, stored["val/row"])
    assert np.abs(found.proba - stored["val/proba"]).max() < 1e-5
    assert np.ptp(found.proba[:, 0]) > 1e-3  # the images are told apart at all


def test_fine_tuning_from_a_run_is_compared_with_it_row_by_row(cached: Path) -> None:
    done = featcache.finetune(from_run="mlp", epochs=2, lr=1e-5, test=True, device="cpu", features_dir=cached)
    start = runs.find_run(cached, "mlp")
    before = runs.read_run(start)
    assert done.record["head"] == "finetuned" and done.record["params"]["from_run"] == start.name
    assert done.record["network"]["before"]["val_accuracy"] == before["val"]["accuracy"]
    assert done.record["network"]["before"]["val_loss"] == pytest.approx(before["val"]["log_loss"], abs=1e-5)
    found = compare.compare([start, done.folder], "test")
    places = {folder.parent.parent.name for folder in (start, done.folder)}
    assert found["rows"] == 12 and {run["cache"] for run in found["runs"]} == places and len(places) == 2
    listed = {row["run"]: row for row in Ledger(cached).runs()}
    assert listed[done.folder.name]["test_accuracy"] == done.record["test"]["accuracy"]
    check = Ledger(cached).check()
    assert not check.differing and not check.unreadable and Ledger(cached).rebuild() == check.runs


def test_where_fine_tuning_only_harms_the_start_stays_the_best(cached: Path) -> None:
    options = {"epochs": 2, "lr": 1.0, "optimizer": "adam"}
    done = whole.finetune(
        whole.Asked(options, from_run="mlp"), Place(cached, device="cpu", keep_checkpoints=0)
    )
    assert done.record["best_epoch"] == 0 and done.record["epochs"] == 2
    assert done.record["val"]["accuracy"] == done.record["network"]["before"]["val_accuracy"]


def test_a_run_that_cannot_be_started_from_is_refused(cached: Path, photos: Path) -> None:
    place = Place(cached, device="cpu", keep_checkpoints=0)
    ended = _train(photos, cached, epochs=1)
    with pytest.raises(RunError, match="is a whole network already"):
        whole.finetune(whole.Asked({}, from_run=ended.folder.name), place)
    pixels = featcache.extract(f"folder:{photos}", backbone="pixels", image_size=8, features_dir=cached)
    run = featcache.train_head(pixels, "linear", epochs=1).folder.name
    with pytest.raises(BackboneError, match="pixels has nothing to fine-tune"):
        whole.finetune(whole.Asked({}, from_run=run), place)


# --- training ---


def test_a_small_network_learns_digits_and_says_what_it_cost(tmp_path: Path) -> None:
    options = {
        "network": "small-cnn",
        "lr": 3e-3,
        "epochs": 12,
        "batch_size": 16,
        "limit": 40,
        "patience": None,
    }
    asked = whole.Asked({"dataset": "digits", "image_size": 16, **options})
    done = whole.finetune(asked, Place(tmp_path, device="cpu", keep_checkpoints=0))
    record = done.record
    assert record["head"] == "scratch" and record["val"]["accuracy"] > 0.6 and record["val"]["n"] == 80
    history = (done.folder / runs.HISTORY).read_text().splitlines()
    assert len(history) == 13 and history[0].startswith("epoch,train_loss,train_accuracy,val_loss")
    costs = record["costs"]
    assert costs["reads"] == "images" and costs["fit_rows"] == 12 * record["train_rows"] == 12 * 320
    assert costs["parameters"] == costs["parameters_trained"] == 61_330 - 392 * 128 + 8 * 4 * 4 * 128
    assert costs["disk_bytes"] == len(_weights(done)) and costs["predict_rows"] == 80
    assert not list(done.folder.glob("checkpoints/*"))


def test_equal_options_give_equal_weights_whatever_was_drawn_before(photos: Path, tmp_path: Path) -> None:
    options = {"augment": ("flip", "trivialaugment"), "epochs": 2}
    one = _train(photos, tmp_path / "one", **options)
    torch.rand(7)
    before = torch.random.get_rng_state()
    other = _train(photos, tmp_path / "other", **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert _weights(one) == _weights(other)
    assert _weights(one) != _weights(_train(photos, tmp_path / "seed", seed=1, **options))
    assert one.record["val"]["log_loss"] == other.record["val"]["log_loss"]


def test_decoding_in_processes_changes_nothing(photos: Path, tmp_path: Path) -> None:
    options = {"augment": ("crop", "jitter"), "epochs": 1}
    asked = whole.Asked({"dataset": f"folder:{photos}", **SMALL, **options})
    found = [
        _weights(whole.finetune(asked, Place(tmp_path, device="cpu", workers=n, keep_checkpoints=0)))
        for n in (0, 2)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("train", ["head", "last-block"])
def test_what_does_not_learn_stays_as_it_was(photos: Path, tmp_path: Path, train: str) -> None:
    options = {"network": "resnet18", "weights": "random:0", "image_size": 48, "train": train, "epochs": 1}
    done = _train(photos, tmp_path, channels=None, lr=0.01, **options)
    job = prepare(Finetuning.from_dict({**done.record["params"], **options, "dataset": f"folder:{photos}"}),
                  Place(tmp_path), None, silent)  # fmt: skip
    from safetensors.torch import load

    before, after = job.model.state_dict(), load(_weights(done))
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"0"} if train == "head" else {"0", "layer4"})
    heads = sum(p.numel() for p in job.model.head.parameters())
    expected = heads if train == "head" else heads + 8_393_728
    assert done.record["costs"]["parameters_trained"] == expected


def test_a_diverged_training_is_an_error_and_no_run(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finite in epoch"):
        _train(photos, tmp_path, lr=1e30, optimizer="adam", weight_decay=0.0)
    assert not list(runs.all_runs(tmp_path))


def test_an_image_that_cannot_be_read_is_named(photos: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", train=4, test=1)
    broken = folder / "train" / "bee" / "001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"Cannot read the image .*bee/001\.png: "):
        _train(folder, tmp_path / "features", epochs=1, val_fraction=0.0)
    assert not list(runs.all_runs(tmp_path / "features"))


def test_an_image_that_changes_while_a_network_trains_is_named(photos: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", train=4, test=1)

    def change(report: Any) -> None:
        Image.new("RGB", (30, 30)).save(folder / "train" / "cat" / "002.png")

    asked = whole.Asked({"dataset": f"folder:{folder}", **SMALL, "val_fraction": 0.0})
    place = Place(tmp_path / "features", device="cpu", keep_checkpoints=0)
    with pytest.raises(DatasetError, match=r"cat/002\.png: it changed since the training began"):
        whole.finetune(asked, place, whole.Watch(epoch=change))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_equal_options_give_equal_weights(photos: Path, tmp_path: Path, precision: str) -> None:
    options = {
        "network": "resnet18",
        "weights": "random:0",
        "image_size": 96,
        "augment": ("flip",),
        "epochs": 2,
    }
    asked = whole.Asked({"dataset": f"folder:{photos}", **SMALL, **options, "precision": precision})
    done = [whole.finetune(asked, Place(tmp_path / name, device="cuda", keep_checkpoints=0)) for name in "ab"]
    assert _weights(done[0]) == _weights(done[1])
    assert done[0].record["costs"]["peak_gpu_bytes"] > 0


# --- stopped and gone on with ---


class _Stop(Exception):
    pass


@pytest.mark.parametrize("schedule", ["none", "step", "plateau", "cosine"])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    photos: Path, tmp_path: Path, schedule: str
) -> None:
    options = {
        "schedule": schedule,
        "step_epochs": 2,
        "augment": ("flip", "crop"),
        "epochs": 5,
        "patience": None,
    }
    straight = _train(photos, tmp_path, **options)

    def stop(report: Any) -> None:
        if report.epoch == 3:
            raise _Stop

    asked = whole.Asked({"dataset": f"folder:{photos}", **SMALL, **options})
    place = Place(tmp_path, device="cpu", keep_checkpoints=2)
    kept: list[str] = []
    with pytest.raises(_Stop):
        whole.finetune(asked, place, whole.Watch(epoch=stop, keeps=kept.append))
    assert len(list(runs.all_runs(tmp_path))) == 1, "an unfinished run is not seen"
    done = whole.resume(kept[0], place)
    assert done.folder.name == kept[0] and _weights(done) == _weights(straight)
    alike = ("epochs", "best_epoch", "train_rows")
    assert [done.record[name] for name in alike] == [straight.record[name] for name in alike]
    rates = [line.rsplit(",", 1)[1] for line in (done.folder / runs.HISTORY).read_text().splitlines()[1:]]
    expected = {"none": 1, "step": 3, "cosine": 5}.get(schedule)
    assert expected is None or len(set(rates)) == expected
    assert len(list((done.folder / "checkpoints").iterdir())) == 2
    with pytest.raises(RunError, match="is finished"):
        whole.resume(kept[0], place)


def test_a_killed_training_is_gone_on_with_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    options = (
        f"--dataset folder:{photos} --network small-cnn --channels 3 --epochs 400 --patience 0 --lr 1e-3"
    )
    arguments = ["finetune", *options.split(), "--device", "cpu", "--features-dir", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "featcache", *arguments], stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("*/heads/*/checkpoints/epoch-*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (run,) = [path.name for path in tmp_path.glob("*/heads/*")]
    reached = max(int(p.stem[-6:]) for p in tmp_path.glob("*/heads/*/checkpoints/epoch-??????.safetensors"))
    place = Place(tmp_path, device="cpu")
    done = whole.resume(run, place, epochs=reached + 2)
    assert done.record["epochs"] == reached + 2
    asked = {
        "dataset": f"folder:{photos}",
        "network": "small-cnn",
        "channels": 3,
        "lr": 1e-3,
        "patience": None,
    }
    straight = whole.finetune(whole.Asked({**asked, "epochs": reached + 2}), place)
    assert _weights(done) == _weights(straight)


def test_a_finished_training_from_a_run_goes_on_for_longer(cached: Path) -> None:
    place = Place(cached, device="cpu", keep_checkpoints=1)
    options = {"lr": 1e-4, "train": "last-block", "patience": None}
    short = whole.finetune(whole.Asked({**options, "epochs": 1}, from_run="logreg"), place)
    longer = whole.resume(short.folder.name, place, epochs=2)
    straight = whole.finetune(whole.Asked({**options, "epochs": 2}, from_run="logreg"), place)
    assert longer.folder == short.folder and longer.record["epochs"] == 2
    assert longer.record["network"]["before"] == straight.record["network"]["before"]
    assert _weights(longer) == _weights(straight) and longer.record["val"]["n"] == straight.record["val"]["n"]


def test_what_cannot_be_gone_on_with_gets_a_sentence(cached: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is that of a head"):
        whole.resume("mlp", Place(cached))
    done = _train(photos, tmp_path, epochs=1)
    with pytest.raises(RunError, match="kept no checkpoints"):
        whole.resume(done.folder.name, Place(tmp_path))
    done = _train(photos, tmp_path, keep=1, epochs=1, schedule="cosine")
    with pytest.raises(OptionError, match="ends after 1 epochs"):
        whole.resume(done.folder.name, Place(tmp_path), epochs=3)


# --- a finished run ---


def test_a_run_predicts_new_images_and_is_evaluated(photos: Path, tmp_path: Path, capfd: Any) -> None:
    done = _train(photos, tmp_path, epochs=2)
    assert done.record["test"] is None
    found = featcache.evaluate(done.folder.name, features_dir=tmp_path)
    assert found["test"]["n"] == 12 and sum(map(sum, found["details"]["test"]["confusion"])) == 12
    assert featcache.evaluate(done.folder.name, features_dir=tmp_path)["test"] == found["test"]
    stored = runs.read_predictions(done.folder, runs.read_run(done.folder))
    files = sorted((photos / "test").rglob("*.png"))
    predictor = featcache.predictor(done.folder.name, device="cpu", features_dir=tmp_path)
    assert np.abs(predictor([file.read_bytes() for file in files]) - stored["test/proba"]).max() < 1e-6
    arguments = ["--run", done.folder.name, "--features-dir", str(tmp_path)]
    assert command(["predict", str(photos / "test"), *arguments, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    best = [each["class"] for each in answer["predictions"]]
    assert best == [predictor.classes[code] for code in stored["test/proba"].argmax(axis=1)]
    assert command(["export", *arguments]) == 1
    assert "those are not exported yet" in capfd.readouterr().err
    (done.folder / networks.WEIGHTS).write_bytes(b"x")
    with pytest.raises(DamagedError, match="differs from what was written"):
        featcache.predictor(done.folder.name, features_dir=tmp_path)


def test_the_command_stores_a_run_that_the_others_know(photos: Path, tmp_path: Path, capfd: Any) -> None:
    from featcache.commands.json_keys import KEYS

    options = f"--dataset folder:{photos} --network small-cnn --channels 3 --epochs 2 --patience 0 --test"
    place = ["--features-dir", str(tmp_path)]
    assert command(["finetune", *options.split(), "--augment", "flip,crop", *place, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == set(KEYS["finetune"]) and found["params"]["augment"] == ["flip", "crop"]
    assert found["params"]["patience"] is None and found["test"]["n"] == 12
    assert command(["runs", *place, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["runs"]
    assert (row["run"], row["head"], row["backbone"]) == (found["run"], "scratch", "small-cnn")
    assert found["run"].startswith("scratch-small-cnn-")
    assert command(["ls", *place, "--json"]) == 0 and json.loads(capfd.readouterr().out) == {"caches": []}
    assert command(["runs", "--check", *place]) == 0
    capfd.readouterr()
    assert command(["finetune", *options.split(), *place]) == 0
    out, err = capfd.readouterr()
    assert "macro F1" in out and "epoch 2/2 · train loss" in err and "lightning" not in err.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--network resnet19", "Unknown network 'resnet19'."),
        ("--network simple-resnet --image-size 64", "simple-resnet takes images of at least 128 pixels"),
        ("--network small-cnn --weights DEFAULT", "There are no weights of small-cnn"),
        ("--network small-cnn --hidden 5", "small-cnn has hidden layers of its own."),
        ("--network googlenet --weights scratch --channels 1", "cannot take one channel"),
        ("--augment flop", "Unknown augmentation 'flop'."),
        ("--lr 0", "lr must be above 0, got 0.0."),
        ("--lr nan", "lr must be above 0, got nan."),
        ("--gamma 1.5", "gamma must be between 0 and 1, got 1.5."),
        ("--batch-size 1", "batch_size must be at least 2, got 1."),
        ("--device cuda:77", "There is no cuda:77 here"),
        ("--device cpu,cpu", "Cannot train on 'cpu,cpu'."),
        ("--resume nothing", "No run 'nothing'"),
        ("--from-run nothing", "No run 'nothing'"),
    ],
)
def test_wrong_input_gets_one_sentence(
    photos: Path, tmp_path: Path, capfd: Any, arguments: str, message: str
) -> None:
    given = arguments.split()
    data = [] if given[0] in ("--resume", "--from-run") else ["--dataset", f"folder:{photos}"]
    assert command(["finetune", *data, *given, "--features-dir", str(tmp_path / "features")]) == 1
    err = capfd.readouterr().err
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    "extra", ["--resume X --lr 1", "--from-run X --network vgg16", "--from-run X --limit 3"]
)
def test_options_that_would_be_ignored_are_refused(extra: str, capfd: Any) -> None:
    assert command(["finetune", *extra.split()]) == 2
    assert "cannot be given with" in capfd.readouterr().err


def test_without_lightning_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'featcache\[finetune\]'"):
        whole.finetune(whole.Asked(), Place(tmp_path))


# --- parts ---


@pytest.mark.parametrize(
    ("network", "last"),
    [("resnet18", ["cut.layer4"]), ("vgg11", ["cut.classifier.3"]),
     ("vit_b_16", ["cut.encoder.layers.encoder_layer_11", "cut.encoder.ln"]),
     ("densenet121", ["cut.features.denseblock4", "cut.features.norm5"]),
     ("squeezenet1_1", ["cut.features.12"]),
     ("efficientnet_b0", ["cut.features.8"]), ("mobilenet_v3_small", ["cut.classifier"])],
)  # fmt: skip
def test_the_last_block_by_network(network: str, last: list[str]) -> None:
    bare = catalogue.skeleton(network)
    node = scoring_node(network, bare)
    layout = Layout(network, 3, 224, 5, node.name, node.pool, (7, 5))
    model = assemble(layout, bare, None, 0)
    found = blocks.last_blocks(model.body)
    assert found == last and set(found) < set(blocks.groups(model.body))


def test_dropout_before_the_last_layer_is_kept() -> None:
    bare = catalogue.build("alexnet")
    node = scoring_node("alexnet", bare)
    layout = Layout("alexnet", 3, 64, 5, node.name, node.pool, (columns_of(bare, node, 64), 5))
    model = assemble(layout, bare, None, 0)
    assert sum(isinstance(part, nn.Dropout) for part in model.modules()) == 2 and layout.sizes[0] == 4096


def test_summed_channels_see_a_grey_image_as_three_equal_ones_were_seen() -> None:
    network = catalogue.build("squeezenet1_1")
    grey = torch.rand(2, 1, 48, 48)
    with torch.inference_mode():
        wanted = network(grey.expand(-1, 3, -1, -1))
        sum_channels(network, "squeezenet1_1")
        assert torch.allclose(network(grey), wanted, atol=1e-5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_depends_on_seed_epoch_and_row_alone(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    change = Augment([name], seed=3)
    drawn = [change(image, epoch, row) for epoch in (1, 2) for row in range(8)]
    torch.rand(3)
    again = [change(image, epoch, row) for epoch in (1, 2) for row in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert all(each.dtype == np.uint8 and (name == "crop" or each.shape == image.shape) for each in drawn)
    assert len({each.tobytes() for each in drawn}) > 1


def test_small_images_that_travel_as_they_are_become_the_same_input(tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "train" / "a"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    source = open_source(f"folder:{tmp_path / 'tiny'}", tmp_path).open()
    for mode in ("auto", "weights"):
        step = Preprocess(mode, 40, 32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        here, away = (Images(source, step, 10**6, None, device) for device in ("cpu", "cuda:0"))
        fitted, raw = (each.collate([each[row, 0] for row in range(4)])[0] for each in (here, away))
        assert fitted.shape == (4, 32, 32, 3) and raw.shape == (4, 20, 28, 3)
        intake = Intake(step, "cpu")
        assert torch.equal(intake(fitted), intake(raw))


@given(st.integers(6, 70), st.integers(2, 17), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_every_row_once_and_no_row_is_alone(
    count: int, size: int, seed: int, devices: int
) -> None:
    rows = np.arange(100, 100 + count)
    parts = [batches_of_epoch(rows, size, seed, 1, rank, devices) for rank in range(devices)]
    seen = [row for part in parts for batch in part for row, epoch in batch if epoch == 1]
    assert len(seen) == len(set(seen)) == count // devices * devices and set(seen) <= set(rows.tolist())
    assert len({sum(map(len, part)) for part in parts}) == 1
    for part in parts:
        assert all(len(batch) > 1 for batch in part)
        assert all(len(batch) <= size + 1 for batch in part)
    first, other = (batches_of_epoch(rows, size, seed, epoch) for epoch in (1, 2))
    assert count < 8 or [r for b in other for r, _ in b] != [r for b in first for r, _ in b]


def test_options_survive_json() -> None:
    asked = Finetuning(augment=("flip",), hidden=(5, 4), patience=None)
    assert Finetuning.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    assert asked.differences(replace(asked, epochs=3, lr=1.0)) == ["lr: 0.0001 then, 1.0 now"]
    assert os.fspath(Place().features_dir) == "features"


def test_several_devices_share_the_rows_and_what_they_learned_comes_back(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on the CPU stand for two GPUs: Lightning's strategy and ours are the same.

    This process has trained on its CPU before, after which no process forked from it could.
    """
    assert _train(photos, tmp_path / "before", epochs=1).record["epochs"] == 1
    for module in (fit, whole):
        monkeypatch.setattr(module, "devices_of", lambda device: ["cpu", "cpu"])
    with pytest.raises(OptionError, match="needs checkpoints"):
        _train(photos, tmp_path, epochs=2)
    told: list[tuple[int, int, float]] = []

    def hear(report: Any) -> None:
        told.append((os.getpid(), report.epoch, report.metrics["val_loss"]))
        assert report.state().epoch == report.epoch

    asked: dict[str, Any] = {"keep": 1, "epochs": 2, "lr": 0.01, "augment": ("flip", "jitter")}
    done = _train(photos, tmp_path, whole.Watch(epoch=hear), **asked)
    assert done.record["epochs"] == 2 and done.record["network"]["devices"] == ["cpu", "cpu"]
    assert done.record["costs"]["peak_ram_bytes"] is None, "other processes had it"
    with open(done.folder / runs.HISTORY) as file:
        history = list(csv.DictReader(file))
    assert [(pid, epoch) for pid, epoch, _ in told] == [(os.getpid(), 1), (os.getpid(), 2)]
    assert [loss for *_, loss in told] == [float(row["val_loss"]) for row in history]
    best = history[done.record["best_epoch"] - 1]
    assert float(best["val_loss"]) == pytest.approx(done.record["val"]["log_loss"], abs=1e-5)


def test_where_no_process_can_be_started_it_is_said_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fit, whole):
        monkeypatch.setattr(module, "devices_of", lambda device: ["cpu", "cpu"])
    assert running.processes().get_start_method() == "spawn"
    with monkeypatch.context() as patch:
        patch.setattr(running.multiprocessing.current_process(), "_inheriting", True, raising=False)
        with pytest.raises(OptionError, match="begins this program anew"):
            _train(photos, tmp_path, keep=1)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert running.processes().get_start_method() == "fork"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(OptionError, match="interactive session that has used a GPU"):
        _train(photos, tmp_path, keep=1)
    assert not list(tmp_path.iterdir())


def test_an_error_in_a_listener_of_several_devices_ends_the_training_with_it() -> None:
    def fails(report: Any) -> None:
        raise ValueError("told")

    with (
        pytest.raises(ValueError, match="told"),
        telling.relayed(None, fails, lambda: None, [], "fp32") as sender,
    ):
        sender(EpochReport(1, 2, {"epoch": 1}, [], lambda: None))  # type: ignore[arg-type,return-value]
