"""A shard with a filter that HDF5 does not know never makes HDF5 look for a plugin, which would be run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.store.cache import Cache
from tests.faults import strangers, toys
from tests.faults.test_strangers import HOSTILE
from tests.faults.trials import tally
from tests.kit_caches import features

# Not registered; then filters that there are plugins for: Blosc, LZ4, bitshuffle, Zstandard, ZFP.
FILTERS = (32_099, 65_535, 32_001, 32_004, 32_008, 32_015, 32_013)
PLUGIN = """
#include <sys/stat.h>
__attribute__((constructor)) static void run(void) { mkdir(TRACE, 0700); }
int H5PLget_plugin_type(void) { mkdir(TRACE, 0700); return 0; }
const void *H5PLget_plugin_info(void) { mkdir(TRACE, 0700); return 0; }
"""
READING = """
import sys
import numpy
from featcache.errors import DamagedError
from featcache.store import shard
from featcache.store.cache import Cache

for path in sys.argv[1:]:
    cache = Cache(path)
    assert any(why for _, why in cache.verify()), path
    try:
        numpy.asarray(cache.table("train", val_fraction=0).X).sum()
    except DamagedError as error:
        print("refused" if "is not stored plainly" in error.message else error.message)
    else:
        print("accepted", path)
"""
PLAINLY = """
import sys
import h5py

for path in sys.argv[1:]:
    with h5py.File(path) as file:
        for name in file:
            try:
                file[name][...]
            except OSError as error:
                print(name, error)
"""


@pytest.fixture
def plugins(place: Path) -> Path:
    """A folder with a library that leaves a trace in it as soon as it is loaded.

    Where there is no compiler it is no library: that it was opened is noticed all the same.
    """
    folder = place / "plugins"
    folder.mkdir()
    library = folder / "libcanary.so"
    compiler = shutil.which("cc")
    if compiler is None:
        library.write_bytes(b"\x7fELF" + bytes(60))
        return folder
    source = place / "canary.c"
    source.write_text(PLUGIN)
    trace = f'-DTRACE="{folder / "ran"}"'
    subprocess.run([compiler, "-shared", "-fPIC", trace, "-o", library, source], check=True, timeout=60)
    return folder


def _filtered(name: str, number: int) -> bytes:
    """Return a shard of which one array has a filter of this number, and chunks that were written with it."""
    rows = np.arange(toys.ROWS_PER_SHARD)
    arrays = {
        "features": features(rows, toys.WIDTH),
        "label": rows % 3,
        "row": rows,
        "status": np.zeros(len(rows), np.uint8),
    }
    array = arrays.pop(name)

    def make(file: h5py.File, given: strangers.Arrays, outside: Path) -> None:
        strangers._put(file, given)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk(array.shape)
        layout.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        kind, space = h5py.h5t.py_create(array.dtype), h5py.h5s.create_simple(array.shape)
        made = h5py.h5d.create(file.id, name.encode(), kind, space, layout)
        made.write_direct_chunk((0,) * array.ndim, array.tobytes(), 0)

    return strangers.shard_bytes(make, arrays, Path())


def _forged(place: Path) -> Iterator[Path]:
    """Make a cache for every array and filter, in the first shard of which that array has that filter."""
    good = toys.start(place / "good")
    toys.commit_all(good)
    for name in ("features", "label", "row", "status"):
        for number in FILTERS:
            here = place / f"{name}-{number}" / good.name
            shutil.copytree(good.path, here)
            strangers.forge(Cache(here), _filtered(name, number))
            yield here


def _in_a_new_process(code: str, plugins: Path, paths: list[Path]) -> list[str]:
    """Run some code in a Python that is told where plugins are; return the lines it prints."""
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(plugins)}
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_unknown_filter_makes_hdf5_look_for_no_plugin(place: Path, plugins: Path) -> None:
    caches = list(_forged(place))
    with tally(HOSTILE, "an unknown filter on each array of a shard, a plugin at hand for it") as found:
        with strangers.unread(plugins):
            said = _in_a_new_process(READING, plugins, caches)
        assert said == ["refused"] * len(caches)
        for line in said:
            found.add(f"{line}, the plugin untouched")


def test_the_plugin_would_be_run(place: Path, plugins: Path) -> None:
    """Plain h5py runs it: what the test above says never happens is noticed where it does."""
    for number in FILTERS:
        path = place / f"{number}.h5"
        path.write_bytes(_filtered("features", number))
        with pytest.raises(AssertionError, match=r"something was run|was opened"), strangers.unread(plugins):
            _in_a_new_process(PLAINLY, plugins, [path])
        (plugins / "ran").rmdir() if shutil.which("cc") else None
