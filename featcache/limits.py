"""How much of a stranger's file is taken: limits, each of which an environment variable sets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from featcache.errors import OptionError

KI, MI, GI = 1 << 10, 1 << 20, 1 << 30
_SIZES = {"": 1, "K": KI, "M": MI, "G": GI, "T": 1 << 40}
_NUMBER = re.compile(r"(\d{1,15})([KMGT]?)")


@dataclass(frozen=True)
class Limit:
    """One limit; calling it gives what holds now.

    Attributes:
        variable: the environment variable that sets it: a whole number, with K, M, G or T for powers of 1024.
        default: what holds without it.
        unit: "bytes", "seconds" or "times".
        what: of what it is the most.
    """

    variable: str
    default: int
    unit: str
    what: str

    def __call__(self) -> int:
        """Return what holds now.

        Raises:
            OptionError: the variable is no whole number above 0.
        """
        said = os.environ.get(self.variable)
        if said is None:
            return self.default
        found = _NUMBER.fullmatch(said.strip().upper())
        if found is None or int(found[1]) == 0:
            raise OptionError(
                f"The environment variable {self.variable} is {said!r}; expected a whole number of "
                f"{self.unit}, such as 100M.",
                f"Without it, {plain(self.default)} {self.unit} are the most.",
            )
        return int(found[1]) * _SIZES[found[2]]


IMAGE_BYTES = Limit("FEATCACHE_MAX_IMAGE_BYTES", GI, "bytes", "an image file")
DECODE_SECONDS = Limit(
    "FEATCACHE_MAX_DECODE_SECONDS", 60, "seconds", "a handful of images in a process that may die"
)
DECODE_BYTES = Limit(
    "FEATCACHE_MAX_DECODE_BYTES",
    2 * GI,
    "bytes",
    "such a process's memory, beside 24 bytes for each of `--max-pixels`",
)
RECORD_BYTES = Limit("FEATCACHE_MAX_RECORD_BYTES", 16 * MI, "bytes", "a record (JSON) of a cache or run")
RUN_FILE_BYTES = Limit(
    "FEATCACHE_MAX_RUN_FILE_BYTES", 8 * GI, "bytes", "a head, a checkpoint or the predictions of a run"
)
LIST_BYTES = Limit("FEATCACHE_MAX_LIST_BYTES", GI, "bytes", "a CSV file of images")
WEIGHTS_TIMES = Limit(
    "FEATCACHE_MAX_WEIGHTS_TIMES", 4, "times", "a weights file, unpacked, over the bytes of the network"
)
DOWNLOAD_BYTES = Limit("FEATCACHE_MAX_DOWNLOAD_BYTES", 16 * GI, "bytes", "a download of weights")
ALL = (
    IMAGE_BYTES, DECODE_SECONDS, DECODE_BYTES, RECORD_BYTES, RUN_FILE_BYTES, LIST_BYTES, WEIGHTS_TIMES,
    DOWNLOAD_BYTES,
)  # fmt: skip


def check() -> None:
    """Refuse limits that are no numbers, before anything is done.

    Raises:
        OptionError: naming the variable.
    """
    for limit in ALL:
        limit()


def plain(number: int) -> str:
    """Return a number as a variable may say it: 2147483648 → 2G."""
    for sign, size in reversed(_SIZES.items()):
        if number % size == 0:
            return f"{number // size}{sign}"
    return str(number)
