"""What fitting and predicting cost, measured in one way for every system.

Seconds are of the wall clock. Memory is this process's own, not the machine's: on Linux the kernel's record
of its largest resident size (VmHWM), which is set back when a measurement begins; elsewhere the largest since
the process began, which is then said. Pages of mapped files that were touched count as resident. GPU memory
is what torch's allocator gave to tensors; other libraries' own is not in it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

SINCE_MEASUREMENT, SINCE_START = "measurement", "process start"


@dataclass(frozen=True)
class Costs:
    """What a system cost; None is unknown, and never the same as 0.

    `reads` says what the seconds begin with: "features" that lie in a cache, or "images" to be decoded.
    `peak_ram_bytes` is counted since `ram_since`: the measurement's beginning, or the process's where the
    record cannot be set back. `ram_before_bytes` of it were resident before anything was fitted: the
    interpreter, its libraries, and what the process had done before. `together` systems were fitted at
    once: seconds are each one's share, memory is that of all. `parameters` are numbers of the stored model,
    `parameters_trained` of these were learned. `fit_rows` counts a row as often as it was trained on.
    """

    fit_seconds: float | None = None
    fit_rows: int | None = None
    predict_seconds: float | None = None
    predict_rows: int | None = None
    reads: str | None = None
    peak_ram_bytes: int | None = None
    ram_before_bytes: int | None = None
    ram_since: str | None = None
    peak_gpu_bytes: int | None = None
    parameters_trained: int | None = None
    parameters: int | None = None
    disk_bytes: int | None = None
    together: int | None = None

    @property
    def predict_seconds_per_1000(self) -> float | None:
        """Seconds to predict a thousand rows."""
        per_second = self.images_per_second
        return 1000 / per_second if per_second else None

    @property
    def images_per_second(self) -> float | None:
        """Rows predicted in a second; see `reads` for what a row begins as."""
        return _rate(self.predict_rows, self.predict_seconds)

    @property
    def fit_images_per_second(self) -> float | None:
        """Rows trained on in a second of the fit."""
        return _rate(self.fit_rows, self.fit_seconds)

    def to_record(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    def told(self) -> dict[str, Any]:
        """Return all fields and what follows from them, as JSON values."""
        derived = ("predict_seconds_per_1000", "images_per_second", "fit_images_per_second")
        return {**self.to_record(), **{name: getattr(self, name) for name in derived}}

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Return what a record holds; what is missing, or not what it must be, is unknown."""
        if not isinstance(record, Mapping):
            return cls()
        return cls(**{field.name: _plain(field.name, record.get(field.name)) for field in fields(cls)})


def costs_of(run: Mapping[str, Any]) -> Costs:
    """Return the costs of a run's record, or what one of before there were any tells of them.

    Such a run's peak memory was its process's since that began.
    """
    if run.get("costs") is not None:
        return Costs.from_record(run["costs"])
    splits = [split for name in ("val", "test") if isinstance(split := run.get(name), Mapping)]
    seconds = [_plain("predict_seconds", split.get("predict_seconds")) for split in splits]
    rows = [_plain("predict_rows", split.get("n")) for split in splits]
    peak = _plain("peak_ram_bytes", run.get("peak_rss_bytes")) or None  # 0 was written for unknown
    return Costs(
        fit_seconds=_plain("fit_seconds", run.get("fit_seconds")),
        predict_seconds=None if not splits or None in seconds else sum(seconds),
        predict_rows=None if not splits or None in rows else sum(rows),
        reads="features",
        peak_ram_bytes=peak,
        ram_since=SINCE_START if peak else None,
        peak_gpu_bytes=_plain("peak_gpu_bytes", run.get("peak_gpu_bytes")) or None,
    )


