"""The runtime of an extraction: as asked, as the cache was begun with, or the fastest; the gain of bf16."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.backbones.devices import device_facts
from featcache.backbones.heap import give_freed_memory_back
from featcache.backbones.preprocess import Normalise, fit
from featcache.backbones.runtime import Extractor
from featcache.backbones.runtimes.catalogue import RUNTIMES
from featcache.backbones.runtimes.choose import Choice, Speed, checked, choose
from featcache.errors import BackboneError, BadImageError, OptionError, unknown
from featcache.extraction.pipeline import default_batch_size
from featcache.extraction.reader import Reader, Reading
from featcache.extraction.request import Settings
from featcache.extraction.resolve import Job
from featcache.extraction.speeds import Speeds, begin, begun
from featcache.store.plan import ShardPlan

if TYPE_CHECKING:
    from torch import Tensor

FEW = 256  # images: fewer are done before anything could be measured
SOON = 20.0  # seconds of work: less is not worth a second of timing
OFFER = 120.0  # seconds of work from which it is worth to measure what bf16 would gain
GAIN = 1.3  # times as fast, at least, to be worth a sentence
PROBE = 1.0  # seconds of a probe, at least

Notify = Callable[[str], None]


def take_runtime(
    job: Job,
    extractor: Extractor,
    settings: Settings,
    images: int,
    cache: str,
    notify: Notify = lambda text: None,
    remember: bool = True,
) -> None:
    """Make the extractor use the right runtime, and remember which for whoever goes on.

    A cache that was begun goes on with the runtime it was begun with, so that its shards are those of an
    extraction that was never stopped; where that cannot be had, it is said.

    Args:
        job: what is extracted.
        extractor: as made, with eager torch.
        settings: of them `runtime` and `features_dir` count.
        images: how many are left to embed.
        cache: the cache's name.
        notify: told what is worth knowing.
        remember: whether to write down what was chosen and measured.

    Raises:
        OptionError: the runtime asked for is unknown or cannot be used here.
        BackboneError: it cannot run this backbone, or gives other features.
    """
    asked, before = settings.runtime, begun(settings.features_dir, cache)
    if asked == "auto" and before is not None and _resumed(job, extractor, before, notify):
        return
    if asked not in ("auto", *RUNTIMES):
        raise unknown("runtime", asked, ("auto", *RUNTIMES))
    if asked == "auto":
        _fastest(job, extractor, settings, images, notify, remember)
    elif asked != "torch":
        _exactly(job, extractor, asked)
    give_freed_memory_back()  # trials hold the maps of a whole sample: VGG16's are 400 MB
    if before not in (None, extractor.runtime):
        notify(
            f"{cache} was begun with {before}; the rest is made with {extractor.runtime}: "
            "the same features within the tolerance of their precision, not to the bit."
        )
    if remember:
        begin(settings.features_dir, cache, extractor.runtime)


def _resumed(job: Job, extractor: Extractor, runtime: str, notify: Notify) -> bool:
    """Use the runtime a cache was begun with; return False where that does not work."""
    try:
        if runtime != "torch":
            _exactly(job, extractor, runtime)
    except (OptionError, BackboneError) as error:
        notify(error.message)
        return False
    return True


def _exactly(job: Job, extractor: Extractor, runtime: str) -> None:
    body, why = checked(runtime, extractor.work, _sample(job, extractor))
    if body is None:
        raise BackboneError(why, "Use --runtime torch or auto.")
    extractor.use(body)


def _fastest(
    job: Job, extractor: Extractor, settings: Settings, images: int, notify: Notify, remember: bool
) -> None:
    if extractor.device != "cpu" or images < FEW or _seconds(job, extractor, images) < SOON:
        return
    speeds = Speeds(settings.features_dir, job.recipe, extractor.work)
    choice: Choice = choose(extractor.work, images, _sample(job, extractor), speeds.known())
    extractor.use(choice.body)
    if remember:
        speeds.add(choice.speeds)
    for note in choice.notes:
        notify(note)


def _seconds(job: Job, extractor: Extractor, images: int) -> float:
    """Return about how many seconds of work so many images are, from two batches."""
    pixels = _pixels(job, extractor)
    extractor(pixels)
    start = time.perf_counter()
    extractor(pixels)
    return images * (time.perf_counter() - start) / len(pixels)


def _sample(job: Job, extractor: Extractor) -> Tensor:
    """Return a few images, normalised: (B, 3, S, S) float32 on the device."""
    step = job.recipe.preprocess
    return Normalise(step.mean, step.std, extractor.device, torch.float32)(_pixels(job, extractor))


def _pixels(job: Job, extractor: Extractor) -> NDArray[np.uint8]:
    """Return a few readable images from all over the data set, fitted: (B, S, S, 3)."""
    step, wanted = job.recipe.preprocess, extractor.work.chunk
    rows = np.linspace(0, len(job.dataset) - 1, min(len(job.dataset), 4 * wanted)).astype(int).tolist()
    pixels = list(itertools.islice(_readable(job, rows), wanted))
    if not pixels:
        pixels = [np.zeros((step.crop, step.crop, 3), np.uint8)]
    return np.stack(pixels)


def _readable(job: Job, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield those of some rows' images that can be read, fitted: (S, S, 3); extraction names the others."""
    step, most = job.recipe.preprocess, job.request.max_pixels
    if not job.contained:
        for row in rows:
            with contextlib.suppress(BadImageError):
                yield fit(job.dataset.image(row, most), step)
        return
    reader = Reader(job.dataset, step, Reading(1, 1, most, contained=True))
    try:
        for batch in reader.batches(ShardPlan("train-00000", row, row + 1) for row in rows):
            if not batch.bad:
                yield batch.pixels[0].copy()
            reader.give(batch)
    finally:
        reader.close()


def offer_bf16(job: Job, extractor: Extractor, settings: Settings, images: int, notify: Notify) -> None:
    """Tell what bf16 would gain, if that was measured and is worth a sentence.

    Measured where float32 takes minutes, by the forward pass of both alone, once for a machine and network.
    """
    if job.recipe.precision != "fp32" or images < FEW or not _has_bf16(extractor.device):
        return
    if _seconds(job, extractor, images) < OFFER:
        return
    speeds = Speeds(settings.features_dir, job.recipe, extractor.work)
    known, when = speeds.known(), "measured here before"
    if not {"probe fp32", "probe bf16"} <= set(known):
        batch_size = settings.batch_size or default_batch_size(extractor)
        full = extractor.forward_only_rate(batch_size, PROBE)
        half = _bf16_rate(job, extractor, batch_size)
        known, when = {"probe fp32": Speed(full), "probe bf16": Speed(half)}, "measured just now"
        speeds.add(known)
    full, half = known["probe fp32"].rate, known["probe bf16"].rate
    if half < GAIN * full:
        return
    notify(
        f"--precision bf16 would be {half / full:.1f} × as fast here ({half:.0f} against {full:.0f} images/s "
        f"of the forward pass alone, {when}); it makes a cache of its own."
    )


def _bf16_rate(job: Job, extractor: Extractor, batch_size: int) -> float:
    """Return images a second of bf16, in the same runtime where that has it; 0 where it fails."""
    other = job.extractor(extractor.device, "bf16")
    if extractor.runtime != "torch" and not RUNTIMES[extractor.runtime].absent(extractor.device, "bf16"):
        try:
            _exactly(job, other, extractor.runtime)
        except (OptionError, BackboneError):
            return 0.0
    return other.forward_only_rate(batch_size, PROBE)


def _has_bf16(device: str) -> bool:
    return any(one["name"] == device and one["bf16"] for one in device_facts()["devices"])
