"""`featcache report` as a person calls it, and the commands it says make a run again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from featcache.commands.extract import extract
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run
from featcache.extraction.request import Request
from featcache.store.cache import Cache
from featcache.store.recent import mark_used
from featcache.training import again, runs
from featcache.training.fit import Training, train
from tests.kit_caches import separable_cache
from tests.kit_reports import drawn, run_of


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return separable_cache(tmp_path / "features")


def _call(capfd: pytest.CaptureFixture[str], cache: Cache, *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run(["report", *arguments, "--features-dir", str(cache.path.parent)])
    return code, *capfd.readouterr()


@drawn
def test_a_page_is_written_and_json_says_where(
    cache: Cache, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = [run_of(cache, head).name for head in ("ridge", "knn")]
    code, out, _ = _call(capfd, cache, *ids)
    assert code == 0 and "page: report.html" in out and "most accurate of 2 runs" in out
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    code, out, _ = _call(capfd, cache, "--all", "--json", "--out", "deep/r.html", "--figures", "drawn")
    found: dict[str, Any] = json.loads(out)
    assert code == 0 and set(found) == set(KEYS["report"])
    assert found["page"] == "deep/r.html" and Path(found["page"]).exists()
    assert found["figures"] and all(Path(path).stat().st_size > 1000 for path in found["figures"])
    (group,) = found["groups"]
    assert all(set(line) == set(KEYS["a run of report"]) for line in group["runs"])
    assert all(name in KEYS["report"]["groups"] for name in group)
    assert all(name in KEYS["report"]["groups"] for name in group["against"][0])


def test_text_csv_and_markdown_go_to_stdout_and_write_nothing(
    cache: Cache, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(cache), run_of(cache, "knn")
    code, out, err = _call(capfd, cache, "--all", "--text")
    assert code == 0 and "easy, test split, 60 rows" in out and "note: " in err and "note: " not in out
    assert _call(capfd, cache, "--all", "--csv")[1].count("\n") == 3
    assert _call(capfd, cache, "--all", "--markdown")[1].startswith("**easy, test split, 60 rows**")
    assert json.loads(_call(capfd, cache, "--all", "--json")[1])["page"] is None
    assert not (tmp_path / "report.html").exists()


def test_without_a_name_it_is_the_cache_used_last(cache: Cache, capfd: pytest.CaptureFixture[str]) -> None:
    other = separable_cache(cache.path.parent, name="other")
    run_of(cache), run_of(other, "knn")
    mark_used(cache.path.parent, other.name)
    _, out, err = _call(capfd, cache, "--text")
    assert "other" in out and "easy" not in out and "used last" in err
    assert "easy" in _call(capfd, cache, "--text", "--all")[1]


def test_what_cannot_be_is_said_in_a_sentence(cache: Cache, capfd: pytest.CaptureFixture[str]) -> None:
    name = run_of(cache).name
    assert _call(capfd, cache, "--csv", "--markdown")[0] == 2
    assert _call(capfd, cache, name, "--all")[0] == 2
    code, out, err = _call(capfd, cache, "nothing")
    assert code == 1 and out == "" and "'nothing' is neither a run nor a cache" in err
    code, _, err = _call(capfd, cache, name, "--split", "cv", "--text")
    assert code == 1 and f"{name} has no predictions on cv" in err


HEADS: dict[str, dict[str, Any]] = {
    "ridge": {"alpha": 3.5},
    "mlp": {"hidden": (6, 4), "epochs": 3, "patience": None, "lr": 0.01, "seed": 3},
    "svm": {"C": 0.5},
    "knn": {"k": 3},
    "forest": {"n_estimators": 5, "max_depth": None},
    "boosting": {"n_estimators": 3},
}


@pytest.mark.parametrize("head", HEADS)
def test_the_command_that_is_shown_makes_the_same_run_again(
    cache: Cache, capfd: pytest.CaptureFixture[str], head: str
) -> None:
    done = train(
        cache, Training(head, HEADS[head], val_fraction=0.3, split_seed=7, test=True, calibrate=True)
    )
    command, remark = again.train_command(done.record, {})
    assert command is not None and remark == ""
    capfd.readouterr()
    words = shlex.split(command)[1:]
    assert run([*words, "--features-dir", str(cache.path.parent), "--json"]) == 0
    made = runs.read_run(runs.find_run(cache.path.parent, json.loads(capfd.readouterr()[0])["run"]))
    for name in ("params", "split", "val", "test", "calibration", "node", "key"):
        old, new = (dict(r[name]) if isinstance(r[name], dict) else r[name] for r in (done.record, made))
        for each in (old, new):
            if isinstance(each, dict):
                each.pop("predict_seconds", None)
        assert old == new, name


def test_a_run_on_some_rows_says_what_made_it() -> None:
    subset = {"per_class": 5, "fraction": None, "trial": 1, "seed": 0}
    command, remark = again.train_command({"subset": subset, "head": "mlp"}, {})
    assert command is None and "5 per class, trial 1" in remark and "featcache sweep" in remark


def test_the_extraction_that_is_shown_asks_for_the_same_features() -> None:
    request = Request(
        "folder:my photos", "resnet18", "random:0", ("layer3", "flatten"), "max", "squash", 96,
        "half", "bf16", "int8", 5, 1000,
    )  # fmt: skip
    words = shlex.split(again.extract_command(request.to_dict()))
    assert words[:2] == ["featcache", "extract"]
    context = extract.make_context("extract", words[2:])
    given = {name: context.params[name] for name in request.to_dict() if name in context.params}
    assert len(given) >= 11
    for name, value in given.items():
        expected = request.to_dict()[name]
        assert (list(value) if isinstance(value, tuple) else value) == expected, name


@drawn
def test_the_same_from_python(cache: Cache, tmp_path: Path) -> None:
    import featcache

    name = run_of(cache).name
    features = cache.path.parent
    found = featcache.report(name, out=tmp_path / "deep" / "page.html", features_dir=features)
    assert [line["run"] for line in found["groups"][0]["runs"]] == [name]
    assert name in (tmp_path / "deep" / "page.html").read_text()
    (tmp_path / "deep" / "page.html").unlink()
    assert featcache.report(out=None, features_dir=features) == found
    assert not (tmp_path / "deep" / "page.html").exists()


def test_views_are_asked_for_again() -> None:
    record = {"run": "mlp-1", "head": "mlp", "cache": "c", "node": "n", "params": {}, "split": {}}
    record |= {"views": {"mode": "all", "count": 5}, "test": {"views": 5}}
    command, _ = again.train_command(record, {})
    assert command is not None and command.endswith("--node n --view-mode all --test --test-views")


def test_a_whole_network_s_command_takes_from_a_run_what_that_has_decided() -> None:
    params = {"weights": "auto", "from_run": None, "hidden": [], "lr": 0.01, "patience": None, "limit": 5}
    record: dict[str, Any] = {
        "run": "scratch-1",
        "head": "scratch",
        "backbone": "small-cnn",
        "params": params,
    }
    record |= {"network": {"size": 32}, "test": {"n": 1}, "split": {"val_fraction": 0.2}}
    command, _ = again.train_command(record, {"dataset": "folder:my photos"})
    assert command == (
        "featcache finetune --network small-cnn --dataset 'folder:my photos' --lr 0.01 --patience 0 "
        "--limit 5 --val-fraction 0.2 --test"
    )
    record["params"] = {**record["params"], "from_run": "mlp-1"}
    assert again.train_command(record, {})[0] == (
        "featcache finetune --from-run mlp-1 --lr 0.01 --patience 0 --test"
    )
