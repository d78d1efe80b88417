"""Every runtime that is installed keeps the contract; the choice among them; streams."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from featcache.backbones.runtimes import catalogue, openvino
from featcache.backbones.runtimes.base import Body, Work, in_chunks
from featcache.backbones.runtimes.catalogue import RUNTIMES, make
from featcache.backbones.runtimes.check import disagreement
from featcache.backbones.runtimes.choose import Speed, checked, choose, rate
from featcache.backbones.runtimes.eager import EagerBody
from featcache.backbones.runtimes.streams import in_streams
from featcache.errors import BackboneError, OptionError
from tests import kit_runtimes as kit

QUICK = [
    "torch",
    "native",
    "winograd",
    "openvino",
]  # torch.compile, which takes half a minute, is checked on one


def needs(name: str, precision: str = "fp32") -> Work:
    of = kit.work("squeezenet1_1", precision)
    why = RUNTIMES[name].absent(of.device, of.precision)
    if why:
        pytest.skip(f"no {name}: {why}")
    return of


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", QUICK)
def test_contract(name: str, check: Callable[[str, Work], None]) -> None:
    check(name, needs(name))


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [(name, "fp32") for name in ("squeezenet1_1", "resnet18", "swin_t")]
    + [(name, "bf16") for name in ("squeezenet1_1", "mobilenet_v3_small")],
)
@pytest.mark.parametrize("name", QUICK)
def test_features_are_those_of_eager_float32(name: str, precision: str, backbone: str) -> None:
    needs(name, precision)
    kit.agrees_with_eager_float32(name, kit.work(backbone, precision))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("pool", ["flatten", "gem", "avg:2"])
def test_several_nodes_and_every_pool(name: str, pool: str) -> None:
    needs(name)
    layers = ("features.0", "features.1", "features.6.cat")
    kit.agrees_with_eager_float32(name, kit.work("squeezenet1_1", layers=layers, pool=pool))


def test_compile_keeps_the_contract_and_compiles_once() -> None:
    """Neither other numbers of images nor of threads have it compile again."""
    needs("compile")
    of = kit.work("squeezenet1_1", layers=("features.2",))
    body = make("compile", of)
    made: dict[str, int] = {}

    def once(name: str, work: Work) -> Body:
        """One compilation for all checks."""
        made[name] = made.get(name, 0) + 1
        return body

    before, kit.make = kit.make, once  # type: ignore[assignment]
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            kit.agrees_with_eager_float32("compile", of)
            for check in kit.CHECKS:
                check("compile", of)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                kit.run(body, kit.images(1))
                assert torch.get_num_threads() == threads
    finally:
        kit.make = before
    assert made["compile"] > len(kit.CHECKS)


# -- what is absent, and what fails -----------------------------------------------------------------------


def test_unknown_and_absent_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    of = kit.work("squeezenet1_1")
    with pytest.raises(OptionError, match="Unknown runtime 'tpu'"):
        make("tpu", of)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match=r"openvino cannot be used here.*pip install 'featcache\[openvino\]'"
    ):
        make("openvino", of)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OptionError, match=r"no C\+\+ compiler"):
        make("compile", of)


def test_openvino_is_for_cpus_and_for_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    of = needs("openvino")
    on_gpu = Work(of.exact, of.cast, "fp32", "cuda:0", 64, 2)
    assert "not on cuda:0" in RUNTIMES["openvino"].absent("cuda:0", on_gpu.precision)
    assert on_gpu.streams == 1 and "not for cuda:0" in RUNTIMES["compile"].absent("cuda:0", on_gpu.precision)
    assert "fp16" in RUNTIMES["openvino"].absent("cpu", "fp16")
    monkeypatch.setattr(openvino, "_has_bf16", lambda: False)
    assert "no bfloat16" in RUNTIMES["openvino"].absent("cpu", "bf16")


def test_openvino_reports_nothing_to_its_makers() -> None:
    needs("openvino")
    import subprocess

    code = (
        "import sys; from featcache.backbones.runtimes import openvino as o; o._module()\n"
        "import openvino; assert 'openvino_telemetry.main' not in sys.modules\n"
        "assert openvino.convert_model and 'openvino_telemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_runtime_that_cannot_do_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    of = needs("openvino")

    def fail(*arguments: object) -> None:
        raise RuntimeError("no such\n operation")

    monkeypatch.setattr(openvino, "_converted", fail)
    with pytest.raises(BackboneError, match=r"openvino cannot run this backbone: no such operation\."):
        make("openvino", of)
    body, why = checked("openvino", of, kit.images(2))
    assert body is None and "no such operation" in why


# -- the self-check -----------------------------------------------------------------------------------------


def rows_like(exact: Tensor, error: float) -> dict[str, Tensor]:
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    return {"node": exact + error * noise * exact.std()}


def test_the_check_knows_what_each_precision_allows() -> None:
    exact = {"node": torch.randn(4, 500, generator=torch.Generator().manual_seed(0))}
    for precision, good, bad in (("fp32", 1e-4, 1e-3), ("fp16", 1e-2, 2e-2), ("bf16", 3e-2, 6e-2)):
        assert disagreement(rows_like(exact["node"], good), exact, precision) == ""
        assert disagreement(rows_like(exact["node"], bad), exact, precision) != ""
    one = {"node": exact["node"].clone()}
    one["node"][2, 7] += 0.01 * exact["node"].std()
    assert "off by 1.0e-02" in disagreement(one, exact, "fp32")
    one["node"][2, 7] = float("nan")
    assert "not finite" in disagreement(one, exact, "bf16")
    assert "rows of shape (4, 499)" in disagreement({"node": exact["node"][:, 1:]}, exact, "fp32")
    far = rows_like(exact["node"], 0.06)
    assert disagreement(rows_like(exact["node"], 0.065), exact, "bf16", far) == ""  # the network's doing
    assert disagreement(rows_like(exact["node"], 0.08), exact, "bf16", far) != ""
    assert "instead of node" in disagreement({"other": exact["node"]}, exact, "fp32")


def test_rows_of_zeros_agree_with_zeros() -> None:
    exact = {"node": torch.zeros(2, 5)}
    exact["node"][1] = 1
    assert disagreement({"node": exact["node"].clone()}, exact, "fp32") == ""
    assert "cosine" in disagreement({"node": torch.ones(2, 5)}, exact, "fp32")


# -- the choice ---------------------------------------------------------------------------------------------


class FastBody(EagerBody):
    """Eager by another name."""

    name = "openvino"


class WrongBody(EagerBody):
    """Eager, but for one value."""

    name = "openvino"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        rows = super().__call__(images)
        return {node: values + (torch.arange(values.shape[1]) == 3) for node, values in rows.items()}


def speeds(**rates: float) -> Callable[[Body, Work, Tensor], float]:
    return lambda body, work, sample: rates[body.name]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let only these runtimes be there besides torch."""

    def set_(**kinds: type[Body]) -> None:
        absent = type("Absent", (EagerBody,), {"absent": staticmethod(lambda *given: "not here")})
        chosen = {
            "torch": EagerBody,
            "native": absent,
            "winograd": absent,
            "compile": absent,
            "openvino": absent,
            **kinds,
        }
        for name, kind in chosen.items():
            monkeypatch.setitem(catalogue.RUNTIMES, name, kind)

    return set_


