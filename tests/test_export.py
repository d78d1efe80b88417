"""One model of backbone and head: its answers are ours, in every format, for batches of any size."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featcache
from featcache.commands.root import run as command
from featcache.errors import FeatcacheError, HeadError, OptionError
from featcache.heads.layers import HeadLayers
from featcache.inference.export import FORMATS, export
from featcache.inference.predictor import Predictor
from tests.kit_heads import CASES, Case, blobs
from tests.kit_images import make_folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    photos = make_folder(root / "photos", train=6, test=3)
    cache = featcache.extract(
        f"folder:{photos}", backbone="resnet18", weights="random:0", image_size=40,
        features_dir=root / "features",
    )  # fmt: skip
    for kind in ("mlp", "knn"):
        featcache.train_head(cache, kind, val_fraction=0.25, features_dir=root / "features")
    return root / "features"


@pytest.fixture(scope="module")
def predictor(features: Path) -> Predictor:
    return featcache.predictor("mlp", features_dir=features)


def _numbers(path: Path, images: np.ndarray, network: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Put the numbers of a file into a network that has none."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for values in network.state_dict().values():
        values.fill_(7)
    network.load_state_dict(state)
    assert float(found["temperature"]) == network.head.temperature
    meta = {"classes": json.loads(found["classes"]), "recipe": json.loads(found["recipe"])}
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy(), {**meta, "input": found["input"]}


def _answer(path: Path, form: str, images: np.ndarray, network: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Run an exported file as a stranger would; one of numbers alone needs the network."""
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        found = dict(session.get_modelmeta().custom_metadata_map)
        meta = {"classes": json.loads(found["classes"]), "recipe": json.loads(found["recipe"])}
        meta["input"] = found["input"]
        return session.run(None, {"images": images})[0], meta
    if form == "safetensors":
        return _numbers(path, images, network)
    extra = {"featcache.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "torch-export":
            model: Any = torch.export.load(path, extra_files=extra).module()
        else:
            model = torch.jit.load(path, _extra_files=extra)
        return model(torch.from_numpy(images)).numpy(), json.loads(extra["featcache.json"])


@pytest.mark.parametrize("takes", ["normalized", "uint8"])
@pytest.mark.parametrize("form", FORMATS)
def test_its_answers_are_ours(predictor: Predictor, tmp_path: Path, form: str, takes: str) -> None:
    path = tmp_path / "model"
    written = export(predictor, path, form, takes)
    assert written["difference"] <= 1e-3
    pixels = np.random.default_rng(1).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    step = predictor.recipe.preprocess
    images: np.ndarray = pixels
    if takes == "normalized":
        scaled = (pixels.astype(np.float32) / 255 - np.float32(step.mean)) / np.float32(step.std)
        images = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    for some in (slice(0, 5), slice(2, 3)):  # other batches than the one it was traced with
        answer, meta = _answer(path, form, images[some], predictor.network(takes))
        np.testing.assert_allclose(answer, predictor.probabilities(pixels[some]), atol=2e-3)
    assert meta["classes"] == list(predictor.classes) and meta["recipe"] == predictor.recipe.to_dict()
    assert meta["input"] == ("uint8 (B, 40, 40, 3)" if takes == "uint8" else "float32 (B, 3, 40, 40)")


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("case", [case for case in CASES if case.kind not in ("dummy",)], ids=str)
def test_layers_of_a_head_are_the_head(case: Case, classes: int) -> None:
    X, y = blobs(classes=classes)
    head = case.head().fit(X, y)
    if (
        case.kind in ("knn", "tree", "forest", "boosting", "naive-bayes")
        or case.options.get("kernel", "linear") != "linear"
    ):
        with pytest.raises(HeadError, match="cannot be exported"):
            HeadLayers.of(head)
        return
    head.calibrate(*blobs(60, classes=classes, seed=1))
    answer = HeadLayers.of(head)(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(answer, head.predict_proba(X), atol=2e-5)


def test_nothing_is_written_where_the_answers_differ(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = predictor.network()
    wrong.head.temperature = 50.0
    monkeypatch.setattr(predictor, "network", lambda takes: wrong)
    with pytest.raises(FeatcacheError, match=r"differ by .* from ours"):
        export(predictor, tmp_path / "model.pt", "torchscript")
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_missing_libraries(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="Unknown format 'keras'"):
        export(predictor, tmp_path / "model", "keras")
    with pytest.raises(OptionError, match="Unknown input 'float'"):
        export(predictor, tmp_path / "model", "onnx", "float")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(OptionError, match="not installed: onnxscript") as error:
        export(predictor, tmp_path / "model")
    assert error.value.hint == "pip install 'featcache[onnx]'"


def test_the_command(features: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from featcache.commands.json_keys import KEYS

    base = ["export", "--features-dir", str(features), "--output", str(tmp_path / "model.pt")]
    capfd.readouterr()
    assert command([*base, "--run", "mlp", "--format", "torchscript", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == set(KEYS["export"])
    assert found["bytes"] == (tmp_path / "model.pt").stat().st_size
    assert command([*base, "--run", "knn", "--format", "torchscript"]) == 1
    assert "A head of kind knn cannot be exported" in capfd.readouterr().err
