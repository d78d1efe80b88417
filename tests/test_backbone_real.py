"""The real SqueezeNet on real photos, against the plain way of doing it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0

from featcache.backbones import catalogue, weights
from featcache.backbones.preprocess import fit, resolve_preprocess
from featcache.backbones.runtime import Extractor
from featcache.recipe import Node

pytestmark = pytest.mark.real
NAME = "squeezenet1_0"
PHOTOS = 60


def photos(real_data: Path) -> list[Path]:
    return sorted((real_data / "imagenet-photos-200").rglob("*.JPEG"))[:PHOTOS]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_one_content_hash_for_both_files(real_data: Path) -> None:
    hashes = {
        weights.load(NAME, weights.resolve(NAME, str(real_data / f"{NAME}{suffix}")))[1]
        for suffix in (".pth", ".safetensors")
    }
    assert len(hashes) == 1


def test_features_and_predictions_are_those_of_the_plain_way(real_data: Path) -> None:
    """PIL, the official transform, torchvision's network, float32, one image at a time."""
    path = real_data / f"{NAME}.safetensors"
    choice = weights.resolve(NAME, str(path))
    state, _ = weights.load(NAME, choice)
    network = weights.assemble(NAME, state)
    nodes = (*catalogue.resolve_nodes(NAME, network), Node("classifier.3", "flatten"))
    step = resolve_preprocess(choice, "weights")
    extractor = Extractor(network, nodes, step)
    plain = squeezenet1_0(weights=None)
    plain.load_state_dict(torch.load(real_data / f"{NAME}.pth", weights_only=True))
    plain.eval()
    transform, names = (
        SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms(),
        SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"],
    )
    images = [pixels(photo) for photo in photos(real_data)]
    ours = extractor(np.stack([fit(image, step) for image in images]))
    right = 0
    for row, (photo, image) in enumerate(zip(photos(real_data), images, strict=True)):
        with torch.no_grad():
            wanted = plain.features(transform(Image.fromarray(image))[None]).mean((2, 3))[0].double()
        got = torch.from_numpy(ours[nodes[0].name][row]).double()
        assert torch.nn.functional.cosine_similarity(wanted, got, dim=0) >= 0.999999, photo.name
        guess = names[int(ours["classifier.3"][row].argmax())]
        right += guess.lower().replace(" ", "_") == photo.stem.partition("_")[2].lower()
    assert right >= 0.5 * PHOTOS
