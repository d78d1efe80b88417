"""Peak memory of `featcache train-head` on a large cache, kind by kind, against the size of its table.

A cache of random rows around a centre a class is made in a folder (kept with --features-dir); a random fifth
of its rows validates, so that what is trained on are scattered rows. Each training is a process of its own:
the command, from its start to its stored run. What Python with torch takes without any table is printed
apart. With --budgets the same head is trained within shares of the table, and the digest of its weights
must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES = 10
EPOCHS = {"mlp": "2", "linear": "2"}


def cache(folder: Path, rows: int, columns: int) -> None:
    """Write a cache of float16 rows in one split."""
    from featcache.recipe import Node, Preprocess, Recipe, Weights, sha256_of
    from featcache.store.cache import Cache
    from featcache.store.plan import Plan, rows_of_shards
    from featcache.store.records import cache_key

    rng = np.random.default_rng(0)
    labels = (np.arange(rows) % CLASSES).astype(np.int64)
    hashes = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
    plan = Plan([f"train/{row:07d}.png" for row in range(rows)], labels, np.zeros(rows, np.uint8), hashes)
    recipe = Recipe(
        backbone="vgg16",
        weights=Weights("random:0", "0" * 64),
        nodes=(Node("avgpool", "flatten"),),
        preprocess=Preprocess("auto", 256, 224),
    )
    fingerprint = sha256_of(["memory", rows, columns])
    key = cache_key(recipe.fingerprint, fingerprint)
    record = {
        "key": key,
        "recipe": recipe.to_dict(),
        "dataset": {
            "name": "memory",
            "fingerprint": fingerprint,
            "classes": [str(name) for name in range(CLASSES)],
            "rows": plan.counts(),
            "ignored": {"count": 0, "first": []},
        },
        "columns": {"avgpool": columns},
        "rows_per_shard": rows_of_shards(columns, "float16"),
        "request": {},
        "versions": {},
    }
    made = Cache.create(folder / f"memory--vgg16--{key[:10]}", record, plan)
    centres = rng.normal(size=(CLASSES, columns)).astype(np.float32)
    for part in made.todo():
        noise = rng.standard_normal((len(part.rows), columns), dtype=np.float32)
        made.commit(part, {"avgpool": (centres[labels[part.rows]] + 30 * noise).astype(np.float16)}, [])
    made.seal()


def command(arguments: list[str]) -> tuple[int, float]:
    """Return the peak in bytes and the seconds of a Python command, which must not fail."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = process.stderr.read().decode() if process.stderr else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{arguments} failed: {said}")
    return usage.ru_maxrss * 1024, time.perf_counter() - begin


def digest(features: Path) -> str:
    """Return a digest of the newest run's weights."""
    newest = max(features.glob("*/heads/*/run.json"), key=lambda path: path.stat().st_mtime_ns)
    from featcache.heads import saving

    head = saving.loads((newest.parent / "head.safetensors").read_bytes())
    values = [getattr(head, name) for name in ("coef_", "coefs_") if hasattr(head, name)]
    flat = [np.asarray(each) for value in values for each in (value if isinstance(value, list) else [value])]
    return hashlib.sha256(b"".join(each.tobytes() for each in flat)).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=25_088)
    parser.add_argument("--kinds", nargs="+", default=["mlp", "linear", "logreg", "svm", "ridge"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0], help="shares of the table; 0: none")
    parser.add_argument("--features-dir", type=Path)
    options = parser.parse_args()
    size = options.rows * options.columns * 2
    with tempfile.TemporaryDirectory() as folder:
        features = options.features_dir or Path(folder)
        if not list(features.glob("memory--*")):
            cache(features, options.rows, options.columns)
        bare, _ = command(["-c", "import torch, sklearn.linear_model; torch.zeros(1)"])
        print(
            f"table {options.rows} × {options.columns}: {size / 1e9:.2f} GB; torch alone {bare / 1e9:.2f} GB"
        )
        for kind in options.kinds:
            for share in options.budgets:
                for runs in features.glob("memory--*/heads"):
                    shutil.rmtree(runs)
                more = ["--epochs", EPOCHS[kind]] if kind in EPOCHS else []
                more += ["--memory-budget", str(int(size * share))] if share else []
                where = ["--features-dir", str(features), "--device", "cpu", "--json"]
                peak, seconds = command(["-m", "featcache", "train-head", "--head", kind, *where, *more])
                name = f"{kind}, budget {share:.2f} of it" if share else kind
                print(
                    f"{name:<26} {peak / 1e9:5.2f} GB = {peak / size:.2f} × the table, "
                    f"{(peak - bare) / size:.2f} × beside torch; {seconds:6.1f} s; "
                    f"weights {digest(features)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
