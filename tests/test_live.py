"""TensorBoard and MLflow: what they show is what was trained, and a run is never lost to them."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from featcache import whole
from featcache.commands.root import run as command
from featcache.errors import HeadError, OptionError
from featcache.finetuning.options import Place
from featcache.live import mlflow as live_mlflow
from featcache.live import tensorboard, values
from featcache.live.listeners import Listeners, listening
from featcache.store.cache import Cache
from featcache.training import fit, runs
from featcache.training.fit import Training, Watch
from featcache.training.sweep import Sweep, sweep
from tests.kit_caches import separable_cache
from tests.kit_images import make_folder

needs_board = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="needs pip install 'featcache[tensorboard]'"
)
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs pip install 'featcache[mlflow]'")
MLP: dict[str, Any] = {"hidden": (6,), "epochs": 4, "patience": None}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return separable_cache(tmp_path / "features")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a real MLflow store in a folder."""
    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_EXPERIMENT_NAME": "",
    }.items():
        monkeypatch.setenv(name, value)
    return (tmp_path / "mlruns").as_uri()


class Notes:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, Any]] = []

    def begins(self, run: str, facts: Any, again: bool = False) -> None:
        self.told.append(("again" if again else "begins", run, facts))

    def epoch(self, run: str, row: Any) -> None:
        self.told.append(("epoch", run, dict(row)))

    def ends(self, run: str, record: Any) -> None:
        self.told.append(("ends", run, record))

    def breaks(self, run: str) -> None:
        self.told.append(("breaks", run, None))

    def of(self, run: str) -> list[str]:
        return [what for what, whose, _ in self.told if whose == run]


def _history(folder: Path) -> list[dict[str, str]]:
    with open(folder / runs.HISTORY) as file:
        return list(csv.DictReader(file))


