"""New images: the same probabilities as cached ones, from files, folders and stdin."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import featcache
from featcache.commands.root import run as command
from featcache.errors import BadImageError, DatasetError, HeadError, RunError, WeightsError
from featcache.inference.files import image_files, load
from featcache.inference.predict import predict_files
from featcache.training import runs
from tests.kit_images import make_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Photos, a features folder with a cache of them, and a run on it."""
    root = tmp_path_factory.mktemp("predict")
    photos = make_folder(root / "photos", train=6, test=4)
    features = root / "features"
    cache = featcache.extract(
        f"folder:{photos}", backbone="squeezenet1_1", weights="random:0", image_size=64, features_dir=features
    )
    found = featcache.train_head(cache, "logreg", val_fraction=0.25, test=True, features_dir=features)
    return photos, features, str(found.record["run"])


def _stored(features: Path, run: str) -> tuple[list[str], np.ndarray]:
    folder = runs.find_run(features, run)
    arrays = runs.read_predictions(folder, runs.read_run(folder))
    ids = featcache.Cache(folder.parent.parent).plan.ids
    return [ids[row] for row in arrays["test/row"].tolist()], arrays["test/proba"]


def test_the_cache_s_own_images_get_the_run_s_own_predictions(trained: tuple[Path, Path, str]) -> None:
    photos, features, run = trained
    predictor = featcache.predictor(run, features_dir=features)
    ids, expected = _stored(features, run)
    got = predictor([(photos / name).read_bytes() for name in ids])
    # Another batch, so other roundings before the cast to float16.
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_files_and_arrays_are_the_same_to_it(trained: tuple[Path, Path, str]) -> None:
    from featcache.images.decode import decode

    photos, features, run = trained
    predictor = featcache.predictor(run, features_dir=features)
    data = next(photos.rglob("*.png")).read_bytes()
    assert np.array_equal(predictor([data]), predictor([decode(data)]))
    assert predictor([]).shape == (0, len(predictor.classes))
    with pytest.raises(BadImageError, match="not a JPEG"):
        predictor([b"no image"])


def test_files_come_back_in_order_with_their_classes(trained: tuple[Path, Path, str]) -> None:
    photos, features, run = trained
    predictor = featcache.predictor(run, features_dir=features)
    paths = list(image_files([str(photos / "test")]))
    assert paths == sorted(paths)
    found = list(predict_files(predictor, paths, top=2, batch_size=3, workers=2))
    assert [each.path for each in found] == paths
    proba = predictor([Path(path).read_bytes() for path in paths])
    for each, row in zip(found, proba, strict=True):
        assert [name for name, _ in each.top] == [predictor.classes[i] for i in np.argsort(-row)[:2]]
        assert each.top[0][1] == pytest.approx(row.max(), abs=1e-3)


def test_a_bad_file_stops_or_is_named(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    photos, features, run = trained
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    shutil.copy(next(photos.rglob("*.png")), good)
    bad.write_bytes(b"<html>")
    gone = tmp_path / "c.png"
    gone.symlink_to(tmp_path / "nowhere")
    predictor = featcache.predictor(run, features_dir=features)
    paths = [str(bad), str(good), str(gone)]
    with pytest.raises(DatasetError, match=r"Cannot read the image .*b\.png: not a JPEG"):
        list(predict_files(predictor, paths))
    first, second, third = predict_files(predictor, paths, skip_bad=True)
    assert not first.top and "not a JPEG" in first.error
    assert second.top and not second.error
    assert third.error == "the file has vanished"


def test_only_a_few_batches_are_in_memory_at_once() -> None:
    read = []

    def paths():  # type: ignore[no-untyped-def]
        for number in range(1000):
            read.append(number)
            yield f"/nowhere/{number}"

    batches = load(paths(), lambda path: np.zeros((1, 1, 3), np.uint8), batch_size=10, workers=1)
    first = next(batches)
    assert len(first.paths) == 10 and first.pixels is not None and len(first.pixels) == 10
    assert len(read) <= 50
    batches.close()  # type: ignore[attr-defined]


def test_places_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"There is no image or folder '.*nowhere'"):
        list(image_files([str(tmp_path / "nowhere")]))
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / ".hidden.png").write_text("none")
    with pytest.raises(DatasetError, match="There is no image in the folder"):
        list(image_files([str(tmp_path)]))


