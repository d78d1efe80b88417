"""Extraction against its limit and against the plain script: python bench/extract.py --help.

In one process and turn by turn, so that a machine that slows down slows everything: the backbone's
forward pass alone on synthetic input (the limit), featcache from files to a sealed cache, and the plain
PyTorch script that people write (ImageFolder, DataLoader, official transforms, eager float32, h5py append
with gzip). Prints images a second, medians of the rounds, and the median of the per-round ratios.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import h5py
import torch
import torchvision
from torchvision import transforms

from featcache.extraction.extract import extract, open_job
from featcache.extraction.pipeline import cores, default_batch_size
from featcache.extraction.request import Request, Settings
from featcache.images.catalogue import open_source
from featcache.progress import silent


def ours(request: Request, folder: Path) -> float:
    found = extract(request, Settings(folder / "features", folder / "data"))
    return found.images / found.extraction_seconds


def plain(request: Request, folder: Path, state: dict[str, torch.Tensor], crop: int) -> float:
    """What people write by hand. It squashes small images as featcache does, or it would do more work."""
    network = torchvision.models.get_model(request.backbone, weights=None)
    network.load_state_dict(state, strict=False)
    network.eval()
    body = torch.nn.Sequential(network.features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    if request.backbone.startswith("vgg"):
        body = torch.nn.Sequential(network.features, network.avgpool, torch.nn.Flatten())
    steps = transforms.Compose(
        [
            transforms.Resize((crop, crop)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = torchvision.datasets.ImageFolder(request.dataset.partition(":")[2] + "/train", steps)
    loader = torch.utils.data.DataLoader(images, batch_size=64, num_workers=cores())
    begin = time.perf_counter()
    with h5py.File(folder / "plain.h5", "w") as file, torch.no_grad():
        for batch, _ in loader:
            rows = body(batch).numpy()
            if "features" not in file:
                shape = (0, rows.shape[1])
                file.create_dataset("features", shape, maxshape=(None, rows.shape[1]), compression="gzip")
            data = file["features"]
            data.resize(len(data) + len(rows), axis=0)
            data[-len(rows) :] = rows
    return len(images) / (time.perf_counter() - begin)


def small_copy(source: Path, images: int, target: Path) -> Path:
    """Copy the first images of each training class, so that every contender reads the same files."""
    classes = sorted(path for path in (source / "train").iterdir() if path.is_dir())
    for folder in classes:
        (target / "train" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[: max(1, images // len(classes))]:
            shutil.copy(path, target / "train" / folder.name)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, help="an image folder with train/<class>/* [default: made of noise]"
    )
    parser.add_argument("--backbone", nargs="+", default=["squeezenet1_0", "resnet18"])
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--count", type=int, default=300, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-plain", action="store_true")
    options = parser.parse_args()
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "h5py"))
    print(f"{platform.processor() or platform.machine()}, {cores()} cores · {versions}")
    print(
        f"{'':<24}{'forward only':>14}{'featcache':>12}{'plain script':>14}{'of limit':>10}{'vs plain':>10}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = options.images or _noise(folder / "noise", options.count)
        data = small_copy(source, options.count, folder / "images")
        for backbone in options.backbone:
            for precision in options.precision:
                _measure(backbone, precision, data, folder, options)


def _measure(backbone: str, precision: str, data: Path, folder: Path, options: argparse.Namespace) -> None:
    request = Request(f"folder:{data}", backbone, options.weights, precision=precision)
    settings = Settings(folder / "features", folder / "data")
    job = open_job(request, open_source(request.dataset, settings.data_dir), silent)
    extractor, state = job.extractor("auto"), job.network.state_dict()
    by_hand = not options.no_plain and backbone.startswith(("vgg", "squeezenet"))
    rows = []
    for _ in range(options.rounds):
        shutil.rmtree(folder / "features", ignore_errors=True)
        before = extractor.forward_only_rate(default_batch_size(extractor), 3)
        whole = ours(request, folder)
        after = extractor.forward_only_rate(default_batch_size(extractor), 3)
        peer = plain(request, folder, state, job.recipe.preprocess.crop) if by_hand else float("nan")
        rows.append(((before + after) / 2, whole, peer))
    limit, whole, peer = (statistics.median(column) for column in zip(*rows, strict=True))
    of_limit = statistics.median(row[1] / row[0] for row in rows)
    against = statistics.median(row[1] / row[2] for row in rows)
    name = f"{backbone} {precision}"
    print(f"{name:<24}{limit:>14.1f}{whole:>12.1f}{peer:>14.1f}{of_limit:>10.2f}{against:>10.2f}", flush=True)


def _noise(folder: Path, count: int) -> Path:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        target = folder / "train" / f"class {number % 10}"
        target.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target / f"{number:05d}.jpg")
    return folder


if __name__ == "__main__":
    main()
