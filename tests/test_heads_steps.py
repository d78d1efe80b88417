"""What a training step is made of: recorded steps, Adam for many heads, tables in every place, precisions."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from featcache.errors import HeadError
from featcache.heads import adam
from featcache.heads import rows as rows_module
from featcache.heads.adam import Large, Rule, fused
from featcache.heads.adams import Adams, FlatAdams, GroupAdams
from featcache.heads.batched import check_data, fit_together
from featcache.heads.catalogue import create
from featcache.heads.masks import Masks
from featcache.heads.measuring import check_all_finite, measured
from featcache.heads.network import Network
from featcache.heads.neural import LinearHead, MLPHead
from featcache.heads.products import Products, rounded
from featcache.heads.rows import Rows
from featcache.heads.scaling import moments
from featcache.heads.stack import Stack
from featcache.heads.steps import Step
from featcache.heads.tables import Shared, Streamed
from featcache.selection import Selection, is_mapped_file
from tests.kit_heads import same

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> tuple[Any, ...]:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float16)
    return X[:600], y[:600], X[600:900], y[600:900]


def _record_everywhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let training work as with CUDA graphs: a step that is recorded is repeated without its arguments."""
    repeats = [0]

    def record(step: Step) -> Step:
        def repeat() -> None:
            repeats[0] += 1
            step()

        return repeat

    for module in ("epochs", "batched"):
        monkeypatch.setattr(f"featcache.heads.{module}.recorder", lambda rows: record)
    return repeats


@pytest.mark.parametrize(
    "options",
    [{}, {"hidden": (12, 8), "dropout": (0.0, 0.4)}, {"hidden": (9,), "dropout": 0.2, "batch_size": 50}],
    ids=str,
)
def test_recorded_steps_learn_the_same(
    options: dict[str, Any], digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MLPHead(epochs=4, **options).fit(*digits)
    repeats = _record_everywhere(monkeypatch)
    head = MLPHead(epochs=4, **options).fit(*digits)
    whole = 600 // head.batch_size
    assert repeats[0] == 4 * whole - 3, "the first steps are taken before one is recorded"
    assert same(head, plain)
    assert [row["train_loss"] for row in head.history_] == [row["train_loss"] for row in plain.history_]


def test_recorded_steps_of_many_learn_the_same(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def heads() -> list[Any]:
        return [
            MLPHead(hidden=(9, 7), dropout=0.2, lr=lr, seed=seed, epochs=epochs)
            for lr, epochs in ((1e-3, 2), (1e-2, 4))
            for seed in (0, 3)
        ]

    plain, recorded = heads(), heads()
    data = check_data(*digits)
    list(fit_together(plain, data))
    repeats = _record_everywhere(monkeypatch)
    list(fit_together(recorded, data))
    assert repeats[0] == 4 * 9 - 2 * 3, "recorded anew when heads have left"
    for head, other in zip(recorded, plain, strict=True):
        assert same(head, other)


def test_few_steps_are_not_recorded(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repeats = _record_everywhere(monkeypatch)
    LinearHead(epochs=2, batch_size=200).fit(*digits)
    assert repeats[0] == 0


RULES = [Rule(1e-2, 0.0, False), Rule(1e-3, 0.1, False), Rule(1e-2, 0.1, True), Rule(1e-2, 0.1, True)]


@pytest.mark.parametrize(("kind", "parts"), [(Adams, 2), (FlatAdams, 2), (FlatAdams, 1), (GroupAdams, 1)])
def test_adam_for_many_is_torchs_for_each(kind: Any, parts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, *shape, generator=generator) for shape in ((3, 5), (3,))][:parts]
    gradients = [[torch.randn(value.shape, generator=generator) for value in start] for _ in range(5)]
    expected = []
    for at, rule in enumerate(RULES):
        own = [value[at].clone().requires_grad_() for value in start]
        optim = (torch.optim.AdamW if rule.decoupled else torch.optim.Adam)(
            own, lr=rule.lr, weight_decay=rule.decay
        )
        for each in gradients:
            for value, gradient in zip(own, each, strict=True):
                value.grad = gradient[at].clone()
            optim.step()
        expected.append([value.detach() for value in own])
    values = [value.clone() for value in start]
    optimiser = kind(values, RULES)
    heads = [0, 1, 2, 3]
    with torch.no_grad():
        for step, each in enumerate(gradients):
            if step == 3:  # a head leaves
                heads = [0, 2, 3]
                optimiser.keep(heads)
            optimiser.step([gradient[heads].clone() for gradient in each])
    values = optimiser.parameters
    for at, head in enumerate(heads):
        for ours, theirs in zip(values, expected[head], strict=True):
            assert torch.allclose(ours[at], theirs, atol=1e-6)
            assert not torch.allclose(ours[at], start[0][head] if theirs.dim() == 2 else start[1][head])


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    most=st.integers(1, 60),
    halves=st.tuples(st.booleans(), st.booleans()),
)
def test_a_weight_learns_in_pieces_as_in_one(counts: list[int], most: int, halves: tuple[bool, bool]) -> None:
    """Each value by its own rule; a narrower gradient is widened, and what is rounded follows."""
    generator = torch.Generator().manual_seed(0)
    rules = [(RULES[at % len(RULES)], count) for at, count in enumerate(counts)]
    weight, slope = (torch.randn(sum(counts), 1, generator=generator) for _ in range(2))
    slope = slope.bfloat16() if halves[0] else slope
    copy = torch.zeros_like(weight, dtype=torch.bfloat16) if halves[1] else None
    expected, start = weight.clone(), 0
    for rule, count in rules:
        own = expected[start : start + count]
        moments_ = [torch.zeros_like(own) for _ in range(2)]
        fused(
            rule,
            [own],
            [slope[start : start + count].float()],
            *([each] for each in moments_),
            [torch.ones(())],
        )
        start += count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adam, "_AT_ONCE", most)
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        Large(weight, first, second, rules).step(slope, torch.ones(()), copy)
    torch.testing.assert_close(weight, expected)
    assert copy is None or torch.equal(copy, weight.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [True, False])
