"""The runtimes by name."""

from __future__ import annotations

from featcache.backbones.runtimes.base import Body, Work
from featcache.backbones.runtimes.compiled import CompiledBody
from featcache.backbones.runtimes.eager import EagerBody
from featcache.backbones.runtimes.native import NativeBody
from featcache.backbones.runtimes.openvino import OpenVinoBody
from featcache.backbones.runtimes.winograd import WinogradBody
from featcache.errors import BackboneError, OptionError, unknown

RUNTIMES: dict[str, type[Body]] = {
    kind.name: kind for kind in (EagerBody, NativeBody, WinogradBody, CompiledBody, OpenVinoBody)
}


def check_runtime(name: str, device: str, precision: str) -> None:
    """Refuse a runtime that this machine does not have.

    Raises:
        OptionError: it is unknown, or cannot compute in the precision on the device; the reason.
    """
    if name not in RUNTIMES:
        raise unknown("runtime", name, ("auto", *RUNTIMES))
    why = RUNTIMES[name].absent(device, precision)
    if why:
        raise OptionError(f"The runtime {name} cannot be used here: {why}.", "Use --runtime torch or auto.")


def make(name: str, work: Work) -> Body:
    """Return the network ready in a runtime.

    Raises:
        OptionError: the runtime is unknown, or cannot do such work on this machine.
        BackboneError: it cannot run this network.
    """
    check_runtime(name, work.device, work.precision)
    try:
        return RUNTIMES[name](work)
    except Exception as error:  # exporters and compilers raise anything
        raise cannot_run(name, error) from error


def cannot_run(name: str, error: Exception) -> BackboneError:
    """Return the error for a runtime that fails with a network."""
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return BackboneError(
        f"The runtime {name} cannot run this backbone: {reason}.", "Use --runtime torch or auto."
    )