def _board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def _logged(store: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("featcache")
    return client, {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


# --- what listeners are told ---


def test_a_head_tells_of_its_beginning_every_epoch_and_its_end(cache: Cache) -> None:
    notes = Notes()
    done = fit.train(cache, Training("mlp", {**MLP, "lr": 0.01}, test=True), Watch(listener=notes))
    run = done.record["run"]
    assert notes.of(run) == ["begins", *["epoch"] * 4, "ends"]
    facts, record = notes.told[0][2], notes.told[-1][2]
    assert facts["params"]["lr"] == 0.01 and record["test"]["accuracy"] == done.record["test"]["accuracy"]
    assert all(record[name] == value for name, value in facts.items())
    rows = [row for what, _, row in notes.told if what == "epoch"]
    assert [repr(row["val_loss"]) for row in rows] == [row["val_loss"] for row in _history(done.folder)]


def test_a_head_without_epochs_and_one_that_fails_are_told_of_too(cache: Cache) -> None:
    notes = Notes()
    run = fit.train(cache, Training("ridge"), Watch(listener=notes)).record["run"]
    assert notes.of(run) == ["begins", "ends"]
    with pytest.raises(HeadError):
        fit.train(cache, Training("mlp", {**MLP, "lr": 1e30}), Watch(listener=notes))
    assert [what for what, *_ in notes.told[2:]][-1] == "breaks"


def test_heads_that_train_together_are_each_told_of_under_their_own_run(cache: Cache) -> None:
    notes = Notes()
    asked = Sweep(Training("mlp", MLP, test=True), {"lr": [1e-3, 1e-2, 1e30]}, seeds=2)
    done = sweep(cache, asked, listener=notes)
    assert done.together == 6 and done.failed == 2
    kinds = sorted(notes.of(run)[-1] for run in {run for _, run, _ in notes.told})
    assert kinds == ["breaks"] * 2 + ["ends"] * 4
    best = done.best["run"]
    assert notes.of(best) == ["begins", *["epoch"] * 4, "ends", "ends"], "the second time with the test split"
    for record in (record for c in done.configurations for record in c.records):
        told = [row["val_loss"] for what, run, row in notes.told if (what, run) == ("epoch", record["run"])]
        history = _history(runs.folder_of(cache.path, record["run"]))
        assert [repr(value) for value in told] == [row["val_loss"] for row in history]
    again = Notes()
    assert sweep(cache, asked, listener=again).found == 4
    assert [what for what, run, _ in again.told if run == best] == ["ends"], "it was not trained again"


def test_a_sweep_that_is_stopped_says_which_heads_broke(cache: Cache) -> None:
    class Stops(Notes):
        def epoch(self, run: str, row: Any) -> None:
            super().epoch(run, row)
            raise KeyboardInterrupt

    notes = Stops()
    with pytest.raises(KeyboardInterrupt):
        sweep(cache, Sweep(Training("mlp", MLP), {"lr": [1e-3, 1e-2]}), listener=notes)
    begun = [run for what, run, _ in notes.told if what == "begins"]
    assert len(begun) == 2 and all(notes.of(run)[-1] == "breaks" for run in begun)


# --- TensorBoard ---


@needs_board
def test_tensorboard_shows_the_history_the_options_and_the_results(
    cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "deep" / "board"
    arguments = ["--head", "mlp", "--hidden", "6", "--epochs", "4", "--patience", "0", "--test"]
    features = ["--features-dir", str(cache.path.parent)]
    assert command(["train-head", *arguments, *features, "--tensorboard", str(board)]) == 0
    (folder,) = board.iterdir()
    found, history = _board(folder), _history(runs.folder_of(cache.path, folder.name))
    for tag, name in (
        ("loss/train", "train_loss"),
        ("loss/val", "val_loss"),
        ("accuracy/val", "val_accuracy"),
    ):
        shown = [(event.step, event.value) for event in found.Scalars(tag)]
        assert shown == [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in history]
    record = runs.read_run(runs.folder_of(cache.path, folder.name))
    assert found.Scalars("test/accuracy")[-1].value == pytest.approx(record["test"]["accuracy"])
    assert found.Scalars("cost/fit_seconds")[-1].value == pytest.approx(record["costs"]["fit_seconds"])
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (start,) = [
        HParamsPluginData.FromString(event.plugin_data.content).session_start_info.hparams
        for tag, event in found.summary_metadata.items()
        if tag.endswith("session_start_info")
    ]
    assert start["hidden"].string_value == "6" and start["lr"].number_value == record["params"]["lr"]


@needs_board
def test_epochs_are_on_disk_before_the_next_one_and_many_runs_share_few_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "MOST_OPEN", 1)
    board = tensorboard.TensorBoard(tmp_path)
    row = {"epoch": 1, "train_loss": 0.5, "val_loss": None}
    for run in ("one", "two"):
        board.begins(run, {})
        board.epoch(run, row)
    assert [event.value for event in _board(tmp_path / "one").Scalars("loss/train")] == [0.5]
    assert not (tmp_path / "two").exists()
    for run in ("one", "two"):
        board.ends(run, {"params": {"lr": 1}, "val": {"accuracy": 0.75}})
    for run in ("one", "two"):
        found = _board(tmp_path / run)
        assert [event.value for event in found.Scalars("loss/train")] == [0.5]
        assert found.Scalars("val/accuracy")[0].value == 0.75
    board.begins("three", {})
    board.close()
    assert not board._writers


@needs_board
def test_a_network_and_a_run_that_goes_on_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs pip install 'featcache[finetune]'")
    photos = make_folder(tmp_path / "photos", train=5, test=2)
    given = {"dataset": f"folder:{photos}", "network": "small-cnn", "batch_size": 4, "patience": None}
    place = Place(tmp_path / "features", device="cpu", keep_checkpoints=1)
    with listening(tmp_path / "board") as listener:
        done = whole.finetune(whole.Asked({**given, "epochs": 1}), place, whole.Watch(listener=listener))
        whole.resume(done.folder.name, place, whole.Watch(listener=listener), epochs=2)
    found = _board(tmp_path / "board" / done.folder.name)
    assert [event.step for event in found.Scalars("loss/train")] == [1, 2]
    assert [event.step for event in found.Scalars("epoch/lr")] == [1, 2]
    assert found.Scalars("cost/parameters_trained")


# --- MLflow ---


@needs_mlflow
def test_mlflow_holds_the_history_the_options_and_the_results(
    cache: Cache, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--head",
        "mlp",
        "--hidden",
        "6",
        "--epochs",
        "4",
        "--patience",
        "0",
        "--keep-checkpoints",
        "1",
    ]
    features = ["--features-dir", str(cache.path.parent), "--mlflow", store]
    assert command(["train-head", *arguments, *features]) == 0
    client, logged = _logged(store)
    ((name, run),) = logged.items()
    record = runs.read_run(runs.folder_of(cache.path, name))
    assert run.info.status == "FINISHED" and run.data.params["hidden"] == "6"
    assert run.data.metrics["val/accuracy"] == record["val"]["accuracy"]
    assert run.data.metrics["cost/disk_bytes"] == record["costs"]["disk_bytes"]
    shown = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss/val")}
    assert shown == {
        int(row["epoch"]): float(row["val_loss"]) for row in _history(runs.folder_of(cache.path, name))
    }
    assert command(["train-head", "--resume", name, "--epochs", "6", *features]) == 0
    _, logged = _logged(store)
    assert set(logged) == {name}, "it goes on under the same run"
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss/val")]
    assert sorted(steps) == [1, 2, 3, 4, 5, 6] and logged[name].info.status == "FINISHED"


@needs_mlflow
def test_mlflow_holds_every_head_of_a_sweep_and_says_which_failed(cache: Cache, store: str) -> None:
    with listening(mlflow=store) as listener:
        done = sweep(
            cache, Sweep(Training("mlp", MLP, test=True), {"lr": [1e-3, 1e-2, 1e30]}), listener=listener
        )
    client, logged = _logged(store)
    status = sorted(run.info.status for run in logged.values())
    assert status == ["FAILED", "FINISHED", "FINISHED"]
    best = logged[done.best["run"]]
    assert best.data.metrics["test/accuracy"] == done.best["test"]["accuracy"]
    assert len(client.get_metric_history(best.info.run_id, "loss/train")) == MLP["epochs"]


@needs_mlflow
def test_where_sending_takes_long_epochs_go_together(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = live_mlflow.Mlflow(store)
    clock = iter(range(0, 10_000, 1))
    monkeypatch.setattr(live_mlflow.time, "monotonic", lambda: next(clock))
    sent: list[int] = []
    real = log._client.log_batch
    monkeypatch.setattr(
        log._client,
        "log_batch",
        lambda *a, metrics=(), **k: (sent.append(len(metrics)), real(*a, metrics=metrics, **k)),
    )
    log.begins("slow-1", {"params": {}})
    for number in range(1, 10):
        log.epoch("slow-1", {"epoch": number, "train_loss": 1.0 / number})
    log.ends("slow-1", {"epochs": 9})
    assert sent[0] == 0 and sent[1] == 1 and len(sent) < 9 and sum(sent) == 9
    client, logged = _logged(store)
    assert len(client.get_metric_history(logged["slow-1"].info.run_id, "loss/train")) == 9


@needs_mlflow
def test_a_store_that_is_not_there_is_said_before_anything_is_trained(
    cache: Cache, store: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    arguments = ["train-head", "--head", "ridge", "--features-dir", str(cache.path.parent)]
    assert command([*arguments, "--mlflow", "http://127.0.0.1:9"]) == 1
    err = capfd.readouterr().err
    assert "Cannot log to MLflow at http://127.0.0.1:9" in err and "Is the server up" in err
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    assert command([*arguments, "--mlflow", store]) == 1
    assert "set MLFLOW_ALLOW_FILE_STORE=true" in capfd.readouterr().err
    assert not list(runs.all_runs(cache.path.parent))


# --- what goes wrong ---


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if neither were installed."""
    for name in ("tensorboard", "torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    yield


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_without_the_extra_it_says_how_to_install_it(
    without: None, extra: str, cache: Cache, capfd: pytest.CaptureFixture[str]
) -> None:
    features = ["--features-dir", str(cache.path.parent)]
    assert command(["train-head", "--head", "ridge", *features, f"--{extra}", "anywhere"]) == 1
    err = capfd.readouterr().err
    assert f"pip install 'featcache[{extra}]'" in err and not list(runs.all_runs(cache.path.parent))


def test_a_listener_that_fails_later_costs_no_run_and_is_said_once(cache: Cache) -> None:
    class Fails(Notes):
        def epoch(self, run: str, row: Any) -> None:
            raise OSError("no space left on device")

    warned: list[str] = []
    other = Notes()
    listeners = Listeners({"--tensorboard": Fails(), "--mlflow": other}, warned.append)
    done = fit.train(cache, Training("mlp", MLP), Watch(listener=listeners))
    assert runs.read_run(done.folder)["run"] == done.record["run"]
    assert len(warned) == 1 and "--tensorboard failed" in warned[0] and "no space left" in warned[0]
    assert other.of(done.record["run"])[-1] == "ends"


def test_mlflow_waits_for_seconds_and_prints_nothing_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet, retries = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.delenv(quiet, raising=False)
    monkeypatch.setenv(retries, "9")
    with live_mlflow._mannered():
        assert os.environ[quiet] == "true" and os.environ[retries] == "9"
    assert quiet not in os.environ and os.environ[retries] == "9"


def test_values_are_plain_and_finite() -> None:
    facts = {
        "head": "mlp",
        "params": {"hidden": (50, 20), "patience": None, "lr": 0.1},
        "split": {"val_fraction": 0.2},
    }
    assert values.options(facts) == {
        "head": "mlp", "hidden": "50-20", "patience": "none", "lr": 0.1, "split.val_fraction": 0.2
    }  # fmt: skip
    assert values.epoch({"epoch": 3, "train_loss": 1.0, "val_loss": float("nan")}) == {"loss/train": 1.0}
    assert values.results({"val": None, "test": {"accuracy": 1}, "costs": {"peak_gpu_bytes": None}}) == {
        "test/accuracy": 1.0
    }
    with pytest.raises(OptionError), listening(mlflow="nonsense://"):
        pass
