"""The command line: every command's help, its JSON keys, its messages and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featcache.commands.json_keys import KEYS
from featcache.commands.json_parts import METRICS
from featcache.commands.reference import reference
from featcache.commands.root import COMMANDS, root, run
from featcache.store.cache import Cache
from tests.kit_caches import separable_cache
from tests.kit_images import make_folder

ROOT = Path(__file__).parents[1]


class Cli:
    """Runs commands in this process and returns exit code, stdout and stderr."""

    def __init__(self, capfd: pytest.CaptureFixture[str], features: Path) -> None:
        self.capfd, self.features = capfd, features

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.capfd.readouterr()
        code = run([*arguments, "--features-dir", str(self.features)])
        out, err = self.capfd.readouterr()
        return code, out, err

    def json(self, *arguments: str) -> dict[str, Any]:
        code, out, _ = self(*arguments, "--json")
        assert out.count("\n") == 1, "one object on stdout and nothing else"
        found: dict[str, Any] = json.loads(out)
        assert code == (1 if "error" in found else 0)
        return found


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    return Cli(capfd, tmp_path / "features")


@pytest.fixture
def easy(cli: Cli) -> Cache:
    return separable_cache(cli.features)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", train=4, test=2)


def _extract(photos: Path) -> list[str]:
    options = "--backbone squeezenet1_1 --weights random:0 --image-size 48"
    return ["extract", "--dataset", f"folder:{photos}", *options.split()]


# --- documentation ---


def test_the_reference_is_that_of_the_program() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert text == reference(), "run: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_entry(name: str) -> None:
    command = root.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None and command.help and command.short_help
    assert f"## featcache {name}\n" in (ROOT / "docs" / "cli.md").read_text()
    for option in command.params:
        assert option.name


def test_the_documents_name_only_commands_that_exist() -> None:
    for page in ("README.md", "docs/architecture.md", "docs/format.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        code = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", text, flags=re.DOTALL)
        for name in re.findall(
            r"(?m)^\s*featcache ([a-z][a-z-]*)", "\n".join("\n".join(pair) for pair in code)
        ):
            assert name in COMMANDS, (page, name)


# --- JSON ---


def test_extract_json(cli: Cli, photos: Path) -> None:
    plan = cli.json(*_extract(photos), "--dry-run")
    assert set(plan) == set(KEYS["extract --dry-run"])
    first = cli.json(*_extract(photos))
    assert set(first) == set(KEYS["extract"])
    assert (first["hit"], first["rows"], first["columns"]) == (False, {"train": 12, "test": 6}, 512)
    assert first["images_per_second"] > 0 and first["bad_images"] == 0
    again = cli.json(*_extract(photos))
    assert again["hit"] and again["images_per_second"] is None and again["cache"] == first["cache"]
    assert cli.json(*_extract(photos), "--dry-run")["hit"]


def test_train_head_and_evaluate_json(cli: Cli, easy: Cache) -> None:
    trained = cli.json("train-head", "--head", "mlp", "--cache", "easy", "--epochs", "3", "--hidden", "8")
    assert set(trained) == set(KEYS["train-head"]) and set(trained["val"]) == set(METRICS)
    assert trained["test"] is None and trained["params"]["hidden"] == [8] and trained["epochs"] == 3
    assert set(trained["val"]["worst_class"]) == {"class", "f1", "precision", "recall"}
    tested = cli.json("train-head", "--head", "ridge", "--cache", "easy", "--test")
    assert set(tested["test"]) == set(METRICS) and tested["best_epoch"] is None
    found = cli.json("evaluate", trained["run"])
    assert set(found) == set(KEYS["evaluate"])
    assert set(found["test"]) == {*METRICS, "per_class", "confusion"}


def test_calibrate_json_and_words(cli: Cli, easy: Cache) -> None:
    asked = ["train-head", "--head", "ridge", "--cache", "easy", "--calibrate"]
    found = cli.json(*asked, "--test")
    assert set(found) == set(KEYS["train-head"])
    assert set(found["calibration"]) == {"temperature", "val", "test"}
    assert set(found["calibration"]["test"]) == {"ece_before", "ece_after"}
    code, out, _ = cli(*asked)
    assert code == 0 and "calibrated, temperature" in out and "ECE on val" in out and "on test" not in out
    assert "calibrated" in cli("evaluate", found["run"])[1]


def test_the_best_runs_and_the_ledger_s_check(cli: Cli, easy: Cache) -> None:
    for head in ("ridge", "knn"):
        cli("train-head", "--head", head, "--cache", "easy")
    assert len(cli.json("runs", "--best-by", "val_accuracy")["runs"]) == 1
    assert len(cli.json("runs", "--best-by", "val_accuracy", "--per", "head")["runs"]) == 2
    code, out, err = cli("runs", "--best-by", "val_macro_f1", "--per", "head")
    assert code == 0 and "val_macro_f1" in out and "note" not in err
    assert "looks better there" in cli("runs", "--best-by", "test_accuracy")[2]
    assert set(cli.json("runs", "--check")) == set(KEYS["runs --check"])
    assert cli("runs", "--check")[1] == "The ledger and the 2 run folders agree.\n"
    (cli.features / "ledger.sqlite").unlink()
    code, out, err = cli("runs", "--check")
    assert code == 1 and out.count("not in the ledger") == 2 and "featcache runs --rebuild" in err
    assert "differ in 2" in cli.json("runs", "--check")["error"]
    assert cli("runs", "--rebuild", "--check")[0] == 0
    damaged = next(easy.path.glob("heads/*/run.json"))
    damaged.write_bytes(b"{}")
    code, _, err = cli("runs", "--rebuild", "--check")
    assert code == 1 and damaged.parent.name in err and "cannot be read" in err


def test_the_best_of_several_data_sets_is_said_to_be_mixed(cli: Cli, easy: Cache) -> None:
    separable_cache(cli.features, name="other")
    for name, head in (("easy", "ridge"), ("other", "knn")):
        cli("train-head", "--head", head, "--cache", name)
    assert "2 data sets are mixed" in cli("runs", "--best-by", "val_accuracy", "--per", "head")[2]


def test_compare_json_and_words(cli: Cli, easy: Cache) -> None:
    ids = [
        cli.json("train-head", "--head", head, "--cache", "easy", "--test")["run"]
        for head in ("ridge", "knn")
    ]
    found = cli.json("compare", *ids)
    assert set(found) == set(KEYS["compare"]) and found["split"] == "test"
    assert set(found["runs"][0]) == {
        "run", "head", "cache", "subset", "accuracy", "low", "high", "costs",
    }  # fmt: skip
    assert found["runs"][0]["costs"]["reads"] == "features" and "s per 1000" in cli("compare", *ids)[1]
    assert all(name in KEYS["compare"]["pairs"] for name in found["pairs"][0])
    code, out, _ = cli("compare", *ids, "--split", "val")
    assert code == 0 and "on val, 48 rows" in out and ids[0] in out and "ifference" in out
    assert cli("compare", ids[0])[0] == 0
    code, out, err = cli("compare", ids[0], ids[0][:8])
    assert code == 1 and out == "" and "named twice" in err


def test_other_json(cli: Cli, easy: Cache) -> None:
    cli.json("train-head", "--head", "knn", "--cache", "easy")
    for command in (["info", "easy"], ["ls"], ["ls", "--datasets"], ["runs"], ["verify", "easy"]):
        name = " ".join(part for part in command if part != "easy")
        assert set(cli.json(*command)) == set(KEYS[name]), command
    assert {row["name"] for row in cli.json("ls", "--datasets")["datasets"]} >= {"cifar10", "digits", "svhn"}
    (line,) = cli.json("ls")["caches"]
    assert set(line) == {"cache", "rows", "columns", "size", "state"}


def test_doctor_and_layers_json(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    found = cli.json("doctor")
    assert set(found) == set(KEYS["doctor"]) and set(found["file_system"].values()) == {""}
    assert run(["layers", "squeezenet1_1", "--image-size", "64", "--json"]) == 0
    layers = json.loads(capfd.readouterr().out)
    assert set(layers) == set(KEYS["layers"])
    assert set(layers["layers"][0]) == {"node", "shape", "kind", "parameters"}
    assert set(layers["default"]) <= {row["node"] for row in layers["layers"]}


def test_errors_as_json(cli: Cli) -> None:
    found = cli.json("train-head", "--head", "mlp")
    assert set(found) == {"error", "hint"} and "none yet" in found["error"]


# --- messages ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train-head", "--head", "lin"],
            "Unknown head 'lin'.\nKnown: boosting, dummy, forest, knn, linear,",
        ),
        (["train-head", "--head", "ridge", "--lr", "1"], "Unknown option of head 'ridge': 'lr'."),
        (["train-head", "--cache", "nothing"], "No cache 'nothing'"),
        (["train-head", "--head", "mlp", "--epochs", "0"], "epochs"),
        (["train-head", "--head", "mlp", "--seed", "9" * 30], "seed"),
        (["runs", "--where", "val_accuracy>=abc"], "abc"),
        (["train-head", "--val-fraction", "1.5"], "1.5"),
        (["train-head", "--split-mode", "first"], "first"),
        (["train-head", "--head", "knn", "--keep-checkpoints", "2"], "not trained by epochs"),
        (["train-head", "--resume", "mlp-00000000"], "No run 'mlp-00000000'"),
        (["evaluate", "nothing"], "No run 'nothing'"),
        (["runs", "--where", "x"], "Cannot read the condition 'x'"),
        (["runs", "--sort", "beauty"], "Unknown column 'beauty'"),
        (["runs", "--best-by", "beauty"], "Unknown measure 'beauty'"),
        (["runs", "--best-by", "val_accuracy", "--per", "day"], "Unknown group 'day'"),
        (["compare", "nothing"], "No run 'nothing'"),
        (["info", "nothing"], "No cache 'nothing'"),
        (["extract", "--dataset", "folder:nowhere", "--weights", "random:0"], "nowhere"),
        (["extract", "--dataset", "digits", "--backbone", "vgg61"], "vgg61"),
    ],
)
def test_wrong_input_gets_one_clear_sentence_and_exit_code_1(
    cli: Cli, easy: Cache, arguments: list[str], message: str
) -> None:
    code, out, err = cli(*arguments)
    assert code == 1 and out == ""
    assert message in err and "Traceback" not in err
    assert not list(easy.path.glob("heads/*/run.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "--batch-size", "many"],
        ["extract", "--nothing"],
        ["nothing"],
        ["evaluate"],
        ["compare"],
        ["runs", "--per", "head"],
    ],
)
def test_wrong_usage_exits_2(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments)[0] == 2


def test_the_cache_used_last_is_taken_and_named(cli: Cli, easy: Cache) -> None:
    other = separable_cache(cli.features, name="easy-too")
    cli("info", other.name)
    code, _, err = cli("train-head", "--head", "ridge")
    assert code == 0 and f"cache {other.name} (used last" in err
    code, _, err = cli("train-head", "--head", "ridge", "--cache", "easy")
    assert code == 1 and easy.name in err and other.name in err


def test_without_any_cache_used_before_those_there_are_are_listed(cli: Cli, easy: Cache) -> None:
    separable_cache(cli.features, name="easy-too")
    code, _, err = cli("train-head", "--head", "ridge")
    assert code == 1 and easy.name in err


def test_verify_names_the_damage_and_exits_1(cli: Cli, easy: Cache) -> None:
    assert cli("verify", "easy")[0] == 0
    shard = sorted((easy.path / "shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    code, out, err = cli("verify", "easy")
    assert code == 1 and shard.name in out and "1 of 5 shards" in err and "--repair" in err
    assert cli("ls")[0] == 0


def test_repair_from_the_command_line(cli: Cli, photos: Path) -> None:
    found = cli.json(*_extract(photos))
    shard = next((Path(found["cache"]) / "shards").iterdir())
    shard.unlink()
    code, _, err = cli(*_extract(photos))
    assert code == 1 and shard.name in err
    assert cli.json("verify", "--repair")["repaired"] == [shard.name[:-20]]
    assert cli.json(*_extract(photos))["hit"]


def test_odd_names_cannot_paint_the_terminal(cli: Cli, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", train=2, test=1)
    (folder / "train" / "bee" / "\x1b[31mred.png").write_bytes(b"")
    code, out, err = cli(*_extract(folder))
    assert code == 1 and "\x1b[31m" not in out + err and r"\x1b[31mred.png" in err


def test_people_see_tables(cli: Cli, easy: Cache) -> None:
    code, out, err = cli("train-head", "--head", "mlp", "--cache", "easy", "--epochs", "2", "--test")
    assert "trainable" in err and "frozen" in err
    assert code == 0 and "accuracy" in out and "worst class" in out and "run mlp-" in out
    run_id = out.split("run ")[1].split()[0]
    code, out, _ = cli("evaluate", run_id)
    assert code == 0 and "confusion" in out and "ape" in out and "precision" in out
    assert run_id in cli("runs")[1] and run_id in cli("info", "easy")[1]
    assert "12" in cli("ls")[1]


def test_a_checkout_runs_the_same_program() -> None:
    done = subprocess.run([sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "featcache")


def test_a_closed_pipe_is_no_traceback(easy: Cache, cli: Cli) -> None:
    command = f"{sys.executable} -m featcache ls --datasets | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ))
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


# --- the demo ---


def test_the_demo_shows_the_whole_way(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # offline: no official weights
    monkeypatch.setattr("featcache.commands.demo._reachable", lambda url: False)
    found = cli.json("demo")
    assert set(found) == set(KEYS["demo"]) and found["weights"] == "random:0"
    rows = {(row["head"], row["features"]): row["test_accuracy"] for row in found["rows"]}
    assert set(rows) == {(head, "resnet18") for head in ("linear", "mlp", "logreg", "svm")} | {
        ("logreg", "raw pixels")
    }
    assert rows["logreg", "resnet18"] > rows["logreg", "raw pixels"] > 0.95


# --- stops and second tries ---


def test_an_interrupted_training_says_what_became_of_it(
    cli: Cli, easy: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featcache.training.checkpoints.keep", interrupt)
    code, out, err = cli("train-head", "--cache", "easy", "--keep-checkpoints", "2", "--epochs", "3")
    run_id = err.split("--resume ")[1].split()[0]
    assert code == 1 and out == "" and run_id.startswith("mlp-") and "Stopped." in err
    monkeypatch.undo()
    code, out, _ = cli("train-head", "--resume", run_id)
    assert code == 0 and f"run {run_id}" in out


def test_memory_that_ends_without_python_saying_so(
    cli: Cli, easy: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(said: str) -> None:
        def raising(*arguments: object, **options: object) -> None:
            raise SystemError(said)

        monkeypatch.setattr("featcache.training.checkpoints.keep", raising)

    asked = ("train-head", "--cache", "easy", "--keep-checkpoints", "2", "--epochs", "3")
    failing("<method 'x'> returned NULL without setting an exception")
    code, _, err = cli(*asked)
    assert code == 1 and err.count("Error: Out of memory: ") == 1 and "Traceback" not in err
    failing("of another kind")
    with pytest.raises(SystemError):
        cli(*asked)


@pytest.mark.parametrize("extra", [["--head", "logreg"], ["--lr", "3"], ["--cache", "easy"], ["--test"]])
def test_resume_refuses_what_it_would_ignore(cli: Cli, easy: Cache, extra: list[str]) -> None:
    cli("train-head", "--cache", "easy", "--keep-checkpoints", "1", "--epochs", "2")
    run_id = next((easy.path / "heads").iterdir()).name
    code, _, err = cli("train-head", "--resume", run_id, *extra)
    assert code == 2 and f"{extra[0]} cannot be given with --resume" in err
    assert cli("train-head", "--resume", run_id, "--epochs", "3")[0] == 0


def test_a_damaged_ledger_does_not_hide_a_finished_run(cli: Cli, easy: Cache) -> None:
    (cli.features / "ledger.sqlite").write_bytes(b"not a database" * 100)
    code, out, err = cli("train-head", "--head", "ridge", "--cache", "easy")
    assert code == 0 and "run ridge-" in out and "not in the ledger" in err


def test_a_cache_can_be_named_by_its_path(cli: Cli, easy: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(easy.path)
    code, out, _ = cli("train-head", "--head", "ridge", "--cache", ".")
    assert code == 0 and not (easy.path / "ledger.sqlite").exists()
    assert cli.json("evaluate", out.split("run ")[1].split()[0])["cache"] == easy.name


def test_wrong_usage_with_json_is_json(cli: Cli) -> None:
    code, out, _ = cli("extract", "--nothing", "--json")
    assert code == 2 and set(json.loads(out)) == {"error", "hint"}


def test_a_poor_terminal_gets_what_it_can_show(easy: Cache, cli: Cli) -> None:
    command = [sys.executable, "-m", "featcache", "ls", "--features-dir", str(cli.features)]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0 and easy.name.encode() in done.stdout


def test_damaged_numbers_in_a_record_are_damage(cli: Cli, easy: Cache) -> None:
    recipe = easy.path / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"rows_per_shard": 64', '"rows_per_shard": 1e999'))
    code, _, err = cli("info", "easy")
    assert code == 1 and "is damaged" in err and "Traceback" not in err
