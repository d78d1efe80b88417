"""The errors featcache raises on purpose: what, where, expected and got, next step."""

from __future__ import annotations

from collections.abc import Iterable


class FeatcacheError(Exception):
    """Root of every error featcache raises on purpose.

    `message` is one sentence: what is wrong, where, what was expected and what was found.
    `hint` is the next step, possibly empty. The command line prints both and exits 1.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class OptionError(FeatcacheError, ValueError):
    """An option or argument has a value that cannot be used."""


class DatasetError(FeatcacheError):
    """A data set cannot be found, listed or used."""


class BadImageError(FeatcacheError):
    """One image cannot be decoded. `message` is the reason, without the image's name."""


class BackboneError(FeatcacheError):
    """A backbone, node or preprocessing is unknown or does not fit."""


class WeightsError(FeatcacheError):
    """Weights are missing, damaged or of another network."""


class CacheError(FeatcacheError):
    """A cache is missing, ambiguous, unfinished or cannot be written."""


class DamagedError(CacheError):
    """Bytes on disk differ from what was committed."""


class FormatError(CacheError):
    """A file has a format this version does not know."""


class SpaceError(CacheError):
    """The disk has no room for what is to be written."""


class HeadError(FeatcacheError, ValueError):
    """A head is unknown, damaged or was trained on other features."""


class RunError(FeatcacheError):
    """A run is unknown or its name is ambiguous."""


def unknown(
    what: str, got: str, known: Iterable[str], error: type[FeatcacheError] = OptionError
) -> FeatcacheError:
    """Return the error for a name that is not in a list: "Unknown head 'lin'. Known: knn, linear."."""
    return error(f"Unknown {what} {got!r}.", f"Known: {', '.join(sorted(known))}.")
