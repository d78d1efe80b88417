"""What this machine can extract with: runtimes, decoders, precisions. For `featcache doctor`."""

from __future__ import annotations

from importlib import metadata

from featcache.backbones.devices import device_facts, precisions, resolve_device
from featcache.backbones.runtimes.catalogue import RUNTIMES
from featcache.errors import OptionError
from featcache.extraction.device_decoding import PILLOW, gpu_decoder_name

PACKAGES = {"torch": "torch", "compile": "torch", "openvino": "openvino"}
"""Runtime → the package whose version it has."""

BF16_IN_STEPS = "bf16 without instructions for it: no faster than fp32"


def runtimes() -> dict[str, str]:
    """Return runtime → its version, or "no: " and why it cannot be used here."""
    found = {}
    for name, kind in RUNTIMES.items():
        why = kind.absent("cpu", "fp32")
        found[name] = f"no: {why}" if why else metadata.version(PACKAGES[name])
    return found


def decoders() -> dict[str, str]:
    """Return the values of --decode → who decodes then, or "no: " and why it cannot be used here."""
    try:
        gpu = gpu_decoder_name(resolve_device("auto"))
    except OptionError as error:
        gpu = f"no: {error.message.partition(': ')[2].rstrip('.')}"
    return {"cpu": f"{PILLOW} {metadata.version('pillow')}", "gpu": gpu}


def precisions_of_devices() -> dict[str, str]:
    """Return device → the precisions it computes in."""
    found = {}
    for device in device_facts()["devices"]:
        name = device["name"]
        slow = "" if device["bf16"] or "bf16" not in precisions(name) else f" ({BF16_IN_STEPS})"
        found[name] = ", ".join(precisions(name)) + slow
    return found
