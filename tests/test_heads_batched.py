"""Heads trained together are the heads trained alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from featcache.errors import HeadError
from featcache.heads import saving
from featcache.heads.base import probabilities_of
from featcache.heads.batched import Data, EpochOfMany, bytes_of, check_data, fit_together, shared
from featcache.heads.network import Network
from featcache.heads.neural import LinearHead, MLPHead, NetworkHead
from featcache.heads.stack import Stack
from tests.kit_heads import CASES, Case, blobs, same

# Weights and losses of a head trained in a batch differ from those of the head trained alone by rounding, for
# sums over columns are taken in another order: here mostly by 1e-6, at most by 2e-4. At learning rates where
# training is unstable any rounding grows without bound, so that no tolerance could hold there.
WEIGHTS, LOSSES = 1e-3, 1e-3


@pytest.fixture(scope="module")
def digits() -> tuple[Any, ...]:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float16)
    return X[:600], y[:600], X[600:900], y[600:900]


def _fit(heads: list[NetworkHead], data: Data) -> list[HeadError | None]:
    errors: list[HeadError | None] = [None] * len(heads)
    seen = []
    for finished in fit_together(heads, data):
        for number, error in finished:
            errors[number] = error
            seen.append(number)
    assert sorted(seen) == list(range(len(heads))), "every head is done once"
    return errors


def _assert_equal(together: NetworkHead, alone: NetworkHead) -> None:
    assert (together.n_epochs_, together.best_epoch_) == (alone.n_epochs_, alone.best_epoch_)
    for ours, theirs in zip(together.coefs_, alone.coefs_, strict=True):
        assert ours.dtype == theirs.dtype and np.allclose(ours, theirs, atol=WEIGHTS)
    for ours, theirs in zip(together.intercepts_, alone.intercepts_, strict=True):
        assert np.allclose(ours, theirs, atol=WEIGHTS)
    for ours, theirs in zip(together.history_, alone.history_, strict=True):
        assert set(ours) == set(theirs) and ours["lr"] == theirs["lr"] and ours["epoch"] == theirs["epoch"]
        for name in ("train_loss", "val_loss"):
            assert ours[name] == (pytest.approx(theirs[name], rel=LOSSES) if theirs[name] else theirs[name])
    assert np.array_equal(together.classes_, alone.classes_)
    assert together.n_features_in_ == alone.n_features_in_
    for name in ("mean_", "scale_"):
        ours, theirs = getattr(together, name), getattr(alone, name)
        assert (ours is None) == (theirs is None) and (ours is None or np.allclose(ours, theirs, rtol=1e-6))


CONFIGURATIONS = [
    {"lr": lr, "weight_decay": decay, "optimizer": optimizer, "patience": patience}
    for lr, decay, optimizer, patience in itertools.product(
        (1e-3, 3e-3, 1e-2), (0.0, 1e-3), ("adam", "adamw"), (2, 5)
    )
] + [
    {"lr": 1e-2, "epochs": 3},
    {"lr": 1e-2, "patience": None, "epochs": 7},
    {"lr": 1e-2, "monitor": "val_accuracy"},
    {"lr": 1e-2, "min_delta": 0.05},
    {"lr": 1e-4, "weight_decay": 1e-1},
    {"lr": 5e-4, "optimizer": "adamw", "weight_decay": 1e-1},
    {"lr": 2e-3},
    {"lr": 4e-3, "min_delta": 0.0, "patience": 1},
]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LinearHead, {}),
        (MLPHead, {"hidden": (16, 8), "dropout": 0.2, "seed": 3}),
        (
            MLPHead,
            {"hidden": (12, 9), "dropout": (0.0, 0.4), "standardize": "no", "batch_size": 50, "epochs": 15},
        ),
        (MLPHead, {"hidden": ()}),
    ],
    ids=["linear", "mlp-dropout", "mlp-raw", "mlp-no-hidden"],
)
def test_a_head_among_32_is_the_head_alone(kind: Any, options: dict[str, Any], digits: Any) -> None:
    each = [{"epochs": 30, **options, **more} for more in CONFIGURATIONS]
    heads = [kind(**one) for one in each]
    assert len(heads) == 32
    assert _fit(heads, check_data(*digits)) == [None] * 32
    alone = [kind(**one).fit(*digits) for one in each]
    assert len({head.n_epochs_ for head in alone}) > 3, "they stop at different epochs"
    for together, single in zip(heads, alone, strict=True):
        _assert_equal(together, single)


def test_the_default_mlp_among_others(digits: Any) -> None:
    rates = [1e-4, 1e-3, 3e-3]
    heads = [MLPHead(lr=lr) for lr in rates]
    _fit(heads, check_data(*digits))
    for head, lr in zip(heads, rates, strict=True):
        _assert_equal(head, MLPHead(lr=lr).fit(*digits))


def test_a_batch_of_one_and_the_order_of_heads_change_nothing_but_rounding(digits: Any) -> None:
    data = check_data(*digits)
    rates = [1e-2, 1e-3, 3e-3]
    heads, turned = [LinearHead(lr=lr) for lr in rates], [LinearHead(lr=lr) for lr in rates[::-1]]
    _fit(heads, data)
    _fit(turned, data)
    for one, other in zip(heads, turned[::-1], strict=True):
        _assert_equal(one, other)
    (single,) = [LinearHead(lr=1e-2)]
    _fit([single], data)
    _assert_equal(single, LinearHead(lr=1e-2).fit(*digits))


def test_without_validation_rows(digits: Any) -> None:
    X, y, _, _ = digits
    heads = [MLPHead(hidden=(9,), epochs=epochs) for epochs in (2, 4)]
    reports: list[EpochOfMany] = []
    for _ in fit_together(heads, check_data(X, y), reports.append):
        pass
    for head, epochs in zip(heads, (2, 4), strict=True):
        _assert_equal(head, MLPHead(hidden=(9,), epochs=epochs).fit(X, y))
    assert [(r.epoch, r.alive, r.best_accuracy) for r in reports] == [
        (1, 2, None), (2, 2, None), (3, 1, None), (4, 1, None)
    ]  # fmt: skip


def test_a_head_leaves_when_it_is_done(digits: Any) -> None:
    heads = [LinearHead(epochs=epochs, patience=None) for epochs in (3, 1, 3, 2)]
    reports: list[EpochOfMany] = []
    left = [
        [number for number, _ in finished]
        for finished in fit_together(heads, check_data(*digits), reports.append)
    ]
    assert left == [[1], [3], [0, 2]]
    assert [report.alive for report in reports] == [4, 3, 2]
    best = max(row["val_accuracy"] for head in heads for row in head.history_)
    assert reports[-1].best_accuracy == best


def test_shares_of_the_time_add_up_to_the_whole(digits: Any) -> None:
    heads = [LinearHead(epochs=epochs, patience=None) for epochs in (4, 2, 3)]
    _fit(heads, check_data(*digits))
    for head in heads:
        assert head.fit_seconds_ == pytest.approx(sum(row["seconds"] for row in head.history_))
    assert heads[0].fit_seconds_ > heads[2].fit_seconds_ > heads[1].fit_seconds_ > 0


def test_a_head_that_fails_leaves_the_others_alone(digits: Any) -> None:
    heads = [MLPHead(hidden=(9,), lr=lr, epochs=4) for lr in (1e-2, 1e30, 1e-3)]
    errors = _fit([*heads], check_data(*digits))
    assert errors[0] is None and errors[2] is None
    assert "train_loss became" in str(errors[1]) and "lr=1e+30" in str(errors[1])
    with pytest.raises(ValueError, match="not fitted"):
        heads[1].predict(digits[0])
    _assert_equal(heads[2], MLPHead(hidden=(9,), lr=1e-3, epochs=4).fit(*digits))


def test_heads_that_cannot_train_together_are_refused(digits: Any) -> None:
    data = check_data(*digits)
    for other in ({"batch_size": 32}, {"hidden": (7,)}, {"dropout": 0.5}, {"standardize": "no"}):
        with pytest.raises(HeadError, match="must have the same hidden, dropout, batch_size"):
            list(fit_together([MLPHead(), MLPHead(**other)], data))
        assert shared(MLPHead()) != shared(MLPHead(**other))
    assert shared(MLPHead(lr=1, patience=3, epochs=2, optimizer="adamw")) == shared(MLPHead())
    with pytest.raises(HeadError, match="cannot be -1"):
        list(fit_together([MLPHead(lr=-1)], data))


def test_data_are_checked_once_and_as_fit_checks_them() -> None:
    X, y = blobs()
    broken = X.copy()
    broken[17, 3] = np.nan
    with pytest.raises(HeadError, match="row 17, column 3"):
        check_data(broken, y)
    with pytest.raises(HeadError, match="X_val contains NaN"):
        check_data(X, y, broken, y)
    with pytest.raises(HeadError, match="at least two classes"):
        check_data(X, y * 0)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind in ("linear", "mlp")], ids=str)
def test_the_contract_holds_for_heads_trained_together(case: Case) -> None:
    X, y = blobs()
    names = np.array(["ant", "bee", "cat"])[y]
    rows = X.astype(np.float16)
    rows.flags.writeable = False
    head, twin = case.head(epochs=60), case.head(epochs=60)
    assert isinstance(head, NetworkHead) and isinstance(twin, NetworkHead)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    before = np.random.get_state()[1].copy()
    _fit([head, twin], check_data(rows, names))
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    assert np.array_equal(before, np.random.get_state()[1])
    assert head.score(*(lambda a, b: (a, np.array(["ant", "bee", "cat"])[b]))(*blobs(seed=1))) > 0.9
    again = case.head(epochs=60)
    assert isinstance(again, NetworkHead)
    _fit([again, case.head(epochs=60)], check_data(rows, names))  # type: ignore[list-item]
    assert same(again, head)
    loaded = saving.loads(saving.dumps(head))
    assert np.array_equal(loaded.predict_proba(X), head.predict_proba(X))
    assert loaded.get_params() == head.get_params()


def test_an_interrupt_keeps_what_is_done(digits: Any) -> None:
    heads = [LinearHead(epochs=epochs, patience=None) for epochs in (1, 5)]

    def interrupt(report: EpochOfMany) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        list(fit_together(heads, check_data(*digits), interrupt))
    assert heads[0].n_epochs_ == 1 and torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="not fitted"):
        heads[1].predict(digits[0])


def test_they_predict_together_what_each_predicts(digits: Any) -> None:
    heads = [MLPHead(hidden=(8,), epochs=epochs) for epochs in (1, 3)]
    _fit(heads, check_data(*digits))
    for rows in (digits[2], digits[2].astype(np.float64)):
        for head, proba in zip(heads, probabilities_of(heads, rows), strict=True):
            assert np.array_equal(proba, head.predict_proba(rows))
    heads[0].calibrate(digits[2], digits[3])
    assert np.array_equal(probabilities_of(heads, digits[2])[0], heads[0].predict_proba(digits[2]))
    assert probabilities_of([], digits[2]) == []
    with pytest.raises(HeadError, match="must share"):
        probabilities_of([heads[0], MLPHead(epochs=1).fit(*digits)], digits[2])


def test_bytes_of_a_head() -> None:
    weights = 25088 * 50 + 50 + 50 * 20 + 20 + 20 * 10 + 10
    assert bytes_of(MLPHead(), 25088, 10) == 4 * (7 * weights + 3 * 64 * 80)
    assert bytes_of(LinearHead(), 100, 10) == 4 * (7 * 1010 + 3 * 64 * 10)


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=3),
    rate=st.sampled_from([0.0, 0.3, 0.7]),
    count=st.integers(1, 5),
    rows=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_a_stack_is_its_networks(hidden: list[int], rate: float, count: int, rows: int, seed: int) -> None:
    """Gradients, losses and scores of each head in a stack are those of the network alone."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 6, generator=generator), torch.randint(0, 4, (rows,), generator=generator)
    network = Network((6, *hidden, 4), (rate,) * len(hidden), generator, torch.device("cpu"))
    stack = Stack([network], [count])
    for value in stack.parameters:
        value += 0.1 * torch.randn(value.shape, generator=generator)
    state = generator.get_state()
    with torch.no_grad():
        losses = stack.gradient_step((x, y))
        scores = torch.cat([part for _, part in stack.scores(x)], dim=2).transpose(1, 2)
        for head in range(count):
            generator.set_state(state)
            network.parameters = [value[head] for value in stack.parameters]
            assert network.gradient_step(x, y).item() == pytest.approx(
                losses[head].item(), rel=1e-4, abs=1e-5
            )
            for ours, theirs in zip(stack.gradients, network.gradients, strict=True):
                assert torch.allclose(ours[head], theirs, rtol=1e-4, atol=1e-6)
            assert torch.allclose(scores[head], network.scores(x), atol=1e-5)


