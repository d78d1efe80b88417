"""The kinds by name, their options, and that listing them is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.heads.catalogue import KINDS, create, head_class, options
from featcache.heads.neural import LinearHead


def test_known_kinds() -> None:
    assert list(KINDS) == ["linear", "mlp", "logreg", "svm", "ridge", "knn"]
    for kind, entry in KINDS.items():
        assert kind == head_class(kind).KIND
        assert entry.description
        assert not entry.description.endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_declared_with_help_and_an_accepted_default(kind: str) -> None:
    signature = inspect.signature(head_class(kind))
    assert list(options(kind)) and set(options(kind)) == set(signature.parameters)
    for name, option in options(kind).items():
        assert option.help
        assert option.accepts(signature.parameters[name].default)
        assert not option.accepts(object())


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(
        HeadError, match=r"Unknown head 'lin'\. Known: knn, linear, logreg, mlp, ridge, svm\."
    ):
        create("lin")
    with pytest.raises(
        HeadError, match=r"Unknown option of head 'ridge': 'lr'\. Known: alpha, standardize\."
    ):
        create("ridge", lr=1.0)


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        ("linear", "lr", 0, "a number above 0"),
        ("linear", "lr", "fast", "a number above 0"),
        ("linear", "lr", float("nan"), "a number above 0"),
        ("linear", "epochs", 0, "an integer of at least 1"),
        ("linear", "epochs", 2.5, "an integer of at least 1"),
        ("linear", "epochs", True, "an integer of at least 1"),
        ("linear", "patience", 0, "an integer of at least 1 or None"),
        ("linear", "monitor", "loss", "one of val_loss, val_accuracy"),
        ("linear", "device", "tpu", "auto, cpu, cuda or cuda:N"),
        ("mlp", "hidden", (50, 0), "a tuple, each an integer of at least 1"),
        ("mlp", "hidden", 50, "a tuple, each an integer of at least 1"),
        ("mlp", "dropout", 1.0, "a number at least 0 and below 1, or one for all"),
        ("svm", "gamma", "wide", "scale, auto or a number above 0"),
        ("svm", "kernel", "poly", "one of linear, rbf, rbf-approx"),
        ("knn", "metric", None, "one of cosine, euclidean"),
    ],
)
def test_unusable_values_are_explained(kind: str, name: str, value: Any, expected: str) -> None:
    with pytest.raises(HeadError) as caught:
        create(kind, **{name: value})
    assert f"Option {name} of head {kind!r} cannot be {value!r}" in caught.value.message
    assert expected in caught.value.message
    assert caught.value.hint


def test_a_changed_option_is_checked_when_fitting() -> None:
    head = LinearHead().set_params(lr=-1)
    with pytest.raises(HeadError, match="Option lr"):
        head.fit(np.eye(4), [0, 1, 0, 1])


def test_the_list_of_kinds_is_light() -> None:
    program = (
        "import sys, featcache.heads.catalogue, featcache.metrics\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'PIL', 'torchvision', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert found.stdout.strip() == "[]"