def test_the_fastest_is_taken_where_it_pays(only: Callable[..., None]) -> None:
    only(openvino=FastBody)
    of, sample = kit.work("squeezenet1_1"), kit.images(2)
    chosen = choose(of, 10_000, sample, {}, speeds(torch=100, openvino=150))
    assert chosen.body.name == "openvino"
    assert {name: speed.rate for name, speed in chosen.speeds.items()} == {"torch": 100, "openvino": 150}
    assert chosen.speeds["openvino"].setup > 0
    few = choose(of, 1_000, sample, {}, speeds(torch=100, openvino=150))
    assert few.body.name == "torch" and set(few.speeds) == {"torch"}
    slower = choose(of, 10_000, sample, {}, speeds(torch=100, openvino=101))
    assert slower.body.name == "torch" and "openvino" in slower.speeds


def test_what_is_known_is_not_measured_again(only: Callable[..., None]) -> None:
    only(openvino=FastBody)
    of, sample = kit.work("squeezenet1_1"), kit.images(2)

    def never(*arguments: object) -> float:
        raise AssertionError("measured")

    known = {"torch": Speed(100.0), "openvino": Speed(200.0, 4.0)}
    assert choose(of, 1_000, sample, known, never).body.name == "openvino"  # saves 5 s, costs 4
    assert choose(of, 700, sample, known, never).body.name == "torch"  # saves 3.5 s
    known = {"torch": Speed(100.0), "openvino": Speed(90.0, 4.0)}
    chosen = choose(of, 10**9, sample, known, never)
    assert chosen.body.name == "torch" and chosen.speeds == {}


def test_a_wrong_or_broken_runtime_is_left_out_with_a_note(only: Callable[..., None]) -> None:
    of, sample = kit.work("squeezenet1_1"), kit.images(2)
    only(openvino=WrongBody)
    chosen = choose(of, 10_000, sample, {}, speeds(torch=100, openvino=150))
    assert chosen.body.name == "torch"
    assert any("openvino is not used: a row has a cosine of" in note for note in chosen.notes), chosen.notes

    class Broken(EagerBody):
        name = "openvino"

        def __init__(self, work: Work) -> None:
            raise ValueError("does not work")

    only(openvino=Broken)
    chosen = choose(of, 10_000, sample, {}, speeds(torch=100, openvino=150))
    assert chosen.body.name == "torch" and "does not work" in chosen.notes[0]


def test_a_runtime_that_fails_at_work_is_left_out_with_a_note(only: Callable[..., None]) -> None:
    class Failing(EagerBody):
        name = "openvino"

        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            raise RuntimeError("shapes do not fit")

    only(openvino=Failing)
    chosen = choose(kit.work("squeezenet1_1"), 10_000, kit.images(2), {}, speeds(torch=100, openvino=150))
    assert chosen.body.name == "torch" and "shapes do not fit" in chosen.notes[0]


