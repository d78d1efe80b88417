"""The contract of a head: checks that every kind has to pass, each a plain function of a kind's `Case`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from featcache.errors import HeadError
from featcache.heads import saving
from featcache.heads.base import Head
from featcache.heads.catalogue import create, options
from featcache.metrics import expected_calibration_error, log_loss
from featcache.training.views import draws_views

CONTEXT = {"fingerprint": "f" * 64, "node": "avgpool", "columns": 12, "classes": ["ant", "bee", "cat"]}


@dataclass(frozen=True)
class Case:
    """A kind of head with the options it is checked with."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether the features make a difference."""
        return self.kind != "dummy"

    @property
    def never_stops(self) -> dict[str, Any]:
        """The option that keeps validation rows out of the training, where they have a part in it."""
        return {"patience": None} if "patience" in options(self.kind) else {}

    def head(self, **more: Any) -> Head:
        return create(self.kind, **{**self.options, **more})

    def __str__(self) -> str:
        return "-".join([self.kind, *(str(value) for value in self.options.values())]).replace(" ", "")


CASES = [
    Case("linear", {"epochs": 8}),
    Case("mlp", {"epochs": 8, "hidden": (9, 6), "dropout": (0.0, 0.2), "optimizer": "adamw"}),
    Case("mlp", {"epochs": 8, "hidden": ()}),
    Case("logreg", {"C": 1.0}),
    Case("svm"),
    Case("svm", {"kernel": "rbf"}),
    Case("svm", {"kernel": "rbf-approx", "landmarks": 40}),
    Case("ridge"),
    Case("knn", {"k": 5}),
    Case("knn", {"k": 5, "metric": "euclidean", "standardize": "yes", "device": "cpu"}),
    Case("tree", {"max_depth": 6}),
    Case("forest", {"n_estimators": 15}),
    Case("boosting", {"n_estimators": 12, "min_samples_leaf": 5}),
    Case("naive-bayes"),
    Case("naive-bayes", {"standardize": "yes"}),
    Case("dummy"),
]


def blobs(rows: int = 240, columns: int = 12, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Return float32 rows around one random centre a class, and int labels; every class occurs."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    centres = np.random.default_rng(99).normal(size=(classes, columns)) * 2 + 3
    return (centres[y] + rng.normal(size=(rows, columns))).astype(np.float32), y


def weights(head: Head) -> list[np.ndarray[Any, Any]]:
    """Return all fitted arrays."""
    found = []
    for name, value in sorted(vars(head).items()):
        if name.endswith("_"):
            found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, np.ndarray)]
    return found


