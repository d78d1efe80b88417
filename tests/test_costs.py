"""Costs: what is measured is this process's, within the block, and unknown stays unknown."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time

import pytest

from featcache import costs
from featcache.costs import SINCE_MEASUREMENT, SINCE_START, Costs, Meter, costs_of

MB = 1 << 20
resettable = pytest.mark.skipif(not costs._reset_ram(), reason="the kernel's record cannot be set back here")


def _fill(megabytes: int) -> None:
    # Pages of one's own: what an allocator kept of earlier tests would be used again and not be seen.
    with mmap.mmap(-1, megabytes * MB) as block:
        for start in range(0, len(block), 4096):
            block[start] = 1


@resettable
def test_the_peak_is_that_of_the_block_and_not_of_what_came_before() -> None:
    _fill(300)
    with Meter() as small:
        _fill(20)
    with Meter() as large:
        _fill(150)
    growth = [m.costs(reads="features") for m in (small, large)]
    for found, megabytes in zip(growth, (20, 150), strict=True):
        assert found.ram_since == SINCE_MEASUREMENT
        assert found.peak_ram_bytes is not None and found.ram_before_bytes is not None
        assert 0.8 * megabytes <= (found.peak_ram_bytes - found.ram_before_bytes) / MB <= megabytes + 60


@resettable
def test_a_meter_within_another_takes_nothing_from_it() -> None:
    with Meter() as outer:
        _fill(200)
        with Meter() as inner:
            _fill(20)
        with Meter():
            pass
    big, little = outer.costs(reads="images"), inner.costs(reads="images")
    assert big.peak_ram_bytes is not None and little.peak_ram_bytes is not None
    assert big.peak_ram_bytes - little.peak_ram_bytes > 100 * MB


def test_where_the_record_cannot_be_set_back_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_reset_ram", lambda: False)
    with Meter() as meter:
        pass
    found = meter.costs(reads="features")
    assert found.ram_since == SINCE_START and (found.peak_ram_bytes or 0) > 10 * MB


def test_where_memory_is_unknown_it_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_status", lambda name: None)
    monkeypatch.setitem(sys.modules, "resource", None)
    with Meter() as meter:
        pass
    found = meter.costs(reads="features")
    assert (found.peak_ram_bytes, found.ram_before_bytes, found.ram_since) == (None, None, None)


def test_seconds_and_rates() -> None:
    with Meter() as meter:
        with meter.fitting(rows=500):
            time.sleep(0.05)
        with meter.predicting(rows=100):
            time.sleep(0.02)
        meter.add_prediction(1.0, 400)
    found = meter.costs(reads="images", parameters=7, parameters_trained=5, disk_bytes=99)
    assert 0.05 <= (found.fit_seconds or 0) < 5 and 1.02 <= (found.predict_seconds or 0) < 5
    assert found.predict_rows == 500 and found.fit_rows == 500
    assert found.images_per_second == pytest.approx(500 / (found.predict_seconds or 1))
    assert found.predict_seconds_per_1000 == pytest.approx(2 * (found.predict_seconds or 0))
    assert (found.parameters, found.parameters_trained, found.disk_bytes, found.together) == (7, 5, 99, 1)
    assert Costs.from_record(found.to_record()) == found


def test_what_is_unknown_is_none_and_not_zero() -> None:
    empty = Costs()
    assert all(value is None for value in empty.to_record().values())
    assert (empty.images_per_second, empty.predict_seconds_per_1000, empty.fit_images_per_second) == (
        None,
    ) * 3
    assert Costs(predict_rows=5, predict_seconds=0.0).images_per_second is None


@pytest.mark.parametrize(
    "record", [None, [], "x", {"fit_seconds": "soon", "peak_ram_bytes": True, "reads": 3}]
)
def test_what_a_stranger_wrote_is_unknown(record: object) -> None:
    assert Costs.from_record(record) == Costs()
    assert Costs.from_record({"fit_seconds": -1.0, "disk_bytes": 1.5, "together": 2}) == Costs(together=2)
    assert Costs.from_record({"fit_seconds": float("nan")}) == Costs()


def test_a_run_of_before_tells_what_it_knows() -> None:
    old = {
        "fit_seconds": 2.5,
        "peak_rss_bytes": 3 * MB,
        "peak_gpu_bytes": 0,
        "val": {"n": 10, "predict_seconds": 0.5},
        "test": {"n": 30, "predict_seconds": 0.5},
    }
    found = costs_of(old)
    assert (found.fit_seconds, found.images_per_second, found.peak_ram_bytes) == (2.5, 40.0, 3 * MB)
    assert found.ram_since == SINCE_START and found.peak_gpu_bytes is None and found.disk_bytes is None
    assert costs_of({"costs": {"fit_seconds": 1.0}, "fit_seconds": 9.0}) == Costs(fit_seconds=1.0)
    assert costs_of({}).predict_rows is None


def test_measuring_does_not_import_torch() -> None:
    code = (
        "import sys; from featcache.costs import Meter\n"
        "with Meter() as m: pass\n"
        "assert m.costs(reads='features').peak_gpu_bytes is None\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpu_memory_is_the_sum_over_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        peaks: dict[int, int] = {0: 500, 1: 70}  # noqa: RUF012

        def is_available(self) -> bool:
            return True

        def is_initialized(self) -> bool:
            return True

        def device_count(self) -> int:
            return 2

        def synchronize(self) -> None:
            pass

        def max_memory_allocated(self, device: int) -> int:
            return self.peaks[device]

        def reset_peak_memory_stats(self, device: int) -> None:
            self.peaks[device] = 10

    cuda = Cuda()
    monkeypatch.setattr(costs, "_cuda", lambda: cuda)
    with Meter() as meter:
        cuda.peaks[1] = 30
    assert meter.costs(reads="features").peak_gpu_bytes == 40


def test_every_cost_is_in_the_ledger_in_json_and_in_the_report() -> None:
    from featcache.commands.json_parts import COSTS
    from featcache.reporting.tables import COLUMNS as SHOWN
    from featcache.training.columns import COLUMNS

    there = {path[-1] for _, path in COLUMNS.values()}
    wanted = {
        "fit_seconds", "predict_seconds_per_1000", "images_per_second", "peak_ram_bytes", "peak_gpu_bytes",
        "parameters_trained", "parameters", "disk_bytes",
    }  # fmt: skip
    assert wanted <= there and wanted <= set(COSTS) and set(COSTS) == set(Costs().told())
    titles = {column.title for column in SHOWN}
    assert {"fit", "predict 1000", "peak RAM", "peak GPU", "learned", "on disk"} <= titles
