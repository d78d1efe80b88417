"""What people use instead, on the same files: each embeds the training images of a folder with eager float32.

A peer returns images a second from files to features; weights are random, which changes no speed. One that is
not installed, or cannot be run without a network, is named with the reason.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

WORKERS = 2
BATCH = 64


def _images(root: Path) -> list[Path]:
    return sorted(path for path in (root / "train").rglob("*") if path.is_file())


def plain(backbone: str, root: Path, state: dict[str, torch.Tensor], squash: bool) -> float:
    """The script that everybody writes: ImageFolder, DataLoader, official transforms, append with gzip.

    Small images are squashed as featcache does it, or the script would do another thing.
    """
    network = torchvision.models.get_model(backbone, weights=None)
    network.load_state_dict(state, strict=False)
    body = _body(network.eval())
    fit: list[object] = [transforms.Resize((224, 224))]
    if not squash:
        fit = [transforms.Resize(256), transforms.CenterCrop(224)]
    norm = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    steps = transforms.Compose([*fit, transforms.ToTensor(), norm])
    begin = time.perf_counter()
    images = torchvision.datasets.ImageFolder(str(root / "train"), steps)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=WORKERS)
    with tempfile.TemporaryDirectory() as name, h5py.File(f"{name}/x.h5", "w") as file, torch.no_grad():
        for batch, _ in loader:
            rows = body(batch).numpy()
            if "features" not in file:
                file.create_dataset(
                    "features", (0, rows.shape[1]), "f4", maxshape=(None, rows.shape[1]), compression="gzip"
                )
            data = file["features"]
            data.resize(len(data) + len(rows), axis=0)
            data[-len(rows) :] = rows
    return len(images) / (time.perf_counter() - begin)


def _body(network: torch.nn.Module) -> torch.nn.Module:
    kind = type(network).__name__
    if kind == "VGG":
        return torch.nn.Sequential(network.features, network.avgpool, torch.nn.Flatten())
    if kind == "ResNet":
        return torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten())
    return torch.nn.Sequential(network.features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def img2vec(backbone: str, root: Path, state: dict[str, torch.Tensor], squash: bool) -> float:
    """img2vec_pytorch with a list of images at a time."""
    from img2vec_pytorch import Img2Vec

    with mock.patch("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: state):
        made = Img2Vec(cuda=False, model=backbone)
    paths = _images(root)
    begin = time.perf_counter()
    for first in range(0, len(paths), BATCH):
        made.get_vec([Image.open(path).convert("RGB") for path in paths[first : first + BATCH]])
    return len(paths) / (time.perf_counter() - begin)


def timm_script(backbone: str, root: Path, state: dict[str, torch.Tensor], squash: bool) -> float:
    """timm's own data set, transform and loader, as in its inference script."""
    import timm
    from timm.data import create_dataset, create_loader, resolve_data_config

    network = timm.create_model(backbone, pretrained=False, num_classes=0).eval()
    config = resolve_data_config({}, model=network)
    begin = time.perf_counter()
    images = create_dataset("", root=str(root / "train"))
    loader = create_loader(
        images,
        input_size=config["input_size"],
        batch_size=BATCH,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    with torch.inference_mode():
        rows = [network(batch).numpy() for batch, _ in loader]
    return len(np.concatenate(rows)) / (time.perf_counter() - begin)


def embetter(backbone: str, root: Path, state: dict[str, torch.Tensor], squash: bool) -> float:
    """embetter's image loader and timm encoder."""
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    create = timm.create_model
    with mock.patch("timm.create_model", lambda name, pretrained, **more: create(name, **more)):
        encoder = TimmEncoder(backbone)
    encoder.model.eval()
    paths = [str(path) for path in _images(root)]
    begin = time.perf_counter()
    rows = encoder.transform(ImageLoader().transform(paths))
    return len(rows) / (time.perf_counter() - begin)


def thingsvision(backbone: str, root: Path, state: dict[str, torch.Tensor], squash: bool) -> float:
    """thingsvision's extractor with its own data set and loader."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(model_name=backbone, source="torchvision", device="cpu", pretrained=False)
    begin = time.perf_counter()
    images = ImageDataset(
        root=str(root / "train"),
        out_path=None,
        backend=extractor.get_backend(),
        transforms=extractor.get_transformations(),
    )
    batches = DataLoader(dataset=images, batch_size=BATCH, backend=extractor.get_backend())
    rows = extractor.extract_features(batches, module_name="avgpool", flatten_acts=True)
    return len(rows) / (time.perf_counter() - begin)


PEERS: dict[str, Callable[[str, Path, dict[str, torch.Tensor], bool], float]] = {
    "plain script": plain,
    "img2vec_pytorch": img2vec,
    "timm": timm_script,
    "embetter": embetter,
    "thingsvision": thingsvision,
}
