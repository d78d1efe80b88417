"""The torch heads: initialisation, gradients, early stopping, checkpoints, resuming."""

from __future__ import annotations

import hashlib
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
from featcache.heads.adam import Adam
from featcache.heads.base import Task
from featcache.heads.epochs import resolve_device
from featcache.heads.network import Network
from featcache.heads.neural import LinearHead, MLPHead, NetworkHead
from featcache.heads.rows import Rows
from featcache.heads.scaling import moments
from featcache.heads.state import EpochReport, TrainingState
from featcache.heads.tables import Shared, shared_tensor
from tests.kit_heads import blobs, same


@pytest.fixture(scope="module")
def digits() -> tuple[Any, ...]:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float16)
    return X[:600], y[:600], X[600:900], y[600:900]


def _network(sizes: tuple[int, ...], dropout: tuple[float, ...], seed: int = 3) -> Network:
    return Network(sizes, dropout, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_initial_weights_are_those_of_torch_linear() -> None:
    """Same distribution as torch.nn.Linear, and the very same numbers from the same generator."""
    network = _network((40, 30, 5), (0.0,))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [torch.nn.Linear(40, 30), torch.nn.Linear(30, 5)]
    expected = [value for layer in layers for value in (layer.weight, layer.bias)]
    for ours, theirs in zip(network.parameters, expected, strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=3),
    rate=st.sampled_from([0.0, 0.3, 0.7]),
    rows=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_gradients_are_autograds(hidden: list[int], rate: float, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 6, generator=generator), torch.randint(0, 4, (rows,), generator=generator)
    network = _network((6, *hidden, 4), (rate,) * len(hidden), seed)
    state = network.generator.get_state()
    with torch.no_grad():
        loss = network.gradient_step(x, y)
    network.generator.set_state(state)
    leaves = [parameter.clone().requires_grad_() for parameter in network.parameters]
    out = x
    for i, (weight, bias) in enumerate(zip(leaves[::2], leaves[1::2], strict=True)):
        out = torch.nn.functional.linear(out, weight, bias)
        if i < len(hidden):
            out = out.relu()
            if rate:
                kept = torch.empty(out.shape).bernoulli_(1 - rate, generator=network.generator)
                out = out * kept / (1 - rate)
    expected = torch.nn.functional.cross_entropy(out, y, reduction="sum")
    (expected / rows).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    for ours, leaf in zip(network.gradients, leaves, strict=True):
        assert torch.allclose(ours, leaf.grad, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoupled", [False, True])
def test_steps_are_those_of_torch_optim(decoupled: bool) -> None:
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone(), start.clone().requires_grad_()
    adam = Adam([ours], lr=0.01, decay=0.1, decoupled=decoupled)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    reference = kind([theirs], lr=0.01, weight_decay=0.1)
    for i in range(5):
        theirs.grad = torch.full_like(theirs, i - 1.5)
        with torch.no_grad():
            adam.step([theirs.grad])
        reference.step()
    assert torch.allclose(ours, theirs.detach(), atol=1e-6)
    assert not torch.allclose(ours, start)


def test_a_whole_training_is_a_plain_torch_loop(digits: tuple[Any, ...]) -> None:
    """The same numbers as the loop anybody would write, on standardised float32 rows."""
    X, y, _, _ = digits
    head = MLPHead(hidden=(16,), epochs=3, lr=1e-2, seed=5, device="cpu").fit(X, y)
    generator = torch.Generator().manual_seed(5)
    wide = X.astype(np.float64)
    scale = np.where(wide.std(axis=0) > 0, wide.std(axis=0), 1)
    rows = torch.from_numpy(((wide - wide.mean(axis=0)) / scale).astype(np.float32))
    classes = torch.from_numpy(y.astype(np.int64))
    start = Network((64, 16, 10), (0.0,), generator, torch.device("cpu")).parameters
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    for parameter, value in zip(model.parameters(), start, strict=True):
        parameter.data.copy_(value)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        for index in torch.randperm(len(rows), generator=generator).split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(rows[index]), classes[index]).backward()
            optimiser.step()
    assert np.allclose(head.coefs_[0], model[0].weight.detach(), atol=1e-4)
    assert np.allclose(head.coefs_[1], model[2].weight.detach(), atol=1e-4)
    with torch.no_grad():
        assert np.allclose(head.decision_function(X), model(rows), atol=1e-3)


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_best_weights_are_those_of_a_training_that_ends_there(monitor: str, digits: tuple[Any, ...]) -> None:
    """As skorch tests it: retrain to the best epoch without stopping, and get equal weights."""
    options: dict[str, Any] = {"hidden": (16,), "dropout": 0.1, "lr": 0.02, "monitor": monitor, "seed": 1}
    X, y, X_val, y_val = digits
    stopped = MLPHead(epochs=60, patience=3, **options).fit(X, y, X_val, y_val)
    assert stopped.best_epoch_ < stopped.n_epochs_ < 60
    assert stopped.n_epochs_ == stopped.best_epoch_ + 3
    retrained = MLPHead(epochs=stopped.best_epoch_, patience=None, **options).fit(X, y)
    assert same(stopped, retrained)
    best = stopped.history_[stopped.best_epoch_ - 1]
    assert best["val_accuracy"] == pytest.approx(stopped.score(X_val, y_val), abs=1 / len(y_val))
    expected = -np.log(stopped.predict_proba(X_val)[np.arange(len(y_val)), y_val]).mean()
    assert best["val_loss"] == pytest.approx(expected, rel=1e-4)


def test_validation_changes_only_which_epoch_is_kept(digits: tuple[Any, ...]) -> None:
    X, y, X_val, y_val = digits
    one = LinearHead(epochs=6, patience=6, min_delta=0.0).fit(X, y, X_val, y_val)
    other = LinearHead(epochs=6, patience=6, min_delta=0.0).fit(X, y, X_val, (y_val + 1) % 10)
    assert [row["train_loss"] for row in one.history_] == [row["train_loss"] for row in other.history_]
    assert other.best_epoch_ != one.best_epoch_
    assert same(other, LinearHead(epochs=other.best_epoch_).fit(X, y))


def test_without_patience_the_last_weights_are_kept(digits: tuple[Any, ...]) -> None:
    X, y, X_val, y_val = digits
    head = LinearHead(epochs=5, patience=None).fit(X, y, X_val, (y_val + 1) % 10)
    assert head.n_epochs_ == 5
    assert same(head, LinearHead(epochs=5).fit(X, y))
    alone = LinearHead(epochs=5).fit(X, y)
    assert alone.best_epoch_ == 5
    assert all(row["val_loss"] is None and row["val_accuracy"] is None for row in alone.history_)


def _states(head: NetworkHead, *data: Any) -> list[TrainingState]:
    states: list[TrainingState] = []
    head.fit(*data, on_epoch=lambda report: states.append(report.state()))
    return states


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_resumed_is_uninterrupted_bit_for_bit(optimizer: str, digits: tuple[Any, ...]) -> None:
    options: dict[str, Any] = {
        "hidden": (12, 8), "dropout": (0.0, 0.3), "lr": 0.02, "weight_decay": 1e-3, "optimizer": optimizer,
        "patience": 3, "epochs": 40,
    }  # fmt: skip
    whole = MLPHead(**options)
    states = _states(whole, *digits)
    assert whole.best_epoch_ < whole.n_epochs_ < 40
    for epoch in (1, whole.best_epoch_, whole.n_epochs_ - 1, whole.n_epochs_):
        stored = TrainingState.from_bytes(states[epoch - 1].to_bytes())
        assert stored.epoch == epoch
        resumed = MLPHead(**options).fit(*digits, resume=stored)
        assert same(resumed, whole)
        assert (resumed.best_epoch_, resumed.n_epochs_) == (whole.best_epoch_, whole.n_epochs_)
        assert resumed.history_[:epoch] == whole.history_[:epoch]
        assert [row["val_loss"] for row in resumed.history_] == [row["val_loss"] for row in whole.history_]


def test_resume_may_go_further_than_first_asked(digits: tuple[Any, ...]) -> None:
    X, y, _, _ = digits
    last = _states(LinearHead(epochs=3), X, y)[-1]
    assert same(LinearHead(epochs=7).fit(X, y, resume=last), LinearHead(epochs=7).fit(X, y))


def test_a_state_does_not_change_while_training_goes_on(digits: tuple[Any, ...]) -> None:
    taken: list[tuple[TrainingState, bytes]] = []

    def take(report: EpochReport) -> None:
        state = report.state()
        taken.append((state, state.to_bytes()))

    LinearHead(epochs=4).fit(*digits, on_epoch=take)
    assert len({data for _, data in taken}) == 4
    assert all(state.to_bytes() == data for state, data in taken)


def test_resume_refuses_another_training(digits: tuple[Any, ...]) -> None:
    X, y, _, _ = digits
    state = _states(MLPHead(epochs=1), X, y)[0]
    with pytest.raises(HeadError, match=r"lr: 0\.001 then, 0\.1 now; seed: 0 then, 3 now"):
        MLPHead(lr=0.1, seed=3).fit(X, y, resume=state)
    with pytest.raises(HeadError, match=r"hidden: \[50, 20\] then, \[7\] now; .*layer sizes"):
        MLPHead(hidden=(7,)).fit(X, y, resume=state)
    with pytest.raises(HeadError, match="training rows: their column means differ"):
        MLPHead().fit(X[:500], y[:500], resume=state)
    for damage in (
        TrainingState({k: v for k, v in state.tensors.items() if k != "parameters.0"}, state.meta),
        TrainingState({**state.tensors, "parameters.0": np.zeros((2, 2), np.float32)}, state.meta),
        TrainingState({**state.tensors, "generator": np.zeros(3, np.uint8)}, state.meta),
        TrainingState(state.tensors, {k: v for k, v in state.meta.items() if k != "stopping"}),
    ):
        with pytest.raises(HeadError, match="training state is damaged"):
            MLPHead(epochs=2).fit(X, y, resume=damage)
    with pytest.raises(HeadError, match=r"damaged|not a head"):
        TrainingState.from_bytes(state.to_bytes()[:-5])


def test_reports(digits: tuple[Any, ...]) -> None:
    reports: list[EpochReport] = []
    head = MLPHead(epochs=3).fit(*digits, on_epoch=reports.append)
    assert [(report.epoch, report.epochs) for report in reports] == [(1, 3), (2, 3), (3, 3)]
    assert [report.metrics for report in reports] == head.history_
    assert set(head.history_[0]) == {"epoch", "train_loss", "val_loss", "val_accuracy", "seconds", "lr"}
    assert list(reports[0].layers) == head.layers(64, 10)
    assert head.history_[-1]["train_loss"] < head.history_[0]["train_loss"]


def test_layers() -> None:
    rows = MLPHead().layers(25088, 10)
    assert [(row.name, row.shape, row.trainable, row.frozen) for row in rows] == [
        ("standardize", (25088,), 0, 50176),
        ("layer 1", (25088, 50), 25088 * 50 + 50, 0),
        ("layer 2", (50, 20), 1020, 0),
        ("layer 3", (20, 10), 210, 0),
    ]
    assert [row.kind for row in LinearHead(standardize="no").layers(7, 3)] == ["linear"]


def test_a_loss_that_is_no_number_ends_the_training(digits: tuple[Any, ...]) -> None:
    with pytest.raises(HeadError, match=r"train_loss became (nan|inf) in epoch \d+ with lr=1e\+30"):
        MLPHead(lr=1e30).fit(*digits)


def test_an_interrupt_leaves_no_half_head(digits: tuple[Any, ...]) -> None:
    def interrupt(report: EpochReport) -> None:
        raise KeyboardInterrupt

    head, threads = LinearHead(), torch.get_num_threads()
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        head.fit(*digits, on_epoch=interrupt)
    with pytest.raises(ValueError, match="not fitted"):
        head.predict(digits[0])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert head.fit(*digits).score(*digits[2:]) > 0.8


def test_the_global_generator_and_thread_count_are_left_alone(digits: tuple[Any, ...]) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    MLPHead(epochs=2, dropout=0.5).fit(*digits)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def _digest() -> str:
    rng = np.random.default_rng(0)
    X, y = rng.random((300, 20), dtype=np.float32), rng.integers(0, 4, 300)
    head = MLPHead(epochs=3, dropout=0.2).fit(X, y)
    return hashlib.sha256(b"".join(coef.tobytes() for coef in head.coefs_)).hexdigest()


def _python(program: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_same_head_in_every_process_and_with_any_number_of_threads() -> None:
    other = "2" if torch.get_num_threads() == 1 else "1"
    program = (
        f"import torch; torch.set_num_threads({other}); torch.manual_seed(9)\n"
        "from tests.test_heads_neural import _digest; print(_digest())"
    )
    assert _python(program) == _digest()


def test_seeds_differ(digits: tuple[Any, ...]) -> None:
    X, y, _, _ = digits
    assert not same(LinearHead(epochs=1).fit(X, y), LinearHead(epochs=1, seed=1).fit(X, y))


def test_tables_are_not_copied() -> None:
    X = np.ones((50, 4), np.float16)
    X.flags.writeable = False
    tensor = shared_tensor(X)
    assert tensor.data_ptr() == X.ctypes.data
    assert tensor.dtype == torch.float16
    assert torch.equal(shared_tensor(X[::-1]), tensor)
    assert Shared(X).table.data_ptr() == X.ctypes.data


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.booleans(),
)
def test_batches_are_the_rows_in_order(rows: int, size: int, dtype: Any, fortran: bool) -> None:
    X = np.random.default_rng(rows).normal(3, 2, (rows, 5)).astype(dtype)
    X = np.asfortranarray(X) if fortran else X
    y = np.arange(rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(size))
    source = Rows(Shared(X), y, moments(X), size, torch.float32)
    batches = [(part.clone(), classes) for part, classes in source.batches(order)]
    scale = np.where(X.std(axis=0, dtype=np.float64) > 0, X.std(axis=0, dtype=np.float64), 1)
    expected = (X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)) / scale
    assert np.allclose(torch.cat([part for part, _ in batches]), expected[order.numpy()], atol=1e-4)
    assert torch.equal(torch.cat([classes for _, classes in batches]), order)
    assert np.allclose(torch.cat([part for part, _ in source.blocks()]), expected, atol=1e-4)


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(HeadError, match="There is no device 'cuda:97'"):
        resolve_device("cuda:97")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_the_gpu_trains_the_same_head(digits: tuple[Any, ...]) -> None:
    X, y, X_val, y_val = digits
    options: dict[str, Any] = {"hidden": (12,), "dropout": 0.2, "epochs": 5}
    one = MLPHead(device="cuda", **options).fit(X, y, X_val, y_val)
    other = MLPHead(device="cpu", **options).fit(X, y, X_val, y_val)
    assert np.allclose(one.coefs_[0], other.coefs_[0], atol=1e-3)
    assert same(one, MLPHead(device="cuda", **options).fit(X, y, X_val, y_val))


def test_dropout_is_one_or_one_for_each() -> None:
    assert MLPHead(hidden=(4, 3), dropout=(0.1, 0.2))._settings().dropout == (0.1, 0.2)
    assert MLPHead(hidden=(4, 3), dropout=0.3)._settings().dropout == (0.3, 0.3)
    X, y = blobs()
    with pytest.raises(HeadError, match="dropout has 1 values for 2 hidden layers"):
        MLPHead(dropout=(0.1,)).fit(X, y)


def test_predicting_needs_no_torch(tmp_path: Path) -> None:
    from featcache.heads.saving import dumps

    X, y = blobs()
    (tmp_path / "head").write_bytes(dumps(MLPHead(epochs=1).fit(X, y)))
    program = (
        "import sys; from featcache.heads.saving import loads; import numpy;"
        f"loads({str(tmp_path / 'head')!r}).predict(numpy.ones((2, 12))); print('torch' in sys.modules)"
    )
    assert _python(program) == "False"


def test_task_moments_are_of_training_rows_only() -> None:
    X, y = blobs()
    seen: list[Task] = []
    LinearHead(epochs=1)._fit(X, y, X * 100, y, seen.append)
    assert np.allclose(seen[0].columns.mean, X.mean(axis=0, dtype=np.float64))
