"""What this machine can extract with: runtimes, precisions, engines. For `featcache doctor`."""

from __future__ import annotations

from importlib import metadata

from featcache.backbones.devices import device_facts, precisions
from featcache.backbones.runtimes.catalogue import RUNTIMES

PACKAGES = {
    "torch": "torch", "native": "featcache", "winograd": "torch", "compile": "torch", "openvino": "openvino",
}  # fmt: skip
"""Runtime → the package whose version it has."""

BF16_IN_STEPS = "bf16 without instructions for it: no faster than fp32"


def runtimes() -> dict[str, str]:
    """Return runtime → its version, or "no: " and why it cannot be used here."""
    found = {}
    for name, kind in RUNTIMES.items():
        why = kind.absent("cpu", "fp32")
        found[name] = f"no: {why}" if why else metadata.version(PACKAGES[name])
    return found


def ray_version() -> str:
    """Return the version of Ray, or that there is none and how to get it."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return 'no: --engine ray needs pip install "featcache[ray]"'


def precisions_of_devices() -> dict[str, str]:
    """Return device → the precisions it computes in."""
    found = {}
    for device in device_facts()["devices"]:
        name = device["name"]
        slow = "" if device["bf16"] or "bf16" not in precisions(name) else f" ({BF16_IN_STEPS})"
        found[name] = ", ".join(precisions(name)) + slow
    return found
