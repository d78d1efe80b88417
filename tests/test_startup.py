"""What must start at once loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit_images import make_folder

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "h5py", "PIL", "pandas", "matplotlib", "numpy", "rich")
SCRIPT = """
import sys
from featcache.commands.root import run
code = run(sys.argv[2:])
heavy = [name for name in sys.argv[1].split(",") if name in sys.modules]
print("heavy:", heavy, file=sys.stderr)
sys.exit(code)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, ",".join(HEAVY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["extract", "--help"], ["train-head", "--help"], ["finetune", "--help"], ["ls"]]
)
def test_help_and_lists_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = _run(*arguments, *(["--features-dir", str(tmp_path)] if arguments == ["ls"] else []))
    assert done.returncode == 0 and "heavy: []" in done.stderr, done.stderr


def test_a_warm_hit_loads_nothing_heavy(tmp_path: Path) -> None:
    import os
    import time

    folder = make_folder(tmp_path / "photos", train=2, test=1)
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1, 1))
    time.sleep(2.1)  # what changed within the last two seconds is not remembered
    options = "--backbone squeezenet1_1 --weights random:0 --image-size 48"
    arguments = ["extract", "--dataset", f"folder:{folder}", *options.split()]
    arguments += ["--features-dir", str(tmp_path / "features")]
    assert _run(*arguments).returncode == 0
    again = _run(*arguments)
    assert again.stdout.startswith("hit") and "heavy: []" in again.stderr, again.stderr


def test_the_package_loads_nothing_heavy() -> None:
    code = f"import featcache, sys; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import featcache

    assert all(getattr(featcache, name) is not None for name in featcache.__all__)
    with pytest.raises(AttributeError):
        featcache.nothing  # noqa: B018


def test_the_versions_recorded_are_those_installed() -> None:
    from importlib import metadata

    from featcache.extraction.request import RECORDED, versions

    assert versions() == {"featcache": metadata.version("featcache")} | {
        name: metadata.version(name) for name in RECORDED
    }