def test_scores_come_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network((6, 5, 4), (0.0,), torch.Generator().manual_seed(0), torch.device("cpu"))
    stack, x = Stack([network], [3]), torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    (whole,) = [scores for _, scores in stack.scores(x)]
    monkeypatch.setattr("featcache.heads.stack._SCORED", 3 * 5 * 7)
    parts = list(stack.scores(x))
    assert [scores.shape[2] for _, scores in parts] == [7, 7, 7, 7, 7, 5]
    assert torch.allclose(torch.cat([scores for _, scores in parts], dim=2), whole, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_the_gpu_too(digits: Any) -> None:
    rates = [1e-3, 1e-2]
    heads = [MLPHead(hidden=(12,), dropout=0.2, epochs=5, lr=lr, device="cuda") for lr in rates]
    _fit(heads, check_data(*digits))
    for head, lr in zip(heads, rates, strict=True):
        _assert_equal(head, MLPHead(hidden=(12,), dropout=0.2, epochs=5, lr=lr, device="cpu").fit(*digits))


@pytest.mark.parametrize("kept", [(0, 1), (0, 1, 2)])
def test_validation_rows_of_classes_without_training_rows(kept: tuple[int, ...]) -> None:
    """Some rows are of such a class, or all are."""
    X, y = blobs()
    train, val = y < 2, np.isin(y, [2] if len(kept) == 2 else kept)
    heads = [LinearHead(lr=lr, epochs=5) for lr in (1e-3, 1e-2)]
    assert _fit(list(heads), check_data(X[train], y[train], X[val], y[val])) == [None, None]
    for head in heads:
        alone = LinearHead(**head.get_params()).fit(X[train], y[train], X[val], y[val])
        _assert_equal(head, alone)
        assert head.notes_ == alone.notes_ and "without training rows (2)" in head.notes_[0]
        accuracies = [row["val_accuracy"] for row in head.history_]
        assert accuracies == [row["val_accuracy"] for row in alone.history_]