def same(one: Head, other: Head) -> bool:
    """Whether two heads hold bit for bit the same arrays."""
    a, b = weights(one), weights(other)
    return len(a) == len(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def learns(case: Case) -> None:
    X, y = blobs()
    test, truth = blobs(seed=1)
    options = {"epochs": 60} if "epochs" in case.options else {}
    head = case.head(**options).fit(X, y)
    assert (head.score(test, truth) > 0.9) == case.learns
    assert head.fit_seconds_ > 0


def same_seed_same_head(case: Case) -> None:
    X, y = blobs()
    before = np.random.get_state()[1].copy()
    assert same(case.head().fit(X, y), case.head().fit(X, y))
    assert np.array_equal(before, np.random.get_state()[1])


def save_and_load(case: Case) -> None:
    X, y = blobs()
    head = case.head().fit(
        X.astype(np.float16), np.array(["ant", "bee", "cat"])[y], X[:40], np.array(["ant"] * 40)
    )
    data = saving.dumps(head, CONTEXT)
    loaded = saving.loads(data)
    assert type(loaded) is type(head)
    assert loaded.get_params() == head.get_params()
    for rows in (X, X.astype(np.float16), X.astype(np.float64), X[:1]):
        assert np.array_equal(loaded.predict_proba(rows), head.predict_proba(rows))
        assert np.array_equal(loaded.predict(rows), head.predict(rows))
        if hasattr(head, "decision_function"):
            assert np.array_equal(loaded.decision_function(rows), head.decision_function(rows))
    assert all(getattr(loaded, name) == getattr(head, name) for name in head.ATTRIBUTES)
    assert saving.dumps(loaded, CONTEXT) == data
    assert saving.context_of(data) == CONTEXT


def validation_never_touches_weights(case: Case) -> None:
    X, y = blobs()
    X_val, y_val = blobs(60, seed=1)
    off = case.never_stops
    one = case.head(**off).fit(X, y, X_val, y_val)
    other = case.head(**off).fit(X, y, X_val * -7 + 100, (y_val + 1) % 3)
    assert same(one, other)
    assert same(one, case.head(**off).fit(X, y))


def labels_survive(case: Case) -> None:
    X, y = blobs()
    plain = case.head().fit(X, y).predict(X)
    for labels in (
        np.array(["cat", "ant", "dragon fly"]),
        np.array(["z", "é", "日本"], dtype=object),
        np.array([30, 10, 20]),
        np.array([-1, 300, 7], dtype=np.int16),
    ):
        order = np.argsort(labels)  # sorted class i is code i, so that every kind breaks ties the same way
        names = labels[order]
        head = case.head().fit(X, names[y])
        assert np.array_equal(head.classes_, names)
        assert np.array_equal(head.predict(X), names[plain])
        loaded = saving.loads(saving.dumps(head))
        assert loaded.classes_.dtype == head.classes_.dtype
        assert np.array_equal(loaded.predict(X), names[plain])


def wrong_columns_refused(case: Case) -> None:
    X, y = blobs()
    head = case.head().fit(X, y)
    for used in (head, saving.loads(saving.dumps(head))):
        with pytest.raises(HeadError, match=r"X has 11 features, but \w+ is expecting 12 features as input"):
            used.predict(X[:, :11])
    with pytest.raises(HeadError, match=r"X has 13 features, but \w+ is expecting 12 features as input"):
        case.head().fit(X, y, np.ones((4, 13), np.float32), y[:4])


def wrong_features_refused(case: Case) -> None:
    X, y = blobs()
    context = saving.context_of(saving.dumps(case.head().fit(X, y), CONTEXT))
    saving.check_fit(context, fingerprint="f" * 64, node="avgpool", columns=12, classes=("ant", "bee", "cat"))
    with pytest.raises(HeadError, match=r"fingerprint: expected fff.*, got 000"):
        saving.check_fit(context, **{**CONTEXT, "fingerprint": "0" * 64})
    with pytest.raises(HeadError, match=r"node: expected avgpool, got fc; columns: expected 12, got 99"):
        saving.check_fit(context, **{**CONTEXT, "node": "fc", "columns": 99})
    with pytest.raises(HeadError, match=r"classes: expected 3 \(ant, bee, cat\), got 2 \(ant, bee\)"):
        saving.check_fit(context, **{**CONTEXT, "classes": ["ant", "bee"]})


def params_and_clone(case: Case) -> None:
    X, y = blobs()
    head = case.head()
    assert head.get_params().items() >= case.options.items()
    assert set(head.get_params()) == set(head.OPTIONS)
    twin = clone(head.fit(X, y))
    assert twin.get_params() == head.get_params()
    assert not hasattr(twin, "classes_")
    assert same(twin.fit(X, y), head)


def stored_types(case: Case) -> None:
    """float16 is read as it is, and gives what the same values in float32 give."""
    X, y = blobs()
    half = X.astype(np.float16)
    kept = half.copy()
    head, wide = case.head().fit(half, y), case.head().fit(half.astype(np.float32), y)
    assert np.array_equal(half, kept)
    assert np.allclose(head.predict_proba(half), wide.predict_proba(half.astype(np.float32)), atol=1e-4)


def read_only_memory_map(case: Case, folder: Path) -> None:
    X, y = blobs()
    X.astype(np.float16).tofile(folder / "X")
    mapped = np.memmap(folder / "X", dtype=np.float16, mode="r", shape=X.shape)
    head = case.head().fit(mapped, y, mapped[:30], y[:30])
    there = case.head().fit(np.array(mapped), y, np.array(mapped[:30]), y[:30])
    assert same(head, there)
    assert np.array_equal(head.predict(mapped), there.predict(mapped))


def single_row(case: Case) -> None:
    X, y = blobs()
    head = case.head().fit(X, y)
    alone = np.concatenate([head.predict_proba(X[i : i + 1]) for i in range(20)])
    assert alone.shape == (20, 3)
    assert np.allclose(alone, head.predict_proba(X[:20]), atol=1e-5)
    assert np.allclose(alone.sum(axis=1), 1)


def two_classes(case: Case) -> None:
    X, y = blobs(classes=2)
    head = case.head(**({"epochs": 60} if "epochs" in case.options else {})).fit(
        X, np.array(["no", "yes"])[y]
    )
    assert (head.score(X, np.array(["no", "yes"])[y]) > 0.9) == case.learns
    proba = head.predict_proba(X)
    assert proba.shape == (len(X), 2)
    assert np.array_equal(head.predict(X) == "yes", proba.argmax(axis=1) == 1)
    if hasattr(head, "decision_function"):
        assert np.array_equal(head.decision_function(X) > 0, head.predict(X) == "yes")


def class_absent_from_validation(case: Case) -> None:
    X, y = blobs()
    seen = y < 2
    case.head().fit(X, y, X[seen], y[seen])


def class_absent_from_training(case: Case) -> None:
    """Validation rows of other classes are errors, and make no difference to anything else."""
    X, y = blobs()
    names = np.array(["ant", "bee", "cat"])
    plain = case.head().fit(X, names[y], X[:60], names[y[:60]])
    assert plain.notes_ == []
    more = np.concatenate([names[y[:60]], ["zebra"] * 20])
    head = case.head().fit(X, names[y], X[:80], more)
    assert head.notes_ == [
        "20 of 80 validation rows are of classes without training rows ('zebra'): they count as errors."
    ]
    assert same(head, plain)
    assert getattr(head, "converged_", True)
    for one, other in zip(getattr(head, "history_", []), getattr(plain, "history_", []), strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-6)
        assert one["val_accuracy"] == pytest.approx(other["val_accuracy"] * 60 / 80)
    assert same(saving.loads(saving.dumps(head)), head)


def no_class_of_training_in_validation(case: Case) -> None:
    """As the last images of a folder sorted by class give it."""
    X, y = blobs()
    train = y < 2
    head = case.head().fit(X[train], y[train], X[~train], y[~train])
    assert head.notes_ == [
        "80 of 80 validation rows are of classes without training rows (2): validation chose nothing."
    ]
    assert same(head, case.head().fit(X[train], y[train]))
    assert {row["val_loss"] for row in getattr(head, "history_", [])} <= {None}


def views_that_are_all_equal_change_nothing(case: Case) -> None:
    """A head trained by epochs takes rows in groups, one of each an epoch; no other head knows of groups."""
    X, y = blobs()
    rows, labels = np.repeat(X, 4, axis=0), np.repeat(y, 4)
    if "epochs" not in case.options:
        assert not draws_views(case.kind)
        return
    one, many = case.head().fit(X, y, X, y), case.head().fit(rows, labels, X, y, views=4)  # type: ignore[call-arg]
    assert one.n_epochs_ == many.n_epochs_  # type: ignore[attr-defined]
    for ours, theirs in zip(weights(one), weights(many), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def bad_values_refused(case: Case) -> None:
    X, y = blobs()
    for bad in (np.nan, np.inf):
        broken = X.astype(np.float16)
        broken[17, 3] = bad
        with pytest.raises(HeadError, match=r"X contains NaN or inf: (nan|inf) in row 17, column 3"):
            case.head().fit(broken, y)
        with pytest.raises(HeadError, match=r"X contains NaN or inf: (nan|inf) in row 17, column 3"):
            case.head().fit(X, y).predict(broken)
        with pytest.raises(HeadError, match=r"X_val contains NaN or inf: (nan|inf) in row 17, column 3"):
            case.head().fit(X, y, broken, y)
    with pytest.raises(HeadError, match="at least two classes"):
        case.head().fit(X, np.zeros(len(X), int))
    with pytest.raises(HeadError, match="go together"):
        case.head().fit(X, y, X)


def failed_fit_is_no_fit(case: Case) -> None:
    X, y = blobs()
    head = case.head().fit(X, y)
    with pytest.raises(HeadError):
        head.fit(np.full_like(X, np.nan), y)
    with pytest.raises(ValueError, match="not fitted"):
        head.predict(X)
    with pytest.raises(HeadError, match="not fitted"):
        saving.dumps(head)


def constant_columns(case: Case) -> None:
    X, y = blobs()
    X[:, 4] = 1.1
    head = case.head().fit(X, y)
    assert np.isfinite(head.predict_proba(X)).all()
    if head.standardizes:
        assert head.scale_ is not None
        assert head.scale_[4] == 1


def calibration_changes_probabilities_alone(case: Case) -> None:
    X, y = blobs()
    names = np.array(["ant", "bee", "cat"])
    rows, truth = blobs(150, seed=1)
    truth[::9] = (truth[::9] + 1) % 3  # errors that no head can avoid
    head, plain = case.head().fit(X, names[y]), case.head().fit(X, names[y])
    found = head.calibrate(rows, names[truth])
    assert found.temperature == head.temperature_ > 0
    assert same(head, plain)
    for some in (rows, rows.astype(np.float16), rows.astype(np.float64), rows[:1]):
        proba = head.predict_proba(some)
        assert np.array_equal(head.predict(some), plain.predict(some))
        assert np.array_equal(names[proba.argmax(axis=1)], plain.predict(some))
        assert proba.dtype == plain.predict_proba(some).dtype
        assert np.allclose(proba.sum(axis=1), 1, atol=1e-5)
        if hasattr(head, "decision_function"):
            assert np.array_equal(head.decision_function(some), plain.decision_function(some))
    assert log_loss(truth, head.predict_proba(rows)) <= log_loss(truth, plain.predict_proba(rows)) + 1e-6
    assert found.ece_before == expected_calibration_error(truth, plain.predict_proba(rows))
    assert found.ece_after == expected_calibration_error(truth, head.predict_proba(rows))


def a_calibrated_head_is_saved_so(case: Case) -> None:
    X, y = blobs()
    head = case.head().fit(X, y)
    before = saving.dumps(head, CONTEXT)
    head.calibrate(*blobs(90, seed=1))
    data = saving.dumps(head, CONTEXT)
    loaded = saving.loads(data)
    assert data != before
    assert loaded.temperature_ == head.temperature_
    assert np.array_equal(loaded.predict_proba(X), head.predict_proba(X))
    assert saving.dumps(loaded, CONTEXT) == data
    assert not hasattr(saving.loads(before), "temperature_")
    assert not hasattr(head.fit(X, y), "temperature_")
    assert not hasattr(clone(head.fit(X, y)), "temperature_")


def calibration_leaves_other_classes_out(case: Case) -> None:
    X, y = blobs()
    head, other = case.head().fit(X, y), case.head().fit(X, y)
    rows, truth = blobs(90, seed=1)
    truth[::7] = (truth[::7] + 1) % 3
    wanted = head.calibrate(rows[:60], truth[:60])
    found = other.calibrate(rows, np.concatenate([truth[:60], np.full(30, 7)]))
    assert found.temperature == pytest.approx(wanted.temperature, rel=1e-4)
    assert found.ece_after == pytest.approx(wanted.ece_after, abs=1e-4)


def calibration_refuses_what_fit_refuses(case: Case) -> None:
    X, y = blobs()
    with pytest.raises(ValueError, match="not fitted"):
        case.head().calibrate(X, y)
    head = case.head().fit(X, y)
    with pytest.raises(HeadError, match="No row to calibrate on is of a class that the head knows: 7, 8"):
        head.calibrate(X[:2], np.array([8, 7]))
    with pytest.raises(HeadError, match="expecting 12 features"):
        head.calibrate(X[:, :3], y)
    with pytest.raises(HeadError, match="NaN or inf"):
        head.calibrate(np.full_like(X, np.nan), y)
    assert not hasattr(head, "temperature_")


CHECKS: list[Callable[[Case], None]] = [
    learns,
    same_seed_same_head,
    save_and_load,
    validation_never_touches_weights,
    labels_survive,
    wrong_columns_refused,
    wrong_features_refused,
    params_and_clone,
    stored_types,
    single_row,
    two_classes,
    class_absent_from_validation,
    class_absent_from_training,
    no_class_of_training_in_validation,
    views_that_are_all_equal_change_nothing,
    bad_values_refused,
    failed_fit_is_no_fit,
    constant_columns,
    calibration_changes_probabilities_alone,
    a_calibrated_head_is_saved_so,
    calibration_leaves_other_classes_out,
    calibration_refuses_what_fit_refuses,
]