def test_batches_read_in_pieces_are_those_read_at_once(
    dtype: torch.dtype, scaled: bool, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = digits[:2]
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))

    def batches() -> list[torch.Tensor]:
        rows = Rows(Shared(X), y, moments(X) if scaled else None, 64, dtype)
        return [batch.clone() for batch, _ in rows.batches(order)]

    expected = batches()
    monkeypatch.setattr(rows_module, "_AT_ONCE", 5 * X.shape[1] + 3)
    found = batches()
    assert [batch.shape for batch in found] == [*[(64, 64)] * 9, (24, 64)]
    assert all(map(torch.equal, found, expected))


def test_masks_drawn_ahead_are_those_drawn_in_time() -> None:
    widths, rates = (5, 4, 3), (0.5, 0.0, 0.25)
    ahead, live = (Masks(torch.Generator().manual_seed(1), widths, rates) for _ in range(2))
    number = torch.zeros(1, dtype=torch.int64)
    for _ in range(2):  # the second time over the first
        ahead.look_ahead(3, 6, number.zero_())
        assert ahead.bytes_ahead(3, 6) == 3 * 6 * 8
        for _ in range(3):
            for layer, width in enumerate(widths):
                ours, theirs = torch.ones(6, width), torch.ones(2, 6, width)
                ahead.hide(ours, layer)
                live.hide(theirs, layer)
                assert torch.equal(ours, theirs[0]) and torch.equal(ours, theirs[1])
            number += 1
    ahead.look_no_more()
    ours, theirs = torch.ones(2, 5), torch.ones(2, 5)
    ahead.hide(ours, 0)
    live.hide(theirs, 0)
    assert torch.equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    start=st.integers(0, 5),
    scattered=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    values=st.integers(1, 60),
)
def test_a_table_is_the_same_in_every_place(
    rows: int, start: int, scattered: bool, dtype: Any, values: int
) -> None:
    rng = np.random.default_rng(rows)
    base = rng.normal(3, 2, (2 * rows + 9, 5)).astype(dtype)
    index = np.arange(start, start + rows)
    if scattered:
        index = np.sort(rng.permutation(len(base))[:rows])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(start))
    wanted = base[index]
    assert np.array_equal(np.asarray(Selection(base, index[::-1])), wanted[::-1])
    chosen = Selection(base, index)
    assert np.array_equal(np.asarray(chosen), wanted) and chosen.shape == wanted.shape
    assert np.array_equal(chosen[1:3], wanted[1:3]) and chosen.dtype == wanted.dtype
    assert len(chosen) == rows and chosen.nbytes == wanted.nbytes
    for place in (Shared(wanted), Shared(chosen), Streamed(wanted, CPU), Streamed(chosen, CPU)):
        out = torch.empty((rows, 5), dtype=place.dtype)
        place.take(order, out)
        assert np.array_equal(out.numpy(), wanted[order.numpy()])
        blocks = [(part, block.clone()) for part, block in place.blocks(values)]
        assert np.array_equal(torch.cat([block for _, block in blocks]).numpy(), wanted)
        assert [part.start for part, _ in blocks] == list(range(0, rows, max(1, values // 5)))
        ours, theirs = measured(place), moments(wanted)
        assert np.allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)
        assert np.allclose(ours.scale, theirs.scale, rtol=1e-5)
        source = Rows(place, order.numpy(), theirs, 7, torch.float32)
        source.begin(order)
        batches = [(batch.clone(), classes) for batch, classes in source.batches(order)]
        for batch, classes in batches[: source.steps[0]]:
            again, own = source.next()
            assert torch.equal(again, batch) and torch.equal(own, classes)


def test_moments_of_hard_columns() -> None:
    """Constant ones are exactly constant, and a large mean costs no digits."""
    rng = np.random.default_rng(0)
    X: Any = rng.normal(size=(500, 4))
    X[:, 1], X[:, 2] = 1.1, 1000 + X[:, 2]
    for dtype, tolerance in ((np.float16, 1e-6), (np.float32, 1e-12), (np.float64, 1e-12)):
        rows: Any = X.astype(dtype)
        ours, theirs = measured(Shared(rows)), moments(rows)
        assert ours.variance[1] == 0 and ours.scale[1] == 1
        assert np.allclose(ours.variance, theirs.variance, rtol=tolerance)
        assert np.allclose(ours.mean, theirs.mean, rtol=tolerance)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_found(bad: float) -> None:
    X = np.ones((70_000, 3), np.float16)
    X[69_000, 1] = bad
    with pytest.raises(HeadError, match=r"X contains NaN or inf: -?(nan|inf) in row 69000, column 1"):
        measured(Shared(X))
    with pytest.raises(HeadError, match=r"X_val contains NaN or inf: -?(nan|inf) in row 69000, column 1"):
        check_all_finite(Shared(X), "X_val")


@pytest.mark.parametrize("shape", [(64, 50, 6000), (3, 10, 40)])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_products(shape: tuple[int, int, int], precision: str, tolerance: float) -> None:
    """Large ones take other kernels than small ones."""
    n, out, columns = shape
    generator = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(n, columns, generator=generator),
        torch.randn(out, columns, generator=generator),
    )
    bias, delta = torch.randn(out, generator=generator), torch.randn(n, out, generator=generator)
    products = Products(weight, rounded(weight, precision))
    given_rows = rows.to(products.dtype)
    found = products.outputs(given_rows, weight, bias)
    wanted = rows.double() @ weight.double().t() + bias.double()
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()
    gradient = products.gradient(delta, given_rows)
    wanted = delta.double().t() @ rows.double()
    assert gradient.dtype == products.dtype and gradient.shape == weight.shape
    assert (gradient - wanted).abs().max() < tolerance * wanted.abs().max()


def test_bfloat16_rounds_and_float32_does_not(digits: Any) -> None:
    """The rows of digits are whole numbers, but standardised they are not exact in bfloat16."""
    exact, auto, half = (
        MLPHead(epochs=8, compute_precision=name).fit(*digits) for name in ("fp32", "auto", "bf16")
    )
    assert same(exact, auto) and not same(exact, half)
    assert np.allclose(exact.coefs_[0], half.coefs_[0], atol=0.05)
    assert abs(exact.score(*digits[2:]) - half.score(*digits[2:])) < 0.02
    assert half.coefs_[0].dtype == np.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_heads_of_different_seeds_in_one_stack(precision: str, digits: Any) -> None:
    def heads() -> list[MLPHead]:
        return [
            MLPHead(hidden=(12, 7), dropout=0.2, lr=lr, seed=seed, epochs=epochs, compute_precision=precision)
            for seed, lr, epochs in ((4, 1e-3, 6), (0, 1e-2, 3), (4, 3e-3, 6), (9, 1e-3, 2), (0, 1e-3, 6))
        ]

    together = heads()
    for _ in fit_together(together, check_data(*digits)):
        pass
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    for head, alone in zip(together, heads(), strict=True):
        alone.fit(*digits)
        assert head.n_epochs_ == alone.n_epochs_ and head.best_epoch_ == alone.best_epoch_
        for ours, theirs in zip(head.coefs_, alone.coefs_, strict=True):
            assert np.allclose(ours, theirs, atol=tolerance)
        assert head.history_[-1]["val_loss"] == pytest.approx(alone.history_[-1]["val_loss"], rel=tolerance)


def test_large_heads_of_different_seeds_train_one_seed_after_the_other(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.heads.batched._LARGE", 64 * 10)
    heads = [
        LinearHead(lr=lr, seed=seed, epochs=2, device="cpu") for seed in (5, 1, 5) for lr in (1e-3, 1e-2)
    ]
    reports: list[int] = []
    finished = list(fit_together(heads, check_data(*digits), lambda report: reports.append(report.alive)))
    assert reports == [4, 4, 2, 2]
    assert [number for numbers in finished for number, _ in numbers] == [0, 4, 1, 5, 2, 3]
    for head in heads:
        alone = LinearHead(**head.get_params()).fit(*digits)
        assert np.allclose(head.coefs_[0], alone.coefs_[0], atol=1e-3)


def test_a_stack_of_two_groups_has_the_gradients_of_its_networks() -> None:
    generator = torch.Generator().manual_seed(2)
    networks = [Network((6, 5, 4), (0.3,), torch.Generator().manual_seed(seed), CPU) for seed in (1, 2)]
    stack = Stack(networks, [2, 1])
    batches = [
        (torch.randn(8, 6, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in networks
    ]
    states = [network.generator.get_state() for network in networks]
    with torch.no_grad():
        losses = stack.gradient_step(*batches)
        for head, group in enumerate((0, 0, 1)):
            networks[group].generator.set_state(states[group])
            loss = networks[group].gradient_step(*batches[group])
            assert losses[head].item() == pytest.approx(loss.item(), rel=1e-5)
            for ours, theirs in zip(stack.gradients, networks[group].gradients, strict=True):
                assert torch.allclose(ours[head], theirs, atol=1e-6)


MEMORY = """
import sys, numpy as np
from featcache.heads.base import probabilities_of
from featcache.heads.neural import LinearHead
from featcache.selection import Selection

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))

path, rows, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
table = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, 4096))
chosen = np.random.default_rng(0).permutation(rows)
cut = rows * 4 // 5
train, val = Selection(table, np.sort(chosen[:cut]), budget), Selection(table, np.sort(chosen[cut:]), budget)
y = np.arange(rows) % 3
few = LinearHead(epochs=1, device="cpu").fit(np.asarray(train[:300]), y[:300])  # libraries are loaded by now
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS")
head = LinearHead(epochs=2, device="cpu").fit(train, y[: len(train)], val, y[len(train) :])
probabilities_of([head], val)
print(1024 * (kilobytes("VmHWM") - before), head.coefs_[0].tobytes().hex()[:64], float(head.coefs_[0].sum()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_a_table_three_times_the_budget_trains_the_same_head_in_it(tmp_path: Path) -> None:
    rows, size = 24_000, 24_000 * 4096 * 2
    values = np.random.default_rng(0).integers(0, 0x3C00, (rows // 12, 4096), dtype=np.uint16)
    (tmp_path / "table").write_bytes(np.tile(values, (12, 1)).tobytes())
    found = [
        subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / "table"), str(rows), str(budget)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for budget in (0, size // 3)
    ]
    (tmp_path / "table").unlink()
    for each in found:
        assert each.returncode == 0, each.stderr
    (whole, *coefs), (part, *same_coefs) = (each.stdout.split() for each in found)
    assert coefs == same_coefs, "bit for bit"
    blocks = 72 << 20  # what is standardised at once, and the sums of columns
    assert size * 0.8 < int(whole) < size * 1.25 + blocks, "it holds the table once"
    assert int(part) < size // 3 + blocks


def test_what_is_no_map_of_a_file_is_never_let_go(tmp_path: Path) -> None:
    """Its contents would be lost."""
    values = np.arange(40_000, dtype=np.float32).reshape(4, 10_000)
    values.tofile(tmp_path / "table")
    mapped = np.memmap(tmp_path / "table", dtype=np.float32, mode="r", shape=(4, 10_000))
    assert is_mapped_file(mapped) and is_mapped_file(mapped[1:3])
    with mmap.mmap(-1, values.nbytes) as anonymous:
        anonymous.write(values.tobytes())
        array = np.frombuffer(anonymous, np.float32).reshape(4, 10_000)
        for memory in (values, array, np.memmap(tmp_path / "table", np.float32, "c", shape=(4, 10_000))):
            assert not is_mapped_file(memory)
            chosen = Selection(memory, np.arange(4), 1)
            assert np.array_equal(chosen[0:4], values) and np.array_equal(memory, values)
        del array, memory, chosen
    chosen = Selection(mapped, np.array([0, 3]), 1)
    assert np.array_equal(chosen[:], values[[0, 3]]) and np.array_equal(mapped, values)


def test_a_selection_is_the_array_it_stands_for(digits: Any) -> None:
    X, y, X_val, y_val = digits
    both = np.concatenate([X, X_val])
    order = np.random.default_rng(0).permutation(len(both))
    mixed = np.empty_like(both)
    mixed[order] = both
    index = [np.sort(order[:600]), np.sort(order[600:])]
    labels = np.empty(len(both), np.int64)
    labels[order] = np.concatenate([y, y_val])
    for kind in (lambda: MLPHead(epochs=2), lambda: create("ridge")):
        plain = kind().fit(mixed[index[0]], labels[index[0]], mixed[index[1]], labels[index[1]])
        head = kind().fit(
            Selection(mixed, index[0]), labels[index[0]], Selection(mixed, index[1]), labels[index[1]]
        )
        assert same(head, plain)
        assert np.array_equal(
            head.predict_proba(Selection(mixed, index[1])), head.predict_proba(mixed[index[1]])
        )
        with pytest.raises(HeadError, match="expecting 64 features"):
            head.predict(Selection(mixed[:, :60], index[1]))
        with pytest.raises(HeadError, match="inconsistent numbers of samples"):
            kind().fit(Selection(mixed, index[0]), labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_a_gpu_a_table_is_streamed_where_it_does_not_fit(digits: Any) -> None:
    """The same rows in the same steps, recorded or not: the very same head."""
    X, y, X_val, y_val = digits
    options: dict[str, Any] = {"hidden": (12, 7), "dropout": 0.2, "epochs": 4, "device": "cuda"}
    held = MLPHead(**options).fit(X, y, X_val, y_val)
    every, own = np.arange(len(X)), np.arange(len(X_val))
    streamed = MLPHead(**options).fit(Selection(X, every, 1000), y, Selection(X_val, own, 1000), y_val)
    assert np.allclose(held.coefs_[0], streamed.coefs_[0], atol=1e-6)
    assert held.history_[-1]["val_loss"] == pytest.approx(streamed.history_[-1]["val_loss"], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_seeds_in_one_stack_learn_as_on_the_cpu(precision: str, digits: Any) -> None:
    def heads(device: str) -> list[MLPHead]:
        return [
            MLPHead(
                hidden=(12, 7), dropout=0.2, lr=lr, seed=seed, epochs=epochs, device=device,
                compute_precision=precision,
            )
            for seed, lr, epochs in ((4, 1e-3, 6), (0, 1e-2, 3), (4, 3e-3, 6), (9, 1e-3, 2))
        ]  # fmt: skip

    data = check_data(*digits)
    ours, theirs = heads("cuda"), heads("cpu")
    for group in (ours, theirs):
        for _ in fit_together(group, data):
            pass
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    for one, other in zip(ours, theirs, strict=True):
        assert (one.n_epochs_, one.best_epoch_) == (other.n_epochs_, other.best_epoch_)
        assert np.allclose(one.coefs_[0], other.coefs_[0], atol=tolerance)
