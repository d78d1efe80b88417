"""Figures by matplotlib, for the page and as files.

Matplotlib because it is kept well, draws one figure as SVG with its text as text and as PNG, and needs
neither a network nor a script to be looked at. On the page colours are names that its style sheet gives a
value to, light or dark.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from featcache.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
_DPI = 160
_RC: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and coloured
    "svg.hashsalt": "featcache",  # equal figures give equal bytes
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@dataclass(frozen=True)
class Palette:
    """The colours of figures. Those of things are Okabe and Ito's, told apart by most colour-blind people."""

    ink: str = "#1b2430"
    muted: str = "#5b6775"
    grid: str = "#d9dee5"
    card: str = "#ffffff"
    one: str = "#0072b2"
    two: str = "#d55e00"
    three: str = "#009e73"
    soft: str = "#9cc9e6"


PAPER = Palette()
# Colours that nothing else has, so that they can be found again in an SVG and replaced by names.
NAMED = Palette(*(f"#fe01{number:02x}" for number in range(len(fields(Palette)))))


def available() -> None:
    """Refuse to draw where what draws is missing.

    Raises:
        OptionError: saying how to get it.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"The page and the figures need {error.name}, which is not installed.",
            'Run: pip install "featcache[report]", or ask for --text, --json, --csv or --markdown.',
        ) from error


@contextmanager
def style(palette: Palette) -> Iterator[None]:
    """Draw in the house's style, without warnings of fonts that lack a sign of some language."""
    import matplotlib as mpl

    own: Any = {
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.muted,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "grid.color": palette.grid,
        "grid.linewidth": 0.8,
    }
    with mpl.rc_context(_RC | own), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message=".*does not support .* natively")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in points; its layout is made when it is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def to_page(figure: Figure, name: str, said: str) -> str:
    """Return a figure drawn in NAMED colours as SVG to be put into HTML.

    Args:
        figure: drawn within `style(NAMED)`.
        name: unique on the page, for the ids in it.
        said: what is read aloud in its place.
    """
    with style(NAMED):
        text = _saved(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>|<defs>\s*</defs>", "", text, flags=re.DOTALL
    )
    text = re.sub(r'(<svg [^>]*?) ?width="[^"]*"| ?height="[^"]*pt"', r"\1", text, count=2)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for field in fields(Palette):
        text = text.replace(getattr(NAMED, field.name), f"var(--{field.name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(said)}" ', 1)


def to_file(figure: Figure, kind: str) -> bytes:
    """Return a figure drawn in PAPER colours as the bytes of a PNG or SVG file."""
    with style(PAPER):
        return _saved(figure, kind, facecolor=PAPER.card)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata, **options)
    return buffer.getvalue()
