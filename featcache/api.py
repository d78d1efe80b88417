"""The Python interface: the same powers as the command line, in one call each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.extraction import extract as extraction
from featcache.extraction.request import Request, Settings, augmentation
from featcache.progress import Progress, silent
from featcache.store.cache import Cache
from featcache.store.folders import find_cache
from featcache.training import compare as comparison
from featcache.training import evaluate as evaluation
from featcache.training import fit, runs
from featcache.training import sweep as sweeping
from featcache.training.grid import Range
from featcache.training.subsets import sizes_of

if TYPE_CHECKING:
    from featcache.inference.predictor import Predictor

PathLike = str | os.PathLike[str]


def extract(
    dataset: str = "cifar10",
    *,
    backbone: str = "vgg16",
    weights: PathLike = "DEFAULT",
    layers: str | Sequence[str] = (),
    pool: str | None = None,
    preprocess: str = "auto",
    image_size: int | None = None,
    normalize: str = "weights",
    precision: str = "fp32",
    store_dtype: str = "float16",
    limit: int | None = None,
    max_pixels: int = 50_000_000,
    views: int = 1,
    augment: PathLike | None = None,
    view_seed: int = 0,
    views_of: str = "train",
    device: str = "auto",
    runtime: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    on_bad_image: str = "error",
    decode_in: str = "auto",
    data_dir: PathLike = "data",
    features_dir: PathLike = "features",
    progress: Progress = silent,
    notify: Callable[[str], None] = lambda text: None,
) -> Cache:
    """Run a frozen backbone over a data set once; return the finished cache, at once where there is one.

    Args:
        dataset: a known name ("cifar10", "digits", …), "folder:DIR" or "csv:FILE".
        backbone: any torchvision classification model, or "pixels".
        weights: "DEFAULT", a torchvision name, "random:SEED" or a path to .safetensors or .pth.
        layers: the node or nodes to read, the backbone's own default where empty.
        pool: how a map becomes a row: "flatten", "avg", "max", "gem" or "avg:S".
        preprocess: "auto", "weights" or "squash".
        image_size: input size in pixels, the weights' own where None.
        normalize: "weights", "imagenet", "half", "dataset" or "none".
        precision: "fp32", "bf16" or "fp16".
        store_dtype: "float16", "float32" or "int8".
        limit: only the first so many images of each class and split.
        max_pixels: larger images are not decoded.
        views: of each image; view 0 is the image itself, the others are augmented.
        augment: how views are made: "flip", "crop", "jitter", "autoaugment", "randaugment", "trivialaugment",
            or a .toml or .json file of steps; needed for views.
        view_seed: of what views draw.
        views_of: "train", or "all" for views of validation and test images too.
        device: "auto", "cpu", "cuda" or "cuda:N".
        runtime: "auto", "torch", "compile" or "openvino": what runs the backbone; its features are the same.
        batch_size: images a forward pass, chosen for the device where None.
        workers: threads that decode, one for each core where None.
        on_bad_image: "error" or "skip".
        decode_in: "threads", "processes", where a decoder may die or hang, or "auto": processes where bad
            images are skipped, there are many for a GPU, or a run has died.
        data_dir: where downloaded data sets are.
        features_dir: where caches are.
        progress: told what is being done, how far it is, and how much there is.
        notify: told sentences worth knowing, such as why no cache was hit.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    nodes = (layers,) if isinstance(layers, str) else tuple(layers)
    request = Request(
        dataset, backbone, os.fspath(weights), nodes, pool, preprocess, image_size, normalize, precision,
        store_dtype, limit, max_pixels,
        views=views, augment=augmentation(augment), view_seed=view_seed, views_of=views_of,
    )  # fmt: skip
    settings = Settings(
        Path(features_dir), Path(data_dir), device, batch_size, workers, on_bad_image, runtime=runtime,
        decode_in=decode_in,
    )  # fmt: skip
    return Cache(extraction.extract(request, settings, progress, notify).path)


