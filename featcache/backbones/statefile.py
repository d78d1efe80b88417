"""Weights files: read without running code from them, made to fit a network, and their content's hash."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featcache import limits
from featcache.errors import WeightsError

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt")
NESTED = ("state_dict", "model")  # where training scripts keep the weights in a checkpoint
COUNTER = "num_batches_tracked"  # batch norm's count of training steps; no feature depends on it
TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only training uses
SHOWN = 3
# A checkpoint may hold an optimiser's two moments and an average beside the weights, and no more.
UNPACKED_SPARE = 16 << 20  # bytes, beside `limits.WEIGHTS_TIMES`
_PLAIN = (torch.strided, torch.sparse_coo)  # the second is refused by name where tensors are compared

# Official files are older than the code: DenseNet's "norm.1" is "norm1" now, a ViT's "linear_1" is "0".
RENAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


def read_state(path: Path, network_bytes: int, note: Callable[[str], None]) -> State:
    """Read the tensors of a .safetensors, .pth or .pt file, as they are.

    Of a .pth only tensors and plain containers are accepted (`weights_only`): nothing in it is run.
    `note` is told what was taken when the file is a checkpoint with more in it than weights.

    Raises:
        WeightsError: the file is absent, damaged, of another kind, or far larger than `network_bytes`.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.", "Check the path given to --weights.")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"Cannot read weights from {path}: its name must end in {', '.join(SUFFIXES)}.")
    _check_size(path, network_bytes)
    content = _parse(path)
    if isinstance(content, Mapping):
        inner = next((key for key in NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is not None:
            note(f"{path.name} is a checkpoint: took the weights under {inner!r}.")
            content = content[inner]
    return _tensors(path, content)


def _check_size(path: Path, network_bytes: int) -> None:
    limit = limits.WEIGHTS_TIMES() * network_bytes + UNPACKED_SPARE
    size = path.stat().st_size
    try:
        if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # its entries may be compressed
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if size > limit:
        raise WeightsError(
            f"{path} unpacks to {size / 1e6:.1f} MB; this backbone's weights have {network_bytes / 1e6:.1f}.",
            "It is a file of another network, or no weights file.",
        )


def _parse(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            # Read, not mapped: the weights stay what they were hashed as, whatever happens to the file.
            return load(path.read_bytes())
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser handed a stranger's bytes may raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    text = str(error)
    if "legacy .tar format" in text:
        return WeightsError(
            f"{path} is in PyTorch's .tar format of 2016, which cannot be read without running code from it.",
            "If you trust it, save it anew: torch.save(torch.load(OLD, weights_only=False), NEW).",
        )
    if "weights_only" in text or "WeightsUnpickler" in text or "Unsupported" in text:
        return WeightsError(
            f"{path} holds more than tensors and is not loaded: it could run code on this machine.",
            "Save the weights alone: torch.save(network.state_dict(), NEW), or as .safetensors.",
        )
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return WeightsError(
        f"Cannot read weights from {path}: {reason}.",
        "The file is damaged or cut off, or no weights file; fetch it again.",
    )


def _tensors(path: Path, content: object) -> State:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{path} holds no weights by name but {type(content).__name__}.",
            "Save network.state_dict(), not the network itself.",
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{path} holds {type(value).__name__} under {str(key)!r} where a tensor was expected.",
                f"Save network.state_dict(), or put it under {NESTED[0]!r}.",
            )
        if value.is_nested or value.device.type != "cpu" or value.layout not in _PLAIN:
            raise WeightsError(
                f"{path} holds a tensor under {key!r} that is not stored number by number.",
                "Save network.state_dict() of a network on the CPU, with dense tensors.",
            )
    return dict(content)


def conform(state: State, expected: Mapping[str, Tensor], where: str, note: Callable[[str], None]) -> State:
    """Return the tensors of `state` under the keys of `expected`, in its shapes, dtypes and order.

    Taken as they are known to be harmless, and told to `note` where they are no official file's habit: a
    "module." before every key (DataParallel), float16, bfloat16 and float64 for float32. Heads that only
    training uses are left out; an absent num_batches_tracked is zero.

    Raises:
        WeightsError: keys are missing or unexpected, or shapes or dtypes differ.
    """
    state = _renamed(_without_module(state, note), expected)
    state = {k: v for k, v in state.items() if k in expected or not k.startswith(TRAINING_ONLY)}
    for key, tensor in expected.items():
        if key.endswith(COUNTER) and key not in state:
            state[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    _check_keys(state, expected, where)
    _check_shapes(state, expected, where)
    cast = sorted({_dtype(state[k]) for k, t in expected.items() if state[k].dtype != t.dtype})
    fitted = {key: _fitted(key, state[key], tensor, where) for key, tensor in expected.items()}
    if cast:
        note(f"{where} holds {' and '.join(cast)} values; they are computed with as float32.")
    return fitted


def _without_module(state: State, note: Callable[[str], None]) -> State:
    if not all(key.startswith("module.") for key in state):
        return state
    note('Every name begins with "module." (saved from DataParallel); it was left off.')
    return {key.removeprefix("module."): value for key, value in state.items()}


def _renamed(state: State, expected: Mapping[str, Tensor]) -> State:
    return {key if key in expected else _todays_name(key): value for key, value in state.items()}


def _todays_name(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _check_keys(state: State, expected: Mapping[str, Tensor], where: str) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if not missing and not unexpected:
        return
    found = [
        f"{len(keys)} {what} ({', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    raise WeightsError(
        f"{where} does not fit this backbone: {' and '.join(found)} of {len(expected)} tensors."
    )


def _check_shapes(state: State, expected: Mapping[str, Tensor], where: str) -> None:
    wrong = [key for key, tensor in expected.items() if state[key].shape != tensor.shape]
    if not wrong:
        return
    shown = "; ".join(
        f"{key} should be {tuple(expected[key].shape)}, got {tuple(state[key].shape)}"
        for key in wrong[:SHOWN]
    )
    more = f" (+{len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
    raise WeightsError(f"{where} does not fit this backbone: {shown}{more}.", _classes_hint(wrong, expected))


def _classes_hint(wrong: list[str], expected: Mapping[str, Tensor]) -> str:
    """Say what to do where only the classifier's size differs: a network fine-tuned on other classes."""
    heads = {key.rpartition(".")[0] for key in wrong}
    if len(heads) != 1 or any(expected[key].shape[0] != 1000 for key in wrong):
        return "The weights are of another network, or of another variant of this one."
    layer = heads.pop()
    return (
        f"Only {layer}, the classifier, differs: these weights are fine-tuned to other classes. "
        f"No feature needs it: give {layer}.weight and {layer}.bias of the official shape, any values, and "
        "save again."
    )


def _fitted(key: str, tensor: Tensor, like: Tensor, where: str) -> Tensor:
    floats = tensor.dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32)
    if (
        tensor.is_sparse
        or tensor.is_quantized
        or (tensor.dtype != like.dtype and not (floats and like.dtype == torch.float32))
    ):
        should, got = _dtype(like), _dtype(tensor)
        raise WeightsError(f"{where} does not fit this backbone: {key} should be {should}, got {got}.")
    return tensor.detach().to(like.dtype).contiguous()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def content_hash(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the tensors: names, dtypes, shapes and raw little-endian values, sorted by name.

    The same tensors give the same hash from whatever kind of file. `num_batches_tracked` is left out.
    """
    sha256 = hashlib.sha256()
    for key in sorted(key for key in state if not key.endswith(COUNTER)):
        array = state[key].detach().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        sha256.update(f"{key} {array.dtype.name} {array.shape}\n".encode())
        sha256.update(little.reshape(-1).view("uint8").data)
    return sha256.hexdigest()
