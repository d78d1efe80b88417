"""Extraction against its limit and against what people use instead: python bench/extract.py --help.

Turn by turn in one process, so that a machine that slows down slows everything. Sections: `machine` (matrix
rate, copy bandwidth), `forward` (the backbone alone, every runtime and precision), `stages` (each step of an
extraction alone, on one core), `whole` (files to sealed cache, the share of the forward-only rate that it
reaches, the share that is possible with every core busy, the narrowest stage) and `peers`. Medians of the
rounds; ratios are medians of each round's. `goals`, run where it is asked for, says which of them the fastest
runtime of each precision meets: --only goals --images CIFAR --photos PHOTOS --backbone resnet18 vgg16, some$
ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import operator
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from peers import PEERS  # beside this file

from featcache.backbones.preprocess import Normalise, fit
from featcache.backbones.runtime import Extractor
from featcache.backbones.runtimes.catalogue import RUNTIMES
from featcache.backbones.runtimes.choose import checked
from featcache.extraction.extract import extract, open_job
from featcache.extraction.pipeline import default_batch_size
from featcache.extraction.request import Request, Settings
from featcache.extraction.resolve import Job
from featcache.images.catalogue import open_source
from featcache.images.cores import cores
from featcache.images.dataset import content_hash
from featcache.images.decode import decode
from featcache.progress import silent
from featcache.store import shard

SECTIONS = ("machine", "forward", "stages", "whole", "peers", "goals")
SHARE = {
    "files": 0.95,
    "photos": 0.90,
}  # of the forward-only rate, to be reached from files to shards
AGAINST = {"fp32": 1.8, "bf16": 3.5}  # times as fast as the plain script, at least


def seconds(function: Callable[[], object], least: float = 0.3) -> float:
    """Seconds of a call: the mean over as many as take `least`, after one to warm up."""
    function()
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < least:
        function()
        calls += 1
    return (time.perf_counter() - begin) / calls


def machine() -> None:
    n = 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        rate = 2 * n**3 / seconds(lambda a=a, b=b: a @ b)
        print(f"matrix product {dtype!s:<16}{rate / 1e9:>10.0f} GFLOP/s")
    source, target = torch.ones(1 << 26), torch.empty(1 << 26)
    rate = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    print(f"copy, read and written{'':<9}{rate / 1e9:>10.1f} GB/s")


def a_job(data: Path, backbone: str, weights: str, precision: str, folder: Path) -> Job:
    request = Request(f"folder:{data}", backbone, weights, precision=precision)
    return open_job(request, open_source(request.dataset, folder / "data"), silent)


def in_runtime(job: Job, runtime: str, sample: torch.Tensor) -> tuple[Extractor | None, str]:
    """The backbone in a runtime, or None and why not."""
    extractor = job.extractor("cpu")
    why = RUNTIMES[runtime].absent("cpu", extractor.precision)
    if why or runtime == "torch":
        return (None if why else extractor), why
    body, why = checked(runtime, extractor.work, sample)
    if body is not None:
        extractor.use(body)
    return (None if body is None else extractor), why


def contenders(
    data: Path, folder: Path, o: argparse.Namespace
) -> Iterator[tuple[str, str, str, Job, Extractor]]:
    """Every backbone, precision and runtime that can be had."""
    for backbone, precision in itertools.product(o.backbone, o.precision):
        job = a_job(data, backbone, o.weights, precision, folder)
        step = job.recipe.preprocess
        pixels = np.stack([fit(job.dataset.image(row), step) for row in range(min(8, len(job.dataset)))])
        sample = Normalise(step.mean, step.std, "cpu", torch.float32)(pixels)
        for runtime in o.runtime:
            extractor, why = in_runtime(job, runtime, sample)
            if extractor is None:
                print(f"{backbone:<14}{precision:<6}{runtime:<10} left out: {why}")
                continue
            yield backbone, precision, runtime, job, extractor


def forward(data: Path, folder: Path, o: argparse.Namespace) -> None:
    found = list(contenders(data, folder, o))
    rates: list[list[float]] = [[] for _ in found]
    for _ in range(o.rounds):
        for (*_, extractor), column in zip(found, rates, strict=True):
            column.append(extractor.forward_only_rate(default_batch_size(extractor), o.seconds))
    print(f"{'forward only':<32}{'images/s':>10}{'of torch fp32':>16}")
    first = {found[i][0]: rates[i] for i in reversed(range(len(found)))}
    for (backbone, precision, runtime, _, _), column in zip(found, rates, strict=True):
        ratio = statistics.median(a / b for a, b in zip(column, first[backbone], strict=True))
        print(f"{backbone:<14}{precision:<6}{runtime:<12}{statistics.median(column):>10.1f}{ratio:>15.2f}×")


def stages(job: Job) -> dict[str, float]:
    """Milliseconds of one core for an image in each stage but the forward pass."""
    torch.set_num_threads(1)
    rows = range(min(32, len(job.dataset)))
    step, columns = job.recipe.preprocess, job.extractor("cpu").columns
    raw = [job.dataset.raw(row) for row in rows]
    decoded = [decode(data) for data in raw]
    fitted = np.stack([fit(image, step) for image in decoded])
    normalise = Normalise(step.mean, step.std, "cpu", torch.float32)
    many = 1024
    features = {node: np.ones((many, width), np.float32) for node, width in columns.items()}
    stored = {node: rows_.astype(np.float16) for node, rows_ in features.items()}
    labels, numbers, status = np.zeros(many, np.int64), np.arange(many), np.zeros(many, np.uint8)
    image = shard.build(stored, labels, numbers, status)
    with tempfile.TemporaryDirectory() as name:
        steps: dict[str, tuple[Callable[[], object], int]] = {
            "read and hash": (lambda: [content_hash(job.dataset.raw(row)) for row in rows], len(rows)),
            "decode": (lambda: [decode(data) for data in raw], len(rows)),
            "resize and crop": (lambda: [fit(one, step) for one in decoded], len(rows)),
            "normalise": (lambda: normalise(fitted), len(rows)),
            "cast, finite": (
                lambda: [np.isfinite(x.astype(np.float16).sum(dtype=np.float64)) for x in features.values()],
                many,
            ),
            "shard build": (lambda: shard.build(stored, labels, numbers, status), many),
            "shard hash": (lambda: shard.hash_of(image), many),
            "shard write": (lambda: (Path(name) / "shard").write_bytes(image), many),
        }
        found = {what: seconds(call) / count * 1000 for what, (call, count) in steps.items()}
    torch.set_num_threads(cores())
    return found


def whole(data: Path, folder: Path, o: argparse.Namespace) -> None:
    print(f"{'files to sealed cache':<32}{'forward':>9}{'whole':>9}{'share':>8}{'possible':>10}  narrowest")
    for backbone, precision, runtime, job, extractor in contenders(data, folder, o):
        batch, parts = default_batch_size(extractor), stages(job)
        rows = []
        for _ in range(o.rounds):
            shutil.rmtree(folder / "features", ignore_errors=True)
            before = extractor.forward_only_rate(batch, o.seconds)
            found = extract(
                job.request, Settings(folder / "features", folder / "data", "cpu", runtime=runtime)
            )
            limit = (before + extractor.forward_only_rate(batch, o.seconds)) / 2
            rows.append((limit, found.images / found.extraction_seconds))
        share = statistics.median(b / a for a, b in rows)
        limit, rate = (statistics.median(column) for column in zip(*rows, strict=True))
        # With every core busy all the time, the other stages take their share of them.
        network = cores() * 1000 / limit
        possible = network / (network + sum(parts.values()))
        narrow = max({**parts, "forward": network}.items(), key=lambda item: item[1])[0]
        name = f"{backbone:<14}{precision:<6}{runtime:<12}"
        print(f"{name}{limit:>9.1f}{rate:>9.1f}{share:>8.2f}{possible:>10.2f}  {narrow}", flush=True)


def show_stages(data: Path, folder: Path, o: argparse.Namespace) -> None:
    for backbone in o.backbone:
        for what, cost in stages(a_job(data, backbone, o.weights, "fp32", folder)).items():
            print(f"{backbone:<14}{what:<18}{cost:>9.3f} ms of a core an image")


def peers(data: Path, folder: Path, o: argparse.Namespace) -> None:
    print(f"{'against peers':<32}{'images/s':>10}{'featcache is':>16}")
    for backbone in o.backbone:
        job = a_job(data, backbone, o.weights, "fp32", folder)
        squash = max(job.dataset.image(0).shape) < job.recipe.preprocess.crop
        state = job.network.state_dict()
        ours: list[float] = []
        theirs: dict[str, list[float]] = {name: [] for name in o.peers}
        for _ in range(o.rounds):
            shutil.rmtree(folder / "features", ignore_errors=True)
            settings = Settings(folder / "features", folder / "data", "cpu", runtime=o.runtime[-1])
            request = Request(job.request.dataset, backbone, o.weights, precision=o.precision[-1])
            found = extract(request, settings)
            ours.append(found.images / found.extraction_seconds)  # theirs have their networks ready too
            for name in list(theirs):
                try:
                    theirs[name].append(PEERS[name](backbone, data, state, squash))
                except Exception as error:  # whatever a peer cannot do is told
                    print(f"{backbone:<14}{name:<18} left out: {type(error).__name__}: {error}"[:150])
                    del theirs[name]
        what = f"featcache {o.precision[-1]} {o.runtime[-1]}"
        print(f"{backbone:<14}{what:<26}{statistics.median(ours):>8.1f}")
        for name, rates in theirs.items():
            ratio = statistics.median(a / b for a, b in zip(ours, rates, strict=True))
            print(f"{backbone:<14}{name:<26}{statistics.median(rates):>8.1f}{ratio:>15.2f}×", flush=True)


def goals(data: Path, folder: Path, o: argparse.Namespace) -> None:
    """Say which goals are met: the share of the forward-only rate, and the gain over the plain script."""
    sources = {"files": o.images or data} | ({"photos": o.photos} if o.photos else {})
    print(
        f"{'goals':<34}{'forward':>9}{'whole':>9}{'share':>7}{'goal':>6}{'':5}{'plain':>8}{'gain':>7}{'goal':>6}"
    )
    for kind, backbone in itertools.product(sources, o.backbone):
        script = None
        for precision in o.precision:
            job = a_job(data, backbone, o.weights, precision, folder)
            step = job.recipe.preprocess
            pixels = np.stack([fit(job.dataset.image(row), step) for row in range(8)])
            sample = Normalise(step.mean, step.std, "cpu", torch.float32)(pixels)
            made = [made for runtime in o.runtime if (made := in_runtime(job, runtime, sample)[0])]
            if not made:
                print(f"{kind:<8}{backbone:<14}{precision:<6} left out: no runtime for it")
                continue
            batch = default_batch_size(made[0])
            before, extractor = max(
                ((each.forward_only_rate(batch, o.seconds), each) for each in made),
                key=operator.itemgetter(0),
            )
            many = max(1, round(before * o.budget / (2 * batch))) * 2 * batch  # as many for either stream
            place = folder / f"{kind} {backbone} {precision}"
            small_copy(sources[kind], many, place)
            shutil.rmtree(folder / "features", ignore_errors=True)
            request = Request(f"folder:{place}", backbone, o.weights, precision=precision)
            settings = Settings(folder / "features", folder / "data", "cpu", runtime=extractor.runtime)
            found = extract(request, settings)
            limit = (before + extractor.forward_only_rate(batch, o.seconds)) / 2
            rate = found.images / found.extraction_seconds
            if script is None and "plain script" in o.peers:
                squash = max(job.dataset.image(0).shape) < step.crop and kind == "files"
                script = PEERS["plain script"](backbone, place, job.network.state_dict(), squash)
            line = f"{kind:<8}{backbone:<14}{precision:<6}{extractor.runtime:<6.6}{limit:>9.1f}{rate:>9.1f}"
            line += verdict(rate / limit, SHARE[kind], 2)
            line += (
                "" if script is None else f"{script:>8.1f}" + verdict(rate / script, AGAINST[precision], 1)
            )
            start = found.seconds - found.extraction_seconds
            print(f"{line}  {found.images} images, start-up {start:.1f} s", flush=True)


def verdict(reached: float, goal: float, digits: int) -> str:
    return f"{reached:>7.2f}{goal:>6.{digits}f} {'met' if reached >= goal else 'no':<4}"


def small_copy(source: Path, images: int, target: Path) -> Path:
    """Copy the first images of each class, or of a flat folder, over again where they do not suffice.

    A copy over again has its number after the image's end, where no decoder looks: equal files would be
    computed once.
    """
    root = source / "train" if (source / "train").is_dir() else source
    classes = sorted(path for path in root.iterdir() if path.is_dir()) or [root]
    for number, folder in enumerate(classes):
        place = target / "train" / (folder.name if folder != root else "all")
        place.mkdir(parents=True)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        for copy in range(images // len(classes) + (number < images % len(classes))):
            path = files[copy % len(files)]
            again = copy // len(files)
            data = path.read_bytes() + (again.to_bytes(4, "big") if again else b"")
            (place / f"{copy:06d}{path.suffix}").write_bytes(data)
    return target


def noise(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        target = folder / "train" / f"class {number % 10}"
        target.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target / f"{number:05d}.jpg")
    return folder


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of images or train/<class>/* [default: noise]")
    parser.add_argument("--photos", type=Path, help="a folder of photos, for the goals")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of each extraction for the goals")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS[:-1])
    parser.add_argument("--backbone", nargs="+", default=["resnet18"])
    parser.add_argument(
        "--runtime", nargs="+", choices=list(RUNTIMES), default=["torch", "native", "winograd", "openvino"]
    )
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--count", type=int, default=300, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each forward-only measurement")
    return parser.parse_args()


def main() -> None:
    o = options()
    names = ("torch", "torchvision", "h5py", "openvino")
    installed = {
        d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in names
    }
    print(f"{platform.processor() or platform.machine()}, {cores()} cores · {installed}")
    runs: dict[str, Callable[..., Any]] = {
        "forward": forward, "stages": show_stages, "whole": whole, "peers": peers,
        "goals": goals,
    }  # fmt: skip
    if "machine" in o.only:
        machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_copy(o.images or noise(folder / "noise", o.count), o.count, folder / "images")
        for section in SECTIONS[1:]:
            if section in o.only:
                runs[section](data, folder, o)


if __name__ == "__main__":
    main()