def train_head(
    cache: Cache | str,
    head: str = "mlp",
    *,
    node: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 42,
    split_mode: str = "random",
    test: bool = False,
    calibrate: bool = False,
    memory_budget: int | None = None,
    view_mode: str | None = None,
    test_views: bool = False,
    features_dir: PathLike = "features",
    **params: Any,
) -> fit.Trained:
    """Train a head on a cache, store the run, and return it: `.record` (metrics, timings) and `.head`.

    `params` are the head's own options, e.g. `hidden=(50, 20), lr=1e-3` (`featcache train-head --help`).
    `memory_budget` is how many bytes of the features may be in memory at once. `view_mode` says what is made
    of augmented views, "random", "all" or "clean"; with `test_views` test predictions are averaged over them.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    opened = cache if isinstance(cache, Cache) else Cache(find_cache(Path(features_dir), cache))
    training = fit.Training(
        head,
        params,
        node,
        val_fraction,
        split_seed,
        split_mode,
        test,
        calibrate=calibrate,
        memory_budget=memory_budget,
        view_mode=view_mode,
        test_views=test_views,
    )
    return fit.train(opened, training)


def sweep(
    cache: Cache | str,
    head: str = "mlp",
    grid: Mapping[str, Sequence[Any] | Range] | None = None,
    *,
    seeds: int = 1,
    random: int | None = None,
    optuna: int | None = None,
    few_shot: Sequence[int] = (),
    fractions: Sequence[float] = (),
    trials: int = 5,
    cv: int | None = None,
    draw_seed: int = 0,
    node: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 42,
    split_mode: str = "random",
    test: bool = False,
    calibrate: bool = False,
    memory: int = sweeping.MEMORY,
    memory_budget: int | None = None,
    view_mode: str | None = None,
    features_dir: PathLike = "features",
    tell: Callable[[sweeping.News], None] = lambda news: None,
    **params: Any,
) -> sweeping.Swept:
    """Train a head for every combination of `grid` and every seed, store the runs, and choose the best.

    `grid` maps options to values, e.g. `{"lr": [1e-4, 1e-3], "hidden": [(50, 20), (128,)]}`; `params` are the
    options that stay the same. `random` tries so many combinations instead of all, `optuna` so many that
    Optuna suggests; then a value may be a `featcache.training.grid.Range`. `few_shot` and `fractions` make a
    learning curve of `trials` draws a size (`.curve`), `cv` validates on so many folds. `.configurations` are
    ordered by mean validation accuracy, `.best` is the record of the run chosen. Heads train together within
    `memory` bytes, besides the features, of which `memory_budget` bytes may be in memory at once; `tell`
    hears how far it is.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    opened = cache if isinstance(cache, Cache) else Cache(find_cache(Path(features_dir), cache))
    training = fit.Training(
        head,
        params,
        node,
        val_fraction,
        split_seed,
        split_mode,
        test,
        calibrate=calibrate,
        memory_budget=memory_budget,
        view_mode=view_mode,
    )
    sizes = sizes_of(few_shot, fractions)
    asked = sweeping.Sweep(training, grid or {}, seeds, memory, random, optuna, sizes, trials, cv, draw_seed)
    return sweeping.sweep(opened, asked, tell)


def evaluate(run: str, *, test_views: bool = False, features_dir: PathLike = "features") -> dict[str, Any]:
    """Evaluate a run on its validation and test splits; return its record with per-class details.

    With `test_views` test predictions are averaged over the views of each test image.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    return evaluation.evaluate(runs.find_run(Path(features_dir), run), test_views)


def predictor(
    run: str,
    *,
    weights: PathLike | None = None,
    device: str = "auto",
    features_dir: PathLike = "features",
    progress: Callable[[int, int], None] | None = None,
) -> Predictor:
    """Rebuild backbone and head of a run for new images: `predictor(run)(images)` gives probabilities (N, C).

    Args:
        run: a run's id, the beginning of one, or its folder.
        weights: where the backbone's weights are now; None: where they were.
        device: "auto", "cpu", "cuda" or "cuda:N".
        features_dir: where caches are.
        progress: told of a download: bytes done, bytes in all.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    from featcache.inference.predictor import Predictor

    folder = runs.find_run(Path(features_dir), run)
    record = runs.read_run(folder)
    head = runs.read_file(folder, record, runs.HEAD)
    where = None if weights is None else os.fspath(weights)
    return Predictor(Cache(folder.parent.parent), head, record["node"], where, device, progress)


def compare(*names: str, split: str | None = None, features_dir: PathLike = "features") -> dict[str, Any]:
    """Compare runs on the same rows: intervals, tests and verdicts, see `featcache.training.compare`.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    return comparison.compare([runs.find_run(Path(features_dir), name) for name in names], split)


def report(
    *names: str,
    out: PathLike | None = "report.html",
    split: str | None = None,
    details: int = 12,
    dataset: str | None = None,
    data_dir: PathLike = "data",
    features_dir: PathLike = "features",
) -> dict[str, Any]:
    """Report on runs or caches, all there are where none is named; write the page and return its numbers.

    `out` is where the page goes, None for none; `details` how many runs it looks at closely; `dataset` where
    the images are now, if they were moved. The numbers are those of `featcache report --json`.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    from featcache import atomic
    from featcache.reporting.gathering import folders_of, gather
    from featcache.reporting.report import Asked, Report

    folders, named = folders_of(Path(features_dir), names)
    made = Report(gather(folders, split, named=named), Asked(Path(data_dir), dataset, details))
    if out is not None:
        path = Path(out).absolute()
        atomic.make_folder(path.parent)
        atomic.write(path, made.html().encode("utf-8", "backslashreplace"))
    return made.values()
