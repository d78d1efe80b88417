"""The Python interface: the same powers as the command line, in one call each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.extraction import extract as extraction
from featcache.extraction.request import Request, Settings
from featcache.progress import Progress, silent
from featcache.store.cache import Cache
from featcache.store.folders import find_cache
from featcache.training import compare as comparison
from featcache.training import evaluate as evaluation
from featcache.training import fit, networks, runs
from featcache.training import sweep as sweeping
from featcache.training.grid import Range
from featcache.training.subsets import sizes_of

if TYPE_CHECKING:
    from featcache.finetuning.predictor import NetworkPredictor
    from featcache.inference.predictor import Predictor
    from featcache.whole import Finetuned

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
    device: str = "auto",
    runtime: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    on_bad_image: str = "error",
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
        device: "auto", "cpu", "cuda" or "cuda:N".
        runtime: "auto", "torch", "compile" or "openvino": what runs the backbone; its features are the same.
        batch_size: images a forward pass, chosen for the device where None.
        workers: threads that decode, one for each core where None.
        on_bad_image: "error" or "skip".
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
    )  # fmt: skip
    settings = Settings(
        Path(features_dir), Path(data_dir), device, batch_size, workers, on_bad_image, runtime=runtime
    )
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
    features_dir: PathLike = "features",
    **params: Any,
) -> fit.Trained:
    """Train a head on a cache, store the run, and return it: `.record` (metrics, timings) and `.head`.

    `params` are the head's own options, e.g. `hidden=(50, 20), lr=1e-3` (`featcache train-head --help`).
    `memory_budget` is how many bytes of the features may be in memory at once.

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
    )
    return fit.train(opened, training)


def finetune(
    dataset: str | None = None,
    network: str | None = None,
    *,
    from_run: str | None = None,
    weights: PathLike | None = None,
    device: str = "auto",
    workers: int | None = None,
    keep_checkpoints: int = 0,
    data_dir: PathLike = "data",
    features_dir: PathLike = "features",
    progress: Progress = silent,
    **options: Any,
) -> Finetuned:
    """Train a whole network, store the run beside those of heads, and return it: `.record` and `.folder`.

    `network` is a backbone or one of the small networks; `from_run` starts with the backbone and the head of
    a run, on its data set; `weights` says where they come from, "scratch" draws them. `options` are the
    fields of `featcache.finetuning.options.Finetuning`, such as `train="last-block", lr=1e-4, epochs=5`.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    from featcache import whole
    from featcache.finetuning.options import Place

    named = {"dataset": dataset, "network": network}
    if from_run is None and weights is not None:
        named["weights"] = os.fspath(weights)
    given = {**options, **{name: value for name, value in named.items() if value is not None}}
    place = Place(Path(features_dir), Path(data_dir), device, workers, keep_checkpoints)
    asked = whole.Asked(given, from_run, None if from_run is None or weights is None else os.fspath(weights))
    return whole.finetune(asked, place, whole.Watch(progress=progress))


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
    )
    sizes = sizes_of(few_shot, fractions)
    asked = sweeping.Sweep(training, grid or {}, seeds, memory, random, optuna, sizes, trials, cv, draw_seed)
    return sweeping.sweep(opened, asked, tell)


def evaluate(run: str, *, features_dir: PathLike = "features") -> dict[str, Any]:
    """Evaluate a run on its validation and test splits; return its record with per-class details.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    folder = runs.find_run(Path(features_dir), run)
    if networks.is_network(folder):
        from featcache import whole

        return whole.evaluate(folder)
    return evaluation.evaluate(folder)


def predictor(
    run: str,
    *,
    weights: PathLike | None = None,
    device: str = "auto",
    features_dir: PathLike = "features",
    progress: Callable[[int, int], None] | None = None,
) -> Predictor | NetworkPredictor:
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
    if networks.is_network(folder):
        from featcache import whole

        return whole.predictor(folder, device)
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
