"""Numbers as people read them; what is not known is called unknown, and never 0."""

from __future__ import annotations

UNKNOWN = "unknown"


def plain(text: str) -> str:
    """Return text without control characters, direction marks and broken code points: these are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def short(text: str, most: int) -> str:
    """Return text of at most so many characters, its end cut off where it is longer."""
    clean = plain(text)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share of 1 as per cent: .7546 is "75.5 %"."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def span(low: float, high: float) -> str:
    """Return an interval of shares in per cent, without the sign: "74.6–76.3"."""
    return f"{100 * low:.1f}–{100 * high:.1f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits behind the point."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def count(number: int | None) -> str:
    """Return a whole number with its thousands apart: "40 000"."""
    return UNKNOWN if number is None else f"{number:,}".replace(",", " ")


def seconds(value: float | None) -> str:
    """Return a duration: "0.4 ms", "350 ms", "4.3 s", "3 min 20 s", "2 h 5 min"."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{1000 * value:.{2 if value < 0.001 else 1 if value < 0.01 else 0}f} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(amount: float | None) -> str:
    """Return bytes in decimal units: "61.4 MB"."""
    if amount is None:
        return UNKNOWN
    if amount < 1000:
        return f"{amount:.0f} B"
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"
