"""Which runtime to take: the fastest of those that are here, agree with float32 and pay for their set-up.

Nothing is guessed about speed: eager torch is timed on a few real images, which tells how long the work
would take. A runtime is tried where that is long enough, checked, timed on the same images, and taken where
it is faster. What was measured is returned, to be remembered: with it the next choice costs no trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featcache.backbones.runtimes.base import Body, Work
from featcache.backbones.runtimes.catalogue import RUNTIMES, cannot_run, make
from featcache.backbones.runtimes.check import disagreement
from featcache.backbones.runtimes.streams import in_streams
from featcache.errors import BackboneError

# Seconds of work from which an unknown runtime is tried: its set-up and trial are then a small part of it,
# even should it turn out no faster. torch.compile took 30 s for ResNet-18, the others are ready in seconds.
WORTH_TRYING = {"native": 20.0, "winograd": 30.0, "openvino": 30.0, "compile": 1200.0}
WORTH_TAKING = 1.03  # times as fast as eager: less is noise
SECONDS = 1.0  # of timing a runtime, at least


@dataclass(frozen=True)
class Speed:
    """What was measured of a runtime: images a second, and the seconds until it was ready and checked."""

    rate: float
    setup: float = 0.0


@dataclass
class Choice:
    """The runtime to use.

    Attributes:
        body: the network, ready.
        speeds: what was measured in this very choice, by runtime.
        notes: sentences worth telling.
    """

    body: Body
    speeds: dict[str, Speed] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def choose(
    work: Work,
    images: int,
    sample: Tensor,
    known: Mapping[str, Speed] | None = None,
    measure: Callable[[Body, Work, Tensor], float] | None = None,
) -> Choice:
    """Choose for so many images.

    Args:
        work: the network and where it runs.
        images: how many will be embedded.
        sample: some of them, normalised, (B, 3, S, S) float32 on the device.
        known: speeds measured before on this machine for the same network.
        measure: images a second of a body; `rate` where None.
    """
    known, measure = dict(known or {}), measure or rate
    kinds = {name: RUNTIMES[name] for name in WORTH_TRYING}
    names = [
        name
        for name, kind in kinds.items()
        if not kind.absent(work.device, work.precision) and kind.helps(work)
    ]
    choice = Choice(make("torch", work))
    if not names:
        return choice
    if "torch" not in known:
        known["torch"] = choice.speeds["torch"] = Speed(measure(choice.body, work, sample))
    seconds = images / known["torch"].rate
    exact: dict[str, Tensor] = {}
    for name in sorted(names, key=lambda name: -known[name].rate if name in known else 0):
        if not _worth(name, seconds, known) or _no_faster(name, choice.body.name, known):
            continue
        if kinds[name].stands_in_for == choice.body.name:
            continue
        exact = exact or _exact(work, sample)
        begin = time.perf_counter()
        body, why = checked(name, work, sample, exact)
        if body is None:
            choice.notes.append(why)
            continue
        if name not in known:
            setup = time.perf_counter() - begin
            known[name] = choice.speeds[name] = Speed(measure(body, work, sample), setup)
        if known[name].rate > known[choice.body.name].rate * WORTH_TAKING:
            choice.body = body
    return choice


def _no_faster(name: str, than: str, known: Mapping[str, Speed]) -> bool:
    """Whether a runtime is known to be no faster than another."""
    return name in known and known[name].rate <= known[than].rate * WORTH_TAKING


def _worth(name: str, seconds: float, known: Mapping[str, Speed]) -> bool:
    """Whether a runtime pays for its set-up in work that takes eager torch so many seconds."""
    if name not in known:
        return seconds >= WORTH_TRYING[name]
    gain = known[name].rate / known["torch"].rate
    return gain > WORTH_TAKING and seconds * (1 - 1 / gain) > known[name].setup


def checked(
    name: str, work: Work, sample: Tensor, exact: dict[str, Tensor] | None = None
) -> tuple[Body | None, str]:
    """Return a runtime that agrees with eager float32 on a sample, or None and a sentence that says why not.

    Raises:
        OptionError: the runtime is unknown, or cannot do such work on this machine.
    """
    try:
        body = make(name, work)
        with torch.inference_mode():
            rows = body(sample.to(body.dtype))
            eager = work.cast(sample.to(work.dtype)) if work.precision != "fp32" else None
        wrong = disagreement(rows, exact or _exact(work, sample), work.precision, eager)
    except BackboneError as error:
        return None, error.message
    except Exception as error:  # what is made well may still fail at its first call, in any way
        return None, cannot_run(name, error).message
    return (None, f"The runtime {name} is not used: {wrong}.") if wrong else (body, "")


def _exact(work: Work, sample: Tensor) -> dict[str, Tensor]:
    """Return the rows of eager float32."""
    with torch.inference_mode():
        rows: dict[str, Tensor] = work.exact()(sample.float().cpu())
        return rows


def rate(body: Body, work: Work, sample: Tensor) -> float:
    """Return images a second of a body with all its streams busy, after a call of each to warm up."""
    images = sample.to(body.dtype)

    def call(number: int) -> int:
        """Run the sample once."""
        with torch.inference_mode():
            body(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
        return len(images)

    def run(calls: int) -> int:
        return sum(in_streams(call, range(calls), work.streams, work.threads_of(body)))

    run(work.streams)
    done, begin = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - begin < SECONDS:
        done += run(2 * work.streams)
    return done / (time.perf_counter() - begin)