class Meter:
    """Measures what happens within it; `costs` then tells.

    >>> with Meter() as meter:
    ...     with meter.fitting(rows=3):
    ...         total = sum([1, 2, 3])
    ...     with meter.predicting(rows=1):
    ...         total += 1
    >>> meter.costs(reads="features").fit_rows
    3

    Meters may lie within each other; each knows its own peak. Several in different threads see one
    process's memory.
    """

    def __init__(self) -> None:
        self._fit_seconds: float | None = None
        self._fit_rows: int | None = None
        self._predict_seconds: float | None = None
        self._predict_rows: int | None = None
        self._ram_before: int | None = None
        self._ram_peak: int | None = None
        self._ram_since: str | None = None
        self._gpu_peak: int | None = None

    def __enter__(self) -> Self:
        with _lock:
            _note_peaks()  # what the meters around this one have seen so far would be lost
            self._ram_before = _resident()
            self._ram_since = SINCE_MEASUREMENT if _reset_ram() else SINCE_START
            _reset_gpu()
            _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _note_peaks()
            _open.remove(self)

    @contextlib.contextmanager
    def fitting(self, rows: int | None = None) -> Iterator[None]:
        """Count the seconds of a block to fitting, and `rows` trained on, each as often as it is seen."""
        begin = _now()
        yield
        self.add_fit(_now() - begin, rows)

    @contextlib.contextmanager
    def predicting(self, rows: int) -> Iterator[None]:
        """Count the seconds of a block to predicting `rows`."""
        begin = _now()
        yield
        self.add_prediction(_now() - begin, rows)

    def add_fit(self, seconds: float, rows: int | None = None) -> None:
        """Count seconds that were measured elsewhere to fitting, and rows where they are known."""
        self._fit_seconds = (self._fit_seconds or 0.0) + seconds
        self._fit_rows = self._fit_rows if rows is None else (self._fit_rows or 0) + rows

    def add_prediction(self, seconds: float, rows: int) -> None:
        """Count seconds that were measured elsewhere to predicting `rows`."""
        self._predict_seconds = (self._predict_seconds or 0.0) + seconds
        self._predict_rows = (self._predict_rows or 0) + rows

    def costs(
        self,
        *,
        reads: str,
        parameters_trained: int | None = None,
        parameters: int | None = None,
        disk_bytes: int | None = None,
        together: int = 1,
    ) -> Costs:
        """Return what was measured so far, with what only the caller knows; see `Costs` for the arguments."""
        with _lock:
            if self in _open:
                _note_peaks()
        return Costs(
            fit_seconds=_rounded(self._fit_seconds),
            fit_rows=self._fit_rows,
            predict_seconds=_rounded(self._predict_seconds),
            predict_rows=self._predict_rows,
            reads=reads,
            peak_ram_bytes=self._ram_peak,
            ram_before_bytes=self._ram_before,
            ram_since=self._ram_since if self._ram_peak is not None else None,
            peak_gpu_bytes=self._gpu_peak,
            parameters_trained=parameters_trained,
            parameters=parameters,
            disk_bytes=disk_bytes,
            together=together,
        )


_lock = threading.RLock()
_open: list[Meter] = []


def _note_peaks() -> None:
    """Let every meter at work take note of the peaks since the last reset."""
    ram, gpu = peak_ram_bytes(), peak_gpu_bytes()
    for meter in _open:
        meter._ram_peak = _larger(meter._ram_peak, ram)
        meter._gpu_peak = _larger(meter._gpu_peak, gpu)


def peak_ram_bytes() -> int | None:
    """Return this process's largest resident size since it was last set back, or began; None if unknown."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def peak_gpu_bytes() -> int | None:
    """Return the most memory that torch's tensors had on this process's GPUs; None if it uses none."""
    cuda = _cuda()
    if cuda is None:
        return None
    return sum(int(cuda.max_memory_allocated(device)) for device in range(cuda.device_count()))


def _resident() -> int | None:
    return _status("VmRSS")


def _reset_ram() -> bool:
    """Set the kernel's record of the largest resident size back to the present one; return whether it did."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # see proc_pid_clear_refs(5)
    except OSError:
        return False
    return _status("VmHWM") is not None


def _reset_gpu() -> None:
    cuda = _cuda()
    if cuda is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def _cuda() -> Any:
    """Return torch.cuda if this process uses it; torch is not imported for it."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_available() and cuda.is_initialized() else None


def _now() -> float:
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()  # what was only queued is not done
    return time.perf_counter()


def _status(name: str) -> int | None:
    """Return a size of /proc/self/status in bytes, None where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith(f"{name}:")), None)
    except OSError:
        return None
    return None if line is None else int(line.split()[1]) * 1024


def _plain(name: str, value: Any) -> Any:
    """Return a field's value, None where it is not of the field's type, or below 0."""
    if name in ("reads", "ram_since"):
        return value if isinstance(value, str) else None
    kinds = (int, float) if name.endswith("_seconds") else (int,)
    return value if type(value) in kinds and 0 <= value < float("inf") else None


def _rate(count: int | None, seconds: float | None) -> float | None:
    return count / seconds if count is not None and seconds else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _larger(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else max(one, other)
