"""Freed memory is kept while a network runs, and can be given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from featcache.backbones import heap

SCRIPT = """
import resource, sys, threading
import numpy as np
from featcache.backbones.heap import give_freed_memory_back, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.empty(100 << 20, np.uint8)[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

plain = faults()
assert keep_freed_memory() and keep_freed_memory()
found = []
thread = threading.Thread(target=lambda: (faults(), found.append(faults())))
thread.start()
thread.join()
kept = resident()
give_freed_memory_back()
print(plain, found[0], kept - resident())
"""


@pytest.mark.skipif(heap._glibc() is None, reason="the C library is not glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    plain, kept, given_back = map(int, told.split())
    pages = (100 << 20) // 4096
    # Where the system hands out huge pages, there are fewer faults; in any case hardly any are left.
    assert plain >= 5 * pages / 512 and kept < plain / 10
    assert given_back > 90 << 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert not heap.keep_freed_memory.__wrapped__()
    heap.give_freed_memory_back()
