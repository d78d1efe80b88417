"""`featcache extract`: images through a backbone into a cache, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.commands import options
from featcache.commands.output import duration, progress_bar, say, show, show_json, size
from featcache.extraction.request import (
    DECODE_IN,
    ENGINES,
    NORMALIZE,
    ON_BAD_IMAGE,
    PRECISIONS,
    PREPROCESS,
    RUNTIMES,
    STORE_DTYPES,
    Request,
    Settings,
    augmentation,
)
from featcache.images.policies import NAMED
from featcache.recipe import VIEWS_OF
from featcache.store.keeping import shown

DECIDING = [
    click.option(
        "--dataset", default="cifar10", show_default=True, help="A name (see below), folder:DIR or csv:FILE."
    ),
    click.option(
        "--backbone",
        default="vgg16",
        show_default=True,
        help="Any torchvision classification model, or pixels.",
    ),
    click.option(
        "--weights",
        default="DEFAULT",
        show_default=True,
        help="DEFAULT, a torchvision name, random:SEED, or a path to .safetensors or .pth.",
    ),
    click.option(
        "--layer", "layers", multiple=True, help="The node to read; give it again for several in one pass."
    ),
    click.option("--pool", help="How a map becomes a row: flatten, avg, max, gem or avg:S."),
    click.option(
        "--preprocess",
        type=click.Choice(PREPROCESS),
        default="auto",
        show_default=True,
        help="weights: the weights' own transform; squash: resize to exactly the input size; "
        "auto: squash images smaller than the input, else weights.",
    ),
    click.option(
        "--image-size", type=click.IntRange(1), help="Input size in pixels [default: the weights' own]."
    ),
    click.option(
        "--normalize",
        type=click.Choice(NORMALIZE),
        default="weights",
        show_default=True,
        help="Mean and deviation: those of the weights or of ImageNet, half (.5), measured on the training "
        "images, or none.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="What the backbone computes in; tf32 needs an NVIDIA GPU.",
    ),
    click.option(
        "--store-dtype",
        type=click.Choice(STORE_DTYPES),
        default="float16",
        show_default=True,
        help="int8: half of float16, with a scale for each column of each shard.",
    ),
    click.option(
        "--views",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Views of each image: view 0 is the image itself, the others are augmented.",
    ),
    click.option(
        "--augment",
        metavar="POLICY|FILE",
        help=f"How views are made: {', '.join(NAMED)}, or a .toml or .json file of steps.",
    ),
    click.option(
        "--view-seed", type=click.IntRange(0), default=0, show_default=True, help="Of what views draw."
    ),
    click.option(
        "--views-of",
        type=click.Choice(VIEWS_OF),
        default="train",
        show_default=True,
        help="Which splits have views; with all, train-head and evaluate can average over the test images'.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only the first N images of each class and split."),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=50_000_000,
        show_default=True,
        help="Larger images are not decoded.",
    ),
]


def deciding(function: Any) -> Any:
    """Add the options that decide what the features are."""
    for option in reversed(DECIDING):
        function = option(function)
    return function


@click.command(short_help="Run a backbone over the images once and cache its features.")
@deciding
@options.devices
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="auto",
    show_default=True,
    help="What runs the backbone: torch as it is; native: with our own kernels (CPU, needs a C compiler); "
    "winograd: with Winograd's convolutions by torch's products (CPU, fp32); torch.compile; OpenVINO (extra "
    "featcache[openvino], CPU); auto: the fastest that is here, agrees with float32 and pays for its set-up.",
)
@click.option("--batch-size", type=options.AutoOrNumber(), default="auto", show_default=True)
@click.option(
    "--workers",
    type=options.AutoOrNumber(),
    default="auto",
    show_default=True,
    help="Threads that decode images.",
)
@click.option(
    "--decode-in",
    type=click.Choice(DECODE_IN),
    default="auto",
    show_default=True,
    help="processes: an image whose decoder crashes, hangs or eats memory is one that cannot be read; "
    "auto: so with --on-bad-image skip, on a GPU with many images, and after a run that died.",
)
@click.option(
    "--on-bad-image",
    type=click.Choice(ON_BAD_IMAGE),
    default="error",
    show_default=True,
    help="Stop at an image that cannot be read, or leave it out and list it.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="Who computes: this machine, or the actors of a Ray cluster (extra featcache[ray]), to all of whose "
    "nodes images and features must be visible under the same paths.",
)
@click.option(
    "--ray-address",
    metavar="auto|ADDRESS",
    help="With --engine ray: the cluster; auto: the one that this machine is part of [default: one of this "
    "machine alone, for this run].",
)
@click.option(
    "--ray-actors",
    type=options.AutoOrNumber(),
    default="auto",
    show_default=True,
    help="With --engine ray: one for each GPU, else for up to 4 CPUs; --workers: how many CPUs each takes.",
)
@options.data_dir
@options.features_dir
@click.option("--dry-run", is_flag=True, help="Say what it would cost, at a rate measured on a few images.")
@options.as_json
def extract(
    data_dir: Path,
    features_dir: Path,
    device: str,
    runtime: str,
    batch_size: int | None,
    workers: int | None,
    decode_in: str,
    on_bad_image: str,
    engine: str,
    ray_address: str | None,
    ray_actors: int | None,
    dry_run: bool,
    as_json: bool,
    **deciding: Any,
) -> None:
    """Run a frozen backbone over a data set once and write its features into a cache.

    A run that was stopped goes on where it was. The same request again is a hit and takes no time.
    What decides the features decides the cache; batch size, workers, device and runtime do not.

    Data sets by name are downloaded into the data folder: cifar10, cifar100, mnist, fashion-mnist, svhn,
    flowers102, oxford-pets, stl10 and more (`featcache ls --datasets`); digits needs no download.
    """
    from featcache.extraction.extract import extract as run

    request = Request(**{**deciding, "augment": augmentation(deciding["augment"])})
    settings = Settings(
        features_dir,
        data_dir,
        device,
        batch_size,
        workers,
        on_bad_image,
        runtime=runtime,
        decode_in=decode_in,
        engine=engine,
        ray_address=ray_address,
        ray_actors=ray_actors,
    )
    if dry_run:
        _show_plan(request, settings, as_json)
        return
    with progress_bar(as_json) as progress:
        found = run(request, settings, progress, say)
    if as_json:
        show_json(found.to_dict())
        return
    rows = ", ".join(f"{split} {count}" for split, count in found.rows.items())
    columns = ", ".join(f"{node} {width}" for node, width in found.nodes.items())
    show(f"{'hit ' if found.hit else 'done'}  {shown(found.path)}")
    show(f"      rows {rows} · columns {columns} · {size(found.bytes)} · {duration(found.seconds)}")
    if found.images:
        rate = found.images / found.extraction_seconds
        show(f"      {found.images} images at {rate:.1f} images/s with {found.runtime}")
    if found.copied:
        show(f"      {found.copied} copied")
    if found.bad_images:
        show(f"      {found.bad_images} images could not be read: featcache info {found.path.name}")


def _show_plan(request: Request, settings: Settings, as_json: bool) -> None:
    from featcache.extraction.dry_run import dry_run

    with progress_bar(as_json) as progress:
        plan = dry_run(request, settings, progress)
    if as_json:
        show_json(plan)
        return
    nodes = ", ".join(f"{node} {width}" for node, width in plan["nodes"].items())
    show(f"cache    {plan['cache']}")
    show(f"images   {plan['images']}, of them {plan['rows_there']} already there")
    if plan["views"] > plan["images"]:
        show(f"views    {plan['views']} of all images together")
    show(f"work     {plan['views_left']} to compute, {plan['copied']} to copy")
    show(f"columns  {nodes} · {plan['bytes_per_image']} bytes an image")
    show(f"disk     {size(plan['bytes'])} still to write, {size(plan['free_bytes'])} free")
    if plan["images_per_second"]:
        show(
            f"time     {duration(plan['seconds'])} at {plan['images_per_second']} images/s, measured here "
            f"with {plan['runtime']}"
        )
