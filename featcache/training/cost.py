"""What a run costs: peak memory of this process and of the GPU."""

from __future__ import annotations

import sys


def peak_rss_bytes() -> int:
    """Return the largest resident memory this process has had so far, mapped cache pages included."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def peak_gpu_bytes() -> int:
    """Return the most GPU memory torch has allocated so far, 0 without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.max_memory_allocated())
