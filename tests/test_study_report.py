"""A study's own figures: refused where they cannot be, remembered, and shown beside ours in every form."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from featcache import figures
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run as command
from featcache.errors import OptionError, RunError
from featcache.store.litter import litter
from featcache.studies.file import read_study
from featcache.studies.memory import STUDIES, recall
from featcache.studies.subject import subject_of
from featcache.training.runs import all_runs
from tests.kit_images import make_folder
from tests.kit_reports import drawn

EXAMPLES = Path(__file__).parents[1] / "examples"
STUDY = """
name = "Two heads"
about = "Photos of noise, <b>not</b> of things."
dataset = "folder:{photos}"

[[system]]
name = "ridge on pixels"
extract = {{ backbone = "pixels", image_size = 8 }}
head = {{ kind = "ridge" }}
study = {{ accuracy = 0.5370, fit_seconds = 39, gpu_gb = 0.02, worst_class = "shirt" }}

[[system]]
name = "five neighbours"
extract = {{ backbone = "pixels", image_size = 8 }}
head = {{ kind = "knn", k = 3 }}

[[system]]
name = "a few epochs"
extract = {{ backbone = "pixels", image_size = 8 }}
head = {{ kind = "mlp", hidden = [4], epochs = 2 }}
study = {{ accuracy = 0.4893, val_log_loss = 1.3592, best_epoch = 16, epoch_seconds = 3000 }}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study's file and, in features, what it came to."""
    folder = tmp_path_factory.mktemp("study")
    photos = make_folder(folder / "photos", train=8, test=4)
    (folder / "two.toml").write_text(STUDY.format(photos=photos))
    assert command(["study", str(folder / "two.toml"), "--features-dir", str(folder / "features")]) == 0
    return folder


