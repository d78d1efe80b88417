"""The tutorial is run from its first command to its last, in an empty folder, and says what comes out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from featcache.commands.root import run

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def pattern(line: str) -> re.Pattern[str]:
    """Return what a line of the page stands for: times, rates, sizes and other decimals are yours, ids too.

    Whole numbers are the page's, and "…" is anything.
    """
    pieces = []
    for piece in re.findall(r"…|\d+\.\d+(?:e-?\d+)?|\d+e-\d+|\b[0-9a-f]{8}\b|\b[0-9a-f]{10}\b|\s+|.", line):
        if piece == "…":
            pieces.append(".*")
        elif piece.isspace():
            pieces.append(r"\s+")
        elif re.fullmatch(r"\d+\.\d+(e-?\d+)?|\d+e-\d+", piece):
            pieces.append(r"(?:\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)")
        elif re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{10}", piece):
            pieces.append(f"[0-9a-f]{{{len(piece)}}}")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces))


def differs(said: str, page: str) -> str:
    """Return the first line of the page that was not said in its turn, "" where all were."""
    left = [line.strip() for line in said.splitlines() if line.strip()]
    skipping = False
    for line in (line.strip() for line in page.splitlines()):
        if line == "…":
            skipping = True
            continue
        while left and skipping and not pattern(line).fullmatch(left[0]):
            left.pop(0)
        if not left or not pattern(line).fullmatch(left.pop(0)):
            return line
        skipping = False
    return "" if skipping or not left else f"(nothing more, but there was) {left[0]}"


def commands(block: str) -> list[list[str] | str]:
    """Return a block's parts: arguments of featcache's commands, and other lines together for the shell."""
    found: list[list[str] | str] = []
    for line in block.splitlines():
        if line.startswith("featcache "):
            found.append(shlex.split(line)[1:])
        elif found and isinstance(found[-1], str):
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    return found


def test_the_tutorial(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATCACHE_REAL", str(real_data))
    said, wrong, shown = "", [], []
    for language, block in BLOCK.findall(PAGE.read_text()):
        if language == "text":
            if problem := differs(said, block):
                wrong.append(problem)
            shown.append(said)
        elif language == "python":
            exec(compile(block, str(PAGE), "exec"), {"__name__": "tutorial"})
        else:
            said = ""
            for part in commands(block):
                capfd.readouterr()
                if isinstance(part, str):
                    subprocess.run(["bash", "-euc", part], check=True)
                else:
                    assert run(part) == 0, (part, capfd.readouterr().err)
                out, err = capfd.readouterr()
                said += err + out
    if os.environ.get("FEATCACHE_TUTORIAL"):  # what to write into the page
        Path(os.environ["FEATCACHE_TUTORIAL"]).write_text("\n=====\n".join(shown))
    assert not wrong, "\n".join([*wrong, *shown])


def test_a_page_that_says_something_else_is_noticed() -> None:
    said = "done  features/a--b--0123456789\n  rows train 160 · 3.2 MB · 4.1 s\n160 images at 41.3 images/s\n"
    page = "done features/a--b--9999999999\nrows train 160 · 3.3 MB · 9.9 s\n160 images at 1.0 images/s\n"
    assert not differs(said, page) and not differs(said, "…\n160 images at 1.0 images/s\n")
    assert not differs(said, "done …\n…\n")
    assert differs(said, page.replace("160 ·", "161 ·")) == "rows train 161 · 3.3 MB · 9.9 s"
    assert "nothing more" in differs(said, page.rpartition("160")[0])
    assert differs(said, page + "and more\n") == "and more"
