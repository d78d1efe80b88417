"""How long work tells that it goes on: one callable, drawn by the command line or by nobody."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("train", "reading", …), how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""
