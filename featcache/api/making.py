"""Making what is compared: caches of features, and networks trained whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.extraction import extract as extraction
from featcache.extraction.request import Request, Settings, augmentation
from featcache.live.listeners import listening
from featcache.progress import Progress, silent
from featcache.store.cache import Cache
from featcache.store.keeping import local

if TYPE_CHECKING:
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
    engine: str = "local",
    ray_address: str | None = None,
    ray_actors: int | None = None,
    data_dir: PathLike = "data",
    features_dir: PathLike = "features",
    progress: Progress = silent,
    notify: Callable[[str], None] = lambda text: None,
) -> Cache:
    """Run a frozen backbone over a data set once; return the finished cache, at once where there is one.

    Args:
        dataset: a known name ("cifar10", "digits", …), "folder:DIR", "folder:s3://…" or "csv:FILE".
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
        runtime: "auto", "torch", "native", "winograd", "compile" or "openvino": what runs the backbone; its
            features are the same.
        batch_size: images a forward pass, chosen for the device where None.
        workers: threads that decode, one for each core where None.
        on_bad_image: "error" or "skip".
        decode_in: "threads", "processes", where a decoder may die or hang, or "auto": processes where bad
            images are skipped, there are many for a GPU, or a run has died.
        engine: "local", or "ray" for the actors of a Ray cluster (a connection that Ray has already is used).
        ray_address: of the cluster, "auto" for the one this machine is part of; None: this machine alone.
        ray_actors: as many as find room where None.
        data_dir: where downloaded data sets are.
        features_dir: where caches are; a folder, or a URL such as "s3://bucket/features".
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
        local(features_dir), Path(data_dir), device, batch_size, workers, on_bad_image, runtime=runtime,
        decode_in=decode_in, engine=engine, ray_address=ray_address, ray_actors=ray_actors,
    )  # fmt: skip
    return Cache(extraction.extract(request, settings, progress, notify).path)


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
    tensorboard: PathLike | None = None,
    mlflow: str | None = None,
    **options: Any,
) -> Finetuned:
    """Train a whole network, store the run beside those of heads, and return it: `.record` and `.folder`.

    `network` is a backbone or one of the small networks; `from_run` starts with the backbone and the head of
    a run, on its data set; `weights` says where they come from, "scratch" draws them. `options` are the
    fields of `featcache.finetuning.options.Finetuning`, such as `train="last-block", lr=1e-4, epochs=5`.
    `tensorboard`, a folder, and `mlflow`, a tracking URI, show the training while it goes on.

    Raises:
        FeatcacheError: see its subclasses in `featcache.errors`.
    """
    from featcache import whole
    from featcache.finetuning.options import Place

    named = {"dataset": dataset, "network": network}
    if from_run is None and weights is not None:
        named["weights"] = os.fspath(weights)
    given = {**options, **{name: value for name, value in named.items() if value is not None}}
    place = Place(local(features_dir), Path(data_dir), device, workers, keep_checkpoints)
    asked = whole.Asked(given, from_run, None if from_run is None or weights is None else os.fspath(weights))
    board = None if tensorboard is None else Path(tensorboard)
    with listening(board, mlflow, logging.getLogger("featcache").warning) as listener:
        return whole.finetune(asked, place, whole.Watch(progress=progress, listener=listener))
