"""How long featcache's and scikit-learn's logistic regression take to one and the same objective.

featcache solves the problem at several `--tols`; each ends at some objective (mean loss + penalty, in
float64). scikit-learn solves it once, far, and says after each of its iterations where it is: so the time is
known at which it first was as low as each of featcache's ends. Both get the same mapped float16 table, and
all that a fit takes counts: moments, standardising, converting. Printed is the ratio of the two times.

    python bench/same_objective.py [--table X.npy --labels y.npy | --rows N --columns D]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from convex import head_of, peer_fit, reached, synthetic


def opened(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return the mapped table, once all of it has been read into the page cache, and the labels."""
    with open(options.table, "rb") as file:
        while file.read(1 << 26):
            pass
    return np.load(options.table, mmap_mode="r"), np.load(options.labels)


def ours(options: argparse.Namespace) -> list[dict[str, float]]:
    """Return tol, seconds, passes and objective of each of featcache's solutions."""
    X, y = opened(options)
    import featcache.heads.linear  # noqa: F401  # importing is no part of a fit

    found = []
    for tol in options.tols:
        options.tol = tol
        head = head_of(options, options.C, "featcache")
        start = time.perf_counter()
        head.fit(X, y)
        seconds = time.perf_counter() - start
        value = reached(X, y, options.C, head, options)
        found.append({"tol": tol, "seconds": seconds, "passes": int(head.n_iter_), "objective": value})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def peers(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Return seconds since the fit began and objective after each of scikit-learn's iterations."""
    from sklearn.linear_model import _logistic

    X, y = opened(options)
    course: list[tuple[float, float]] = []
    minimize, start = _logistic.optimize.minimize, time.perf_counter()

    def watched(*given, **named):
        def after(intermediate_result):
            course.append((time.perf_counter() - start, float(intermediate_result.fun)))
            if course[-1][1] <= options.until or course[-1][0] > options.seconds:
                raise StopIteration

        return minimize(*given, **(named | {"callback": after}))

    _logistic.optimize.minimize = watched
    options.tol = 1e-12
    heads, _ = peer_fit(X, y, [options.C], options)
    last = reached(X, y, options.C, heads[0], options)
    print(f"scikit-learn says {course[-1][1]:.9f}; in float64 that is {last:.9f}", file=sys.stderr)
    return course


def run(which: str, options: argparse.Namespace, **more: float) -> list:
    """Run one side in a process of its own."""
    given = {"table": options.table, "labels": options.labels, "C": options.C, "seconds": options.seconds}
    arguments = [f"--{name}={value}" for name, value in (given | more).items()]
    arguments += ["--tols", *map(str, options.tols)]
    done = subprocess.run(
        [sys.executable, __file__, f"--one={which}", *arguments], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--table")
    parser.add_argument("--labels")
    parser.add_argument("--C", type=float, default=0.01)
    parser.add_argument("--tols", type=float, nargs="+", default=[1e-4, 1e-5, 1e-6])
    parser.add_argument("--seconds", type=float, default=600, help="after which scikit-learn is stopped")
    parser.add_argument("--until", type=float, default=-np.inf, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.head, options.device, options.max_iter = "logreg", "cpu", 100_000
    if options.one:
        print(json.dumps({"ours": ours, "peers": peers}[options.one](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.table is None:
            options.table, options.labels = synthetic(options.rows, options.columns, Path(folder))
        shape = np.load(options.table, mmap_mode="r").shape
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        print(f"{shape[0]} × {shape[1]}, C = {options.C:g}, {threads} threads", flush=True)
        found = run("ours", options)
        lowest = min(each["objective"] for each in found)
        course = run("peers", options, until=lowest)
        for each in found:
            when = next((at for at, value in course if value <= each["objective"]), None)
            count = next((n for n, (_, value) in enumerate(course, 1) if value <= each["objective"]), None)
            peer = f"not in {course[-1][0]:.0f} s" if when is None else f"{when:.1f} s, {count} iterations"
            ratio = (course[-1][0] if when is None else when) / each["seconds"]
            print(
                f"tol {each['tol']:.0e}   objective {each['objective']:.8f} (above the lowest "
                f"{each['objective'] / lowest - 1:.1e})   featcache {each['seconds']:.1f} s, "
                f"{each['passes']} passes   scikit-learn {peer}   × {'> ' * (when is None)}{ratio:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
