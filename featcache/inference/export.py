"""Backbone and head of a run as one file for other programs: ONNX, torch.export, TorchScript, safetensors."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache import atomic
from featcache.errors import FeatcacheError, OptionError, unknown
from featcache.inference.network import INPUTS, Whole
from featcache.inference.predictor import Predictor

FORMATS = ("onnx", "torch-export", "torchscript", "safetensors")
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".pt", "safetensors": ".safetensors"}
TOLERANCE = 1e-3  # of a probability, between the file's answers and our own
_EXTRA = "pip install 'featcache[onnx]'"


def export(predictor: Predictor, path: Path, form: str = "onnx", takes: str = "normalized") -> dict[str, Any]:
    """Write backbone and head as one file, and check the file's answers against our own before.

    The batch is of any size. Resizing and cropping are not part of the file: its metadata describe them,
    beside the class names, the recipe, and what the input is. Nothing is written where the check fails. In
    the format safetensors the file holds the numbers alone, `body.…` of the backbone with its batch norms
    folded and `head.…`, for programs that have the layers.

    Args:
        predictor: the run's backbone and head, on the CPU and in float32.
        path: the file; one that is there is replaced.
        form: one of `FORMATS`.
        takes: "normalized" float32 (B, 3, S, S), or "uint8" (B, S, S, 3) with the scaling in the file.

    Returns:
        The metadata, and `difference`, the largest difference of a probability in the check.

    Raises:
        OptionError: form or input is unknown, or the libraries for ONNX are not installed.
        HeadError: the head is of a kind that is not exported.
        FeatcacheError: the file's answers differ from ours.
        SpaceError, CacheError: the file cannot be written.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if takes not in INPUTS:
        raise unknown("input", takes, INPUTS)
    whole = predictor.network(takes).eval()
    size = predictor.recipe.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    given = _given(predictor, pixels, takes)
    metadata = _metadata(predictor, form, takes)
    data, answer = _WRITERS[form](whole, given, metadata)
    difference = float(np.abs(answer(given.numpy()) - predictor.probabilities(pixels)).max())
    if not difference <= TOLERANCE:
        raise FeatcacheError(
            f"The exported model's probabilities differ by {difference:.2g} from ours, "
            f"expected at most {TOLERANCE:g}; nothing was written.",
            "Try another --format, and tell us about it.",
        )
    atomic.write(path, data)
    return {**metadata, "difference": difference}


def _given(predictor: Predictor, pixels: NDArray[np.uint8], takes: str) -> torch.Tensor:
    if takes == "uint8":
        return torch.from_numpy(pixels)
    step = predictor.recipe.preprocess
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (step.mean, step.std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255 - mean) / std


def _metadata(predictor: Predictor, form: str, takes: str) -> dict[str, Any]:
    step, size = predictor.recipe.preprocess, predictor.recipe.preprocess.crop
    shape = f"uint8 (B, {size}, {size}, 3)" if takes == "uint8" else f"float32 (B, 3, {size}, {size})"
    return {
        "format": form,
        "input": shape,
        "output": f"probabilities float32 (B, {len(predictor.classes)})",
        "classes": list(predictor.classes),
        "preprocess": asdict(step),
        "recipe": predictor.recipe.to_dict(),
        "node": predictor.node,
    }


_Answer = Callable[[NDArray[Any]], NDArray[Any]]


def _onnx(whole: Whole, given: torch.Tensor, metadata: dict[str, Any]) -> tuple[bytes, _Answer]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch writes ONNX with
    except ImportError as error:
        raise OptionError(
            f"Writing ONNX needs a library that is not installed: {error.name}.", _EXTRA
        ) from error
    with _quiet():
        program = torch.onnx.export(
            whole,
            (given,),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    model = program.model_proto  # type: ignore[union-attr]
    for name, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda images: np.asarray(session.run(None, {"images": images})[0])


def _torch_export(whole: Whole, given: torch.Tensor, metadata: dict[str, Any]) -> tuple[bytes, _Answer]:
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.export.export(whole, (given,), dynamic_shapes={"images": {0: batch}})
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"featcache.json": json.dumps(metadata)})
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), lambda images: loaded(torch.from_numpy(images)).numpy()


def _torchscript(whole: Whole, given: torch.Tensor, metadata: dict[str, Any]) -> tuple[bytes, _Answer]:
    with _quiet(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(whole, (given,), strict=False))
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={"featcache.json": json.dumps(metadata).encode()})
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    return buffer.getvalue(), lambda images: loaded(torch.from_numpy(images)).numpy()


def _safetensors(whole: Whole, given: torch.Tensor, metadata: dict[str, Any]) -> tuple[bytes, _Answer]:
    from safetensors.torch import load, save

    tensors = {name: values.detach().clone().contiguous() for name, values in whole.state_dict().items()}
    metadata = {**metadata, "temperature": whole.head.temperature}  # what the scores are divided by
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    data = save(tensors, said)
    again = copy.deepcopy(whole)
    for values in again.state_dict().values():
        values.fill_(float("nan") if values.is_floating_point() else 0)
    again.load_state_dict(load(data))
    return data, lambda images: again(torch.from_numpy(images)).detach().numpy()


_WRITERS = {
    "onnx": _onnx,
    "torch-export": _torch_export,
    "torchscript": _torchscript,
    "safetensors": _safetensors,
}


class _quiet(warnings.catch_warnings):
    """Holds back what the exporters say about themselves: none of it is about the user's model."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
