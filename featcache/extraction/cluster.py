"""A Ray cluster: one that runs already, or one of this machine alone for as long as an extraction takes."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from featcache.errors import OptionError
from featcache.extraction.request import Settings

CPUS = 4  # of an actor without a GPU, at most: several of them use many cores better than one
KNOCK = 10.0  # seconds for a cluster's address to answer
OBJECTS = 80 << 20  # bytes of Ray's object store in a cluster of our own: only numbers travel


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, and give the module `ray`; a connection there is already is used and kept.

    Args:
        address: as `ray.init` takes it, "auto" for the cluster this machine is part of; None: one of this
            machine alone is started, and ended in the end.

    Raises:
        OptionError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _imported(address)
    if ray.is_initialized():
        yield ray
        return
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        how |= {"include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        _knock(address)
        ray.init(address=address or "local", **how)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise OptionError(
            f"There is no Ray cluster at {address or 'this machine'}: {said}.",
            "Start one with: ray start --head; or leave out --ray-address to use this machine alone.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError where nobody listens at host:port; Ray would try for minutes."""
    import socket

    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def check_there(address: str | None) -> None:
    """Refuse a cluster that cannot be used, before images are read for it.

    Raises:
        OptionError: Ray is not installed, or there is no cluster at the address.
    """
    if address is None:
        _imported(None)
        return
    with connected(address):
        pass


def _imported(address: str | None) -> Any:
    if address is None:
        # Ray binds to all interfaces except where it takes a machine for one that is never part of a cluster.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise OptionError(
            "The engine ray needs Ray, which is not installed.", 'Install it: pip install "featcache[ray]".'
        ) from None
    return ray


@dataclass(frozen=True)
class Actors:
    """How many actors there are to be, and what each takes of the cluster."""

    count: int
    gpus: int  # of each: 0 or 1
    cpus: int  # of each; as many threads decode, and compute where there is no GPU

    def __str__(self) -> str:
        one = "1 GPU and " if self.gpus else ""
        return (
            f"{self.count} actor{'s' * (self.count > 1)} of {one}{self.cpus} CPU{'s' * (self.cpus > 1)} each"
        )


def actors_of(settings: Settings, nodes: list[dict[str, float]]) -> Actors:
    """Return the actors for a cluster.

    With GPUs one for each, and as many CPUs as every GPU can have; without, as many CPUs as the smallest node
    has, at most 4, and as many actors as then find room. `--workers` says how many CPUs, `--ray-actors` how
    many actors; Ray waits, or lets the cluster grow, where there are more than find room.

    Args:
        settings: of them `device`, `workers` and `ray_actors` count.
        nodes: the resources of each node: "CPU" and "GPU".

    Raises:
        OptionError: a GPU is asked for and there is none, or the device is none that Ray can choose.
    """
    if settings.device not in ("auto", "cpu", "cuda"):
        raise OptionError(
            f"With the engine ray the cluster chooses the devices, got {settings.device!r}.",
            "Give --device auto, cpu or cuda.",
        )
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 or node.get("GPU", 0) >= 1]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if settings.device == "cuda" and not with_gpu and settings.ray_actors is None:
        raise OptionError(
            "The Ray cluster has no GPU.", "Give --device cpu; or --ray-actors, to let it grow."
        )
    if settings.device != "cpu" and (with_gpu or settings.device == "cuda"):
        share = min((node.get("CPU", 0) / node["GPU"] for node in with_gpu), default=1)
        cpus = settings.workers or max(1, math.floor(share))
        return Actors(settings.ray_actors or int(sum(node["GPU"] for node in with_gpu)), 1, cpus)
    if not nodes and settings.ray_actors is None:
        raise OptionError("The Ray cluster has no CPUs.", "Give --ray-actors, to let it grow.")
    cpus = settings.workers or min(CPUS, int(min((node["CPU"] for node in nodes), default=1)))
    room = sum(int(node.get("CPU", 0)) // cpus for node in nodes)
    return Actors(settings.ray_actors or max(1, room), 0, cpus)