def test_a_runtime_that_has_nothing_to_do_in_a_network_is_not_tried(only: Callable[..., None]) -> None:
    none, some = kit.work("mobilenet_v3_small"), kit.work("squeezenet1_1")
    kind = RUNTIMES["winograd"]
    only(winograd=kind)
    assert kind.helps(some) and not kind.helps(none)
    chosen = choose(none, 10**6, kit.images(2), {"openvino": Speed(1.0)}, speeds(torch=1000, winograd=5000))
    assert chosen.body.name == "torch" and "winograd" not in chosen.speeds


def test_a_new_runtime_is_tried_beside_those_that_are_known(only: Callable[..., None]) -> None:
    new = type("New", (EagerBody,), {"name": "winograd"})
    only(openvino=FastBody, winograd=new)
    known = {"torch": Speed(100.0), "openvino": Speed(200.0, 1.0)}
    chosen = choose(kit.work("squeezenet1_1"), 10_000, kit.images(2), known, speeds(winograd=300))
    assert chosen.body.name == "winograd" and set(chosen.speeds) == {"winograd"}


def test_what_stands_in_for_a_runtime_is_not_tried_beside_it(only: Callable[..., None]) -> None:
    spare = type("Spare", (EagerBody,), {"name": "winograd", "stands_in_for": "native"})
    fast = type("Fast", (EagerBody,), {"name": "native"})
    of, sample = kit.work("squeezenet1_1"), kit.images(2)
    assert RUNTIMES["winograd"].stands_in_for == "native"
    only(native=fast, winograd=spare)
    chosen = choose(of, 10_000, sample, {}, speeds(torch=100, native=200))
    assert chosen.body.name == "native" and set(chosen.speeds) == {"torch", "native"}
    slow = choose(of, 10_000, sample, {}, speeds(torch=100, native=90, winograd=150))
    assert slow.body.name == "winograd", "where that one is no gain"


def test_a_call_of_winograds_has_one_thread_and_is_filled() -> None:
    """How many threads share a product decides its last bits."""
    of = kit.work("resnet18")
    for threads, chunk in ((1, 8), (2, 8), (3, 5), (8, 4), (64, 4)):
        work = Work(of.exact, of.cast, "fp32", "cpu", 64, threads)
        body = make("winograd", work)
        assert work.threads_of(body) == 1 and body.chunk == chunk  # type: ignore[attr-defined]
    assert work.threads_of(make("torch", work)) == 8
    extractor = kit.extractor("resnet18")
    extractor.work = Work(of.exact, of.cast, "fp32", "cpu", 64, 64)
    extractor.use(body)
    assert extractor.threads_each == 1
    extractor.use(make("torch", extractor.work))
    assert extractor.threads_each == 8


def test_a_body_is_timed_with_all_its_streams() -> None:
    of = kit.work("squeezenet1_1", layers=("features.0",))
    seen: set[str] = set()

    class Seen(EagerBody):
        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            seen.add(threading.current_thread().name)
            time.sleep(0.001)
            return super().__call__(images)

    assert rate(Seen(of), of, kit.images(1)) > 1
    assert len(seen) == of.streams == 2


def test_streams_of_a_machine() -> None:
    of = kit.work("squeezenet1_1")
    for threads, wanted in ((1, (1, 1, 16)), (2, (2, 1, 16)), (8, (8, 1, 4)), (64, (8, 8, 4))):
        work = Work(of.exact, of.cast, "fp32", "cpu", 64, threads)
        assert (work.streams, work.threads_each, work.chunk) == wanted


# -- chunks and streams -----------------------------------------------------------------------------------


def test_chunks_are_all_of_one_size() -> None:
    sizes: list[int] = []

    def double(x: Tensor) -> dict[str, Tensor]:
        sizes.append(len(x))
        return {"node": 2 * x.flatten(1)}

    x = torch.arange(7.0).view(7, 1, 1, 1)
    assert in_chunks(x, 3, double)["node"].flatten().tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_streams_keep_the_order_and_restore_the_threads(streams: int) -> None:
    before = torch.get_num_threads()
    inside: list[tuple[int, str]] = []

    def work(n: int) -> int:
        inside.append((torch.get_num_threads(), threading.current_thread().name))
        time.sleep(0.01 * (3 - n % 3))
        return n * n

    assert list(in_streams(work, range(10), streams, 1)) == [n * n for n in range(10)]
    assert torch.get_num_threads() == before
    if streams > 1:
        assert len({name for _, name in inside}) == streams
        assert {count for count, _ in inside} == {1}
        fresh: list[int] = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [before]


def test_streams_take_few_items_ahead_and_stop_at_an_error() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    def work(n: int) -> int:
        if n == 5:
            raise ValueError("five")
        return n

    got: list[int] = []
    with pytest.raises(ValueError, match="five"):
        for n in in_streams(work, items(), 2, 1):
            got.append(n)
            assert len(taken) <= n + 4
    assert got == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("forward")]