@pytest.fixture
def there(done: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed."""
    return Path(shutil.copytree(done, tmp_path / "study"))


def _report(capfd: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = command(
        ["report", str(folder / "two.toml"), *arguments, "--features-dir", str(folder / "features")]
    )
    return code, *capfd.readouterr()


def test_text_and_markdown_show_a_study_s_figures_beside_ours(
    done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _report(capfd, done, "--text")
    assert code == 0 and "ridge on pixels" in out and "beside the study's own figures" in out
    (line,) = (line for line in out.splitlines() if "ridge on pixels" in line and "study" in line)
    for shown in ("(study 53.70 %)", "(study 39.0 s)", "unknown (study 0.02)", "(study shirt)"):
        assert shown in line
    assert "(study 1.359)" in out and "(study 50 min 0 s)" in out and "no measure" not in err
    code, out, _ = _report(capfd, done, "--markdown")
    assert code == 0 and "**Beside the study's own figures**" in out and "(study 48.93 %)" in out


def test_json_and_csv_hold_them(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _report(capfd, done, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0 and set(found) == set(KEYS["report"])
    assert found["study"] == {"name": "Two heads", "notes": []}
    by_name = {line["label"]: line for group in found["groups"] for line in group["runs"]}
    assert set(by_name) == {"ridge on pixels", "five neighbours", "a few epochs"}
    assert by_name["ridge on pixels"]["reported"]["fit_seconds"] == 39
    assert by_name["five neighbours"]["reported"] == {}
    lines = list(csv.DictReader(io.StringIO(_report(capfd, done, "--csv")[1])))
    told = {line["label"]: (line["reported_accuracy"], line["reported_worst_class"]) for line in lines}
    assert told["ridge on pixels"] == ("0.537", "shirt") and told["five neighbours"] == ("", "")


@drawn
def test_the_page_is_named_after_the_study_and_escapes_its_text(
    done: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = _report(capfd, done, "--out", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert code == 0 and "page: " in out and "<h1>Two heads</h1>" in page
    assert "&lt;b&gt;not&lt;/b&gt;" in page and "<b>not" not in page
    assert "Beside the study&#39;s own figures" in page and "study 53.70 %" in page.replace("\u00a0", " ")
    alone = next(all_runs(done / "features")).name
    features = ["--features-dir", str(done / "features")]
    assert command(["report", alone, "--out", str(tmp_path / "o.html"), *features]) == 0
    assert "own figures" not in (tmp_path / "o.html").read_text()


def test_the_command_tells_figures_of_time_and_memory_too(
    done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    arguments = ["study", str(done / "two.toml"), "--features-dir", str(done / "features")]
    assert command(arguments) == 0
    out, err = capfd.readouterr()
    for shown in ("accuracy (study)", "(0.5370)", "(39.0 s)", "- (0.02 GB)", "(50 min 0 s)", "(shirt)"):
        assert shown in out, shown
    assert "next: featcache report" in err
    assert command([*arguments, "--system", "five neighbours", "--json"]) == 0
    (system,) = json.loads(capfd.readouterr().out)["systems"]
    assert system["system"] == "five neighbours" and set(system["ours"]) == set(figures.FIGURES)
    assert all(name in KEYS["a system of study"]["ours"] for name in figures.FIGURES)
    assert command([*arguments, "--system", "nothing"]) == 1
    assert "five neighbours" in capfd.readouterr().err


def test_what_was_changed_is_said_and_what_was_not_run_is_left_out(
    there: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features = ["--features-dir", str(there / "features")]
    assert command(["study", str(there / "two.toml"), "--limit", "6", *features]) == 0
    _, _, err = _report(capfd, there, "--text")
    assert "Changed from the study's file: limit 6" in err
    text = (there / "two.toml").read_text().replace("k = 3", "k = 5")
    (there / "two.toml").write_text(text + '\n[[system]]\nname = "new"\nfinetune = {}\n')
    _, out, err = _report(capfd, there, "--text")
    assert "five neighbours: the file says it another way than when it was run" in err
    assert "new: not run yet" in err and "five neighbours" not in out and "ridge on pixels" in out


def test_other_figures_of_the_study_need_no_new_run(there: Path) -> None:
    path = there / "two.toml"
    path.write_text(path.read_text().replace("0.5370", "0.6"))
    subject, folders = subject_of(there / "features", path)
    assert len(folders) == 3 and subject.missing == ()
    assert 0.6 in {told.figures.get("accuracy") for told in subject.runs.values()}


def test_a_study_that_was_never_run_or_whose_runs_are_gone_says_what_to_do(
    there: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="ridge on pixels: not run yet"):
        recall(tmp_path / "empty", read_study(there / "two.toml"))
    ridge = next(path for path in all_runs(there / "features") if path.name.startswith("ridge"))
    shutil.rmtree(ridge)
    _, _, err = _report(capfd, there, "--text")
    assert f"ridge on pixels: its run {ridge.name} is gone" in err
    for path in all_runs(there / "features"):
        shutil.rmtree(path)
    code, out, err = _report(capfd, there, "--text")
    assert code == 1 and out == "" and "The runs of 'Two heads' are gone" in err
    (kept,) = (there / "features" / ".featcache" / STUDIES).iterdir()
    kept.write_text("{")  # what is remembered is no truth: damaged, it is as if it were not there
    assert "not run yet" in _report(capfd, there, "--text")[2]
    assert command(["study", str(there / "two.toml"), "--features-dir", str(there / "features")]) == 0
    assert _report(capfd, there, "--text")[0] == 0
    assert not any(STUDIES in item.path.parts for item in litter(there / "features", rest=-10))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("accuracy = 85.95", "a number from 0 to 1"),
        ("accuracy = true", "a number from 0 to 1"),
        ("log_loss = nan", "a number of at least 0"),
        ("fit_seconds = -1", "a number of at least 0"),
        ('gpu_gb = "7.8"', "a number of at least 0"),
        ("best_epoch = 1.5", "a whole number"),
        ("worst_class = 3", "a name"),
    ],
)
def test_figures_that_cannot_be_are_refused(given: str, expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        figures.checked(tomllib.loads(given), "here")


def test_every_figure_that_survives_of_the_five_studies_is_in_its_file() -> None:
    told = {
        path.stem: [s.figures for s in read_study(path).systems] for path in EXAMPLES.glob("study-?.toml")
    }
    assert {stem: len(systems) for stem, systems in told.items()} == {
        "study-a": 3, "study-b": 2, "study-c": 8, "study-d": 1, "study-e": 5
    }  # fmt: skip
    assert [each["accuracy"] for each in told["study-a"]] == [0.5370, 0.8595, 0.7918]
    assert [each.get("best_epoch") for each in told["study-a"]] == [16, 34, None]
    assert [each["log_loss"] for each in told["study-b"]] == [1.4746, 0.8328]
    assert [each["fit_seconds"] for each in told["study-c"]] == [39, 94, 311, 590, 626, 3669, 1281, 1277]
    assert all(each["worst_class"] == "shirt" for each in told["study-c"])
    assert told["study-d"] == [{}]
    assert [each["macro_f1"] for each in told["study-e"]] == [0.8034, 0.8726, 0.7556, 0.8425, 0.9710]
