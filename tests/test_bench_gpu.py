"""The benchmark of a device, in miniature and on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.py"


def test_every_stage_is_measured(tmp_path: Path) -> None:
    options = "--device cpu --backbone squeezenet1_1 --image-size 48 --limit 6 --rounds 2 --runs 2 --side 256"
    command = [sys.executable, str(SCRIPT), *options.split(), "--json", str(tmp_path / "figures.json")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1]).stdout
    (found,) = json.loads((tmp_path / "figures.json").read_text())
    stages = ["decode and fit", "pixels there", "rows back", "normalise", "forward only", "cast and check"]
    assert list(found["stages"])[:6] == stages
    assert all(rate > 0 for rate in (*found["stages"].values(), *found["machine"].values(), *found["rounds"]))
    assert found["whole"] == max(found["rounds"]) and len(found["rounds"]) == 2
    assert found["of forward only"] == pytest.approx(found["whole"] / found["stages"]["forward only"])
    assert found["narrowest"] in found["stages"] and found["narrowest"] in told
    # At 224 squeezenet1_1 takes .70 GFLOP an image (two a multiplication and addition); at 48, where its
    # borders weigh more, somewhat less than the area's share of that.
    assert 0.01 < found["GFLOP an image"] < 0.70 * (48 / 224) ** 2