def test_other_weights_are_refused(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, features, run = trained
    with pytest.raises(WeightsError, match=r"not the weights that the features of .* were computed with"):
        featcache.predictor(run, weights="random:1", features_dir=features)
    state = torch.nn.Module.state_dict(_squeezenet())
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"got .*\(file\)"):
        featcache.predictor(run, weights=tmp_path / "other.pth", features_dir=features)


def _squeezenet() -> torch.nn.Module:
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return squeezenet1_1(weights=None)


def test_a_head_of_other_features_is_refused(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    photos, features, run = trained
    moved = tmp_path / "features"
    other = featcache.extract(
        f"folder:{photos}", backbone="squeezenet1_1", weights="random:3", image_size=64, features_dir=moved
    )
    folder = runs.find_run(features, run)
    shutil.copytree(folder, other.path / "heads" / run)
    with pytest.raises(HeadError, match="This head was trained on other features; fingerprint"):
        featcache.predictor(run, features_dir=moved)
    with pytest.raises(RunError, match="No run 'mlp-00000000'"):
        featcache.predictor("mlp-00000000", features_dir=moved)


def test_the_cache_s_features_are_not_needed(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    photos, features, run = trained
    folder = runs.find_run(features, run)
    alone = tmp_path / folder.parent.parent.name
    shutil.copytree(folder, alone / "heads" / run)
    shutil.copy(folder.parent.parent / "recipe.json", alone)
    data = [path.read_bytes() for path in sorted(photos.rglob("*.png"))[:3]]
    here, there = (featcache.predictor(run, features_dir=where) for where in (features, tmp_path))
    assert np.array_equal(here(data), there(data))


def test_the_command_prints_lines_csv_and_json(
    trained: tuple[Path, Path, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, features, run = trained
    test, base = str(photos / "test"), ["predict", "--run", run, "--features-dir", str(features)]
    capfd.readouterr()
    assert command([*base, test]) == 0
    out, err = capfd.readouterr()
    paths = list(image_files([test]))
    lines = out.splitlines()
    assert len(lines) == len(paths)
    assert all(line.endswith(f"  {path}") for line, path in zip(lines, paths, strict=True))
    assert f"{len(paths)} images in" in err and "images/s" in err

    assert command([*base, test, "--csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["path"] for row in rows] == paths
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"]) and not rows[0]["error"]

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{paths[1]}\n\n{paths[0]}\n"))
    assert command([*base, "-", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["images"] == 2 and [each["path"] for each in found["predictions"]] == [paths[1], paths[0]]
    assert found["predictions"][0]["class"] == rows[1]["class"] and found["run"] == run
    from featcache.commands.json_keys import KEYS

    assert set(found) == set(KEYS["predict"])


def test_the_command_names_bad_images(
    trained: tuple[Path, Path, str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, features, run = trained
    (tmp_path / "bad.png").write_bytes(b"")
    base = ["predict", "--run", run, "--features-dir", str(features), str(tmp_path / "bad.png")]
    capfd.readouterr()
    assert command(base) == 1
    assert "Cannot read the image" in capfd.readouterr().err
    assert command([*base, "--on-bad-image", "skip"]) == 0
    out, err = capfd.readouterr()
    assert not out and "bad.png: the file is empty" in err and "1 could not be read" in err
    assert command([*base, "--csv", "--json"]) == 2


def test_a_head_on_rows_in_int8_predicts_too(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    photos, features, run = trained
    cache = featcache.extract(
        f"folder:{photos}", backbone="squeezenet1_1", weights="random:0", image_size=64,
        store_dtype="int8", features_dir=tmp_path,
    )  # fmt: skip
    found = featcache.train_head(cache, "logreg", val_fraction=0.25, features_dir=tmp_path).record["run"]
    data = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    ours, theirs = (
        featcache.predictor(found, features_dir=tmp_path),
        featcache.predictor(run, features_dir=features),
    )
    assert np.mean(ours(data).argmax(axis=1) == theirs(data).argmax(axis=1)) > 0.9
