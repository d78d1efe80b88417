"""Which weights a backbone gets: resolved to a full name, fetched, checked and loaded.

torchvision's builders are not used for loading, because they unpickle a cached file without `weights_only`
and do not check its hash again. Here the file's hash is checked at every load.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache import recipe
from featcache.backbones import catalogue, download, initial, pixels, statefile
from featcache.backbones.statefile import State
from featcache.errors import OptionError, WeightsError

NONE = "none"  # the recipe's name for the weights of a backbone that has none
FILE = "file"  # the recipe's name for weights from a path: their content's hash tells which
_RANDOM = re.compile(r"random:(\d{1,19})")
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
_SEEDS = 1 << 63
_NO_CLASSIFIER = "IMAGENET1K_FEATURES"
FEATURES_ONLY = f"Weights without a classifier ({_NO_CLASSIFIER}) serve only the layers before it."


@dataclass(frozen=True)
class Transform:
    """The preprocessing that weights were evaluated with; sizes in pixels, mean and std of values in 0..1."""

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class WeightsChoice:
    """Resolved weights, not loaded yet. `notes` gets sentences for the user while they are loaded."""

    name: str  # for the recipe: "ResNet18_Weights.IMAGENET1K_V1", "random:0", "file" or "none"
    transform: Transform
    path: Path | None = None  # where the file is, or will be
    url: str = ""  # of official weights
    sha256_prefix: str = ""  # what the whole file's sha256 must begin with
    seed: int | None = None
    image_size: int | None = None  # that a ViT is built for
    notes: list[str] = field(default_factory=list, compare=False)

    def files(self) -> list[Path]:
        """Return the files whose stat decides whether the weights may have changed; none for random ones."""
        return [] if self.path is None else [self.path]

    @property
    def on_disk(self) -> bool:
        """Whether loading needs no network."""
        return self.path is None or self.path.is_file()


def resolve(name: str, spec: str = "DEFAULT") -> WeightsChoice:
    """Resolve what `--weights` says: DEFAULT, an official name in full or short, random:SEED or a path.

    A path is what ends in .safetensors, .pth or .pt. Nothing is read or fetched.

    Raises:
        BackboneError: the backbone is unknown.
        OptionError: the weights are unknown; the hint lists those there are.
    """
    from torchvision.models import get_model_weights

    if catalogue.check_name(name) == pixels.NAME:
        return _no_weights(spec)
    official: Any = get_model_weights(name)
    default = _transform(official.DEFAULT)
    if spec.startswith("random:"):
        seed = _seed(spec)
        return WeightsChoice(f"random:{seed}", default, seed=seed)
    if spec.endswith(statefile.SUFFIXES):
        return WeightsChoice(FILE, default, path=Path(spec))
    known = {entry.name: entry for entry in official}
    short = spec.removeprefix(f"{official.__name__}.")
    if short != "DEFAULT" and short not in known:
        raise _unknown_weights(name, spec, official.__name__, list(known))
    return _official(official.DEFAULT if short == "DEFAULT" else known[short])


def _no_weights(spec: str) -> WeightsChoice:
    if spec not in ("DEFAULT", NONE):
        raise OptionError(f"The backbone {pixels.NAME} has no weights, got {spec!r}.", "Leave --weights out.")
    transform = Transform(pixels.SIZE, pixels.SIZE, "bilinear", pixels.MEAN, pixels.STD)
    return WeightsChoice(NONE, transform)


def _seed(spec: str) -> int:
    match = _RANDOM.fullmatch(spec)
    if match is None or int(match[1]) >= _SEEDS:
        raise OptionError(f"Cannot read the seed in --weights {spec!r}.", "Write a whole number: random:0.")
    return int(match[1])


def _official(entry: Any) -> WeightsChoice:
    file = entry.url.rpartition("/")[2]
    match = _HASH.search(file)
    if match is None:
        raise WeightsError(
            f"The address of {entry} has no hash to check the file by: {entry.url}.",
            "Download it yourself and give it with --weights PATH.",
        )
    return WeightsChoice(
        name=str(entry),
        transform=_transform(entry),
        path=Path(torch.hub.get_dir()) / "checkpoints" / file,
        url=entry.url,
        sha256_prefix=match[1],
        image_size=entry.meta["min_size"][0],
    )


def _transform(entry: Any) -> Transform:
    preset = entry.transforms()
    r, g, b = (float(value) for value in preset.mean)
    sr, sg, sb = (float(value) for value in preset.std)
    return Transform(
        preset.resize_size[0], preset.crop_size[0], preset.interpolation.value, (r, g, b), (sr, sg, sb)
    )


def _unknown_weights(name: str, spec: str, enum: str, known: list[str]) -> OptionError:
    close = difflib.get_close_matches(spec.rpartition(".")[2].upper(), known, n=2)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return OptionError(
        f"Unknown weights {spec!r} of {name}.",
        f"{meant}Known: DEFAULT, {', '.join(f'{enum}.{short}' for short in known)}, random:SEED, "
        "or a path ending in .safetensors, .pth or .pt.",
    )


def check_layers(choice: WeightsChoice, layers: Iterable[str]) -> None:
    """Refuse layers of a classifier that the weights do not have; nothing is read or fetched.

    torchvision's IMAGENET1K_FEATURES, of VGG16, have not-a-number for the whole classifier.

    Raises:
        WeightsError: a layer is in the classifier of such weights.
    """
    lost = [layer for layer in layers if layer.partition(".")[0] == "classifier"]
    if lost and choice.name.endswith(f".{_NO_CLASSIFIER}"):
        raise WeightsError(
            f"The weights {choice.name} have no classifier, which layer {lost[0]!r} needs.", FEATURES_ONLY
        )


def load(
    name: str, choice: WeightsChoice, progress: download.Progress | None = None
) -> tuple[State, recipe.Weights]:
    """Load weights, fetching official ones that are not on disk; return them checked, with their identity.

    The tensors have exactly the backbone's keys, shapes and dtypes and do not change with the file.
    `assemble` puts them into a network.

    Raises:
        WeightsError: they cannot be fetched or read, have the wrong hash, or do not fit the backbone.
    """
    if choice.name == NONE:
        state: State = {}
    elif choice.seed is not None:
        state = initial.random_network(name, choice.seed).state_dict()
    else:
        if choice.url:
            _provide(choice, progress)
        state = _from_file(name, choice)
    return state, recipe.Weights(choice.name, statefile.content_hash(state))


def _provide(choice: WeightsChoice, progress: download.Progress | None) -> None:
    """Make sure that the official file is on disk and is the official one."""
    path = choice.files()[0]
    if not path.is_file():
        download.fetch(choice.url, path, choice.sha256_prefix, progress)
        return
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(choice.sha256_prefix):
        raise WeightsError(
            f"{path} is not the official file of {choice.name}: its sha256 should begin with "
            f"{choice.sha256_prefix}, got {sha256[: len(choice.sha256_prefix)]}. The file was left as it is.",
            "It is likely a download that was cut off; delete it and run the same command again.",
        )


def _from_file(name: str, choice: WeightsChoice) -> State:
    path, note = choice.files()[0], choice.notes.append
    size = sum(tensor.nbytes for tensor in catalogue.skeleton(name).state_dict().values())
    state = statefile.read_state(path, size, note)
    image_size = choice.image_size or _image_size(state)
    skeleton = catalogue.skeleton(name, image_size)
    expected = skeleton.state_dict()
    try:
        return _versioned(statefile.conform(state, expected, path.name, note), skeleton)
    except WeightsError as error:
        error.hint = error.hint or _guess(name, path, state)
        raise


def network_of(
    made: recipe.Recipe, spec: str, what: str, progress: download.Progress | None = None
) -> nn.Module:
    """Return the backbone of a recipe, with the weights found at `spec`, in evaluation mode.

    Raises:
        WeightsError: they cannot be had, or are not those of the recipe; `what` says whose they should be.
    """
    state, identity = load(made.backbone, resolve(made.backbone, spec), progress)
    if identity.sha256 != made.weights.sha256:
        raise WeightsError(
            f"These are not the weights that the features of {what} were computed with: "
            f"expected content {made.weights.sha256[:12]}… ({made.weights.name}), "
            f"got {identity.sha256[:12]}… ({identity.name}).",
            "Say where the right ones are with --weights.",
        )
    return assemble(made.backbone, state)


def _image_size(state: State) -> int | None:
    """Return the size of images, in pixels, that a ViT's weights are for, told by its position embeddings."""
    positions, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return None
    side = math.isqrt(max(positions.shape[1] - 1, 1))
    return side * patches.shape[-1]


def _guess(name: str, path: Path, state: State) -> str:
    """Name the backbone whose tensors a file's are, among this one's relatives and the file's namesakes."""
    found = _shapes(state)
    for other in catalogue.names():
        if other[:3] in (name[:3], path.name[:3]) and found == _shapes(
            catalogue.skeleton(other).state_dict()
        ):
            return f"The tensors are those of {other}: use --backbone {other}."
    return "The weights are of another network, or of another variant of this one."


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(statefile.COUNTER)}


def assemble(name: str, state: State) -> nn.Module:
    """Build a backbone around loaded weights, in evaluation mode, without initialising or copying anything.

    `state` is what `load` returned.

    Raises:
        BackboneError: the backbone is unknown.
    """
    network = catalogue.skeleton(name, _image_size(state))
    network.load_state_dict(_versioned(state, network), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _versioned(state: State, network: nn.Module) -> OrderedDict[str, Tensor]:
    """Mark a state as of today's layout: MNASNet refuses, and ViTs rename, what says no version."""
    versioned: Any = OrderedDict(state)
    versioned._metadata = getattr(network.state_dict(), "_metadata", {})
    marked: OrderedDict[str, Tensor] = versioned
    return marked
