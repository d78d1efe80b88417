"""Several batches under way at once, each on its own threads, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from featcache.backbones.devices import exact_float32

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_streams(
    function: Callable[[Item], Result], items: Iterable[Item], streams: int, threads: int
) -> Generator[Result, None, None]:
    """Yield function(item) of each item, in order; `streams` of them are computed at once.

    One more waits, so that nobody is idle while a result is taken away. With one stream all happens in the
    calling thread. float32 is exact throughout: the setting belongs to the process, so it is held until the
    last is done, and not set and taken back by threads that overlap.

    Args:
        function: safe in several threads.
        items: taken one by one, in the calling thread.
        streams: calls at once.
        threads: torch's threads inside each call, where there is more than one stream.

    Raises:
        Exception: what `function` raised first, in the order of the items; no more are begun then.
    """
    if streams == 1:
        yield from map(function, items)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        streams, thread_name_prefix="forward", initializer=torch.set_num_threads, initargs=(threads,)
    )
    ahead: deque[Future[Result]] = deque()
    try:
        with exact_float32():
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > streams:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)  # new threads would otherwise take the streams' number
