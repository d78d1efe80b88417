"""Every kind of head keeps our contract and scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.heads.base import Head
from featcache.heads.catalogue import KINDS, create
from tests import kit_heads as kit


@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", kit.CASES, ids=str)
def test_contract(case: kit.Case, check: Callable[[kit.Case], None]) -> None:
    check(case)


@pytest.mark.parametrize("case", kit.CASES, ids=str)
def test_read_only_memory_map(case: kit.Case, tmp_path: Path) -> None:
    kit.read_only_memory_map(case, tmp_path)


def test_every_kind_has_a_case() -> None:
    assert {case.kind for case in kit.CASES} == set(KINDS)


# A linear layer needs more than the 250 small steps that its defaults make of scikit-learn's few rows.
ESTIMATORS = [
    create("linear", lr=0.03),
    *(create(kind) for kind in KINDS if kind != "linear"),
    create("svm", kernel="rbf"),
    create("svm", kernel="rbf-approx", landmarks=50),
    create("knn", metric="euclidean"),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda head: {})
def test_scikit_learn(estimator: Head, check: Callable[[Any], None]) -> None:
    check(estimator)
