"""Start-up: `featcache --help` and a warm hit on many images, as whole processes, medians of several runs."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = [sys.executable, "-m", "featcache"]


def seconds(command: list[str], runs: int) -> tuple[float, float]:
    """Return the median and the least wall time of a command, after one run that does not count."""
    times = []
    for number in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        if number:
            times.append(time.perf_counter() - begin)
    return statistics.median(times), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--extract", nargs="+", help="options of an extraction that is finished, to time its hit"
    )
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "featcache --help": [*PROGRAM, "--help"],
            "featcache ls": [*PROGRAM, "ls", "--features-dir", str(Path(folder))],
        }
        if options.extract:
            commands["warm hit"] = [*PROGRAM, "extract", *" ".join(options.extract).split()]
        for name, command in commands.items():
            median, least = seconds(command, options.runs)
            print(f"{name:<20} median {median:.3f} s   least {least:.3f} s", flush=True)


if __name__ == "__main__":
    main()
