"""Study files: read, refused, run in miniature, run again, and gone on with after a stop."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featcache import whole
from featcache.commands.json_keys import KEYS
from featcache.commands.root import run as command
from featcache.errors import FeatcacheError, OptionError
from featcache.finetuning.options import Finetuning, Place
from featcache.studies.file import Changes, changed, read_study
from featcache.studies.run import Watch, run_study
from featcache.training.runs import all_runs
from tests.kit_images import make_folder

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
SYSTEMS = {"study-a": 3, "study-b": 2, "study-c": 8, "study-d": 1, "study-e": 5,
           "few-shot": 1, "layers": 4, "backbones": 5}  # fmt: skip
needs_lightning = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("lightning") is None,
    reason="needs pip install 'featcache[finetune]'",
)


def _real() -> Path | None:
    """The folder of real images, where there is one; see `conftest.real_data`."""
    places = [os.environ.get("FEATCACHE_REAL"), Path(__file__).parents[2] / "shared" / "real"]
    return next((Path(p) for p in places if p and (Path(p) / "cifar10").is_dir()), None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen real images in three classes where there are any, else as many of noise."""
    target, real = tmp_path_factory.mktemp("data") / "photos", _real()
    if real is None:
        return make_folder(target, train=4, test=2)
    for split, count in (("train", 4), ("test", 2)):
        for folder in sorted((real / "cifar10" / split).iterdir())[:3]:
            (target / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, target / split / folder.name)
    return target


def _miniature(photos: Path) -> Changes:
    """Real weights where they are, else random ones; small and short."""
    weights, real = {"": "random:0"}, _real()
    if real is not None:
        weights["squeezenet1_0"] = str(real / "squeezenet1_0.safetensors")
    backbones = {"vgg16": "squeezenet1_0", "resnet34": "resnet18", "efficientnet_b0": "squeezenet1_1"}
    return Changes(f"folder:{photos}", None, weights, backbones, image_size=32, epochs=1)


@needs_lightning
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_study_runs_in_miniature_and_then_has_nothing_to_do(
    path: Path, photos: Path, tmp_path: Path
) -> None:
    study = changed(read_study(path), _miniature(photos))
    place = Place(tmp_path, tmp_path / "data", "cpu", keep_checkpoints=1)
    rows = run_study(study, place)
    assert len(rows) == SYSTEMS[path.stem] and not any(row.found for row in rows)
    there = {folder.name for folder in all_runs(tmp_path)}
    assert {row.record["run"] for row in rows} <= there
    for row in rows:
        ours = row.ours()
        assert 0 <= (ours["accuracy"] or 0.0) <= 1 and ours["fit_seconds"] is not None
    again = run_study(study, place)
    assert all(row.found for row in again) and [row.record["run"] for row in again] == [
        row.record["run"] for row in rows
    ]
    assert {folder.name for folder in all_runs(tmp_path)} == there


def test_the_examples_are_all_here() -> None:
    assert {path.stem for path in EXAMPLES} == set(SYSTEMS)


TINY = """
name = "tiny"
dataset = "folder:{photos}"

[[system]]
name = "frozen"
extract = {{ backbone = "pixels", image_size = 8 }}
head = {{ kind = "mlp", hidden = [5], epochs = 2 }}
study = {{ accuracy = 0.5, macro_f1 = 0.4 }}

[[system]]
name = "whole"
finetune = {{ network = "small-cnn", channels = 3, epochs = 3, patience = 9, batch_size = 4 }}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    photos = make_folder(tmp_path / "photos", train=5, test=2)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(photos=photos))
    return path


@needs_lightning
def test_the_command_shows_our_figures_beside_the_study_s(tiny: Path, tmp_path: Path, capfd: Any) -> None:
    arguments = ["study", str(tiny), "--features-dir", str(tmp_path / "features"), "--device", "cpu"]
    assert command([*arguments, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == set(KEYS["study"]) and found["changes"] == []
    assert all(set(row) == set(KEYS["a system of study"]) for row in found["systems"])
    frozen, network = found["systems"]
    assert frozen["study"] == {"accuracy": 0.5, "macro_f1": 0.4} and frozen["split"] == "test"
    assert network["ours"]["log_loss"] > 0 and not network["found"]
    assert command([*arguments, "--limit", "4"]) == 0
    out, err = capfd.readouterr()
    assert "accuracy (study)" in out and "(0.5000)" in out and "changed from the file: limit 4" in err


@needs_lightning
def test_a_study_that_was_stopped_goes_on_in_the_midst_of_a_network(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, place = read_study(tiny), Place(tmp_path / "features", device="cpu", keep_checkpoints=1)
    begun: list[str] = []
    real = whole.checkpoints.keep

    def stop(folder: Path, state: Any, last: int) -> None:
        real(folder, state, last)
        begun.append(folder.name)
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(whole.checkpoints, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, place)
    monkeypatch.setattr(whole.checkpoints, "keep", real)
    frozen, network = run_study(study, place)
    assert frozen.found and not network.found and network.record["run"] == begun[0]
    assert network.record["epochs"] == 3 and len(list(all_runs(place.features_dir))) == 2


TOP, ONE = 'name = "x"\ndataset = "d"\n', '[[system]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is no TOML"),
        ('name = "x"', "has no 'dataset'"),
        (TOP + "system = []", "has no system"),
        (TOP + "size = 3", "Unknown key 'size' in"),
        (TOP + ONE, "must have a name, and either extract and head"),
        (TOP + ONE + "extract = {}\nhead = {}", "has no kind"),
        (TOP + ONE + "finetune = { lr_ = 1 }", "Unknown key 'lr_'"),
        (TOP + ONE + 'finetune = {}\nfrom = "b"', "cannot start from 'b'"),
        (TOP + 2 * (ONE + "finetune = {}\n"), "two systems 'a'"),
        (TOP + ONE + "finetune = {}\nstudy = { f = 1 }", "Unknown key 'f'"),
    ],
)
def test_what_no_study_says_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        read_study(path)
    with pytest.raises(OptionError, match="Cannot read the study"):
        read_study(tmp_path / "nowhere.toml")


def test_a_wrong_option_of_extract_is_found_before_anything_is_done(tiny: Path, tmp_path: Path) -> None:
    study = read_study(tiny)
    wrong = replace(study.systems[0], name="b", extract={"backbone": "pixels", "imagesize": 3})
    with pytest.raises(FeatcacheError, match="imagesize"):
        run_study(replace(study, systems=(*study.systems, wrong)), Place(tmp_path / "f"), Watch())
    assert not (tmp_path / "f").exists()


def test_changes_leave_small_networks_and_what_is_from_scratch_alone() -> None:
    path = next(path for path in EXAMPLES if path.stem == "study-e")
    systems = changed(read_study(path), Changes(weights={"": "random:1"}, image_size=64, epochs=2)).systems
    by_name = {system.name: dict(system.finetune or {}) for system in systems}
    assert "weights" not in by_name["simplified ResNet"] and "image_size" not in by_name["simplified ResNet"]
    last = by_name["ResNet-18 fine-tuned, AutoAugment"]
    assert last["weights"] == "random:1" and last["image_size"] == 64 and last["epochs"] == 2
    assert Finetuning(**{**last, "hidden": tuple(last["hidden"]), "augment": tuple(last["augment"])})
