"""The kinds of head by name. Nothing heavy is imported until a kind is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featcache.errors import HeadError, unknown
from featcache.heads.options import Option

if TYPE_CHECKING:
    from featcache.heads.base import Head


@dataclass(frozen=True)
class Kind:
    """Where a kind's class lives ("module:Class") and what it is, in one line."""

    target: str
    description: str


KINDS: dict[str, Kind] = {
    "linear": Kind("featcache.heads.neural:LinearHead", "one linear layer, cross-entropy, Adam"),
    "mlp": Kind("featcache.heads.neural:MLPHead", "hidden layers (50-20) with ReLU, cross-entropy, Adam"),
    "logreg": Kind("featcache.heads.convex:LogisticHead", "multinomial logistic regression, L2 penalty"),
    "svm": Kind("featcache.heads.svm:SVMHead", "support vector machine: linear, or with an RBF kernel"),
    "ridge": Kind("featcache.heads.convex:RidgeHead", "least squares on -1/+1 targets, L2 penalty"),
    "knn": Kind("featcache.heads.neighbours:KNNHead", "votes of the nearest training rows"),
    "tree": Kind("featcache.heads.forests:TreeHead", "one decision tree"),
    "forest": Kind("featcache.heads.forests:ForestHead", "a random forest"),
    "boosting": Kind("featcache.heads.forests:BoostingHead", "gradient-boosted trees, with early stopping"),
    "naive-bayes": Kind("featcache.heads.baselines:NaiveBayesHead", "Gaussian naive Bayes"),
    "dummy": Kind("featcache.heads.baselines:DummyHead", "the classes' frequencies, features unseen"),
}


def head_class(kind: str) -> type[Head]:
    """Return a kind's class.

    Raises:
        HeadError: there is no such kind; the known ones are listed.
    """
    if kind not in KINDS:
        raise unknown("head", kind, KINDS, HeadError)
    module, name = KINDS[kind].target.split(":")
    found: type[Head] = getattr(importlib.import_module(module), name)
    return found


def options(kind: str) -> Mapping[str, Option]:
    """Return a kind's options by name, each with what it accepts and what it means.

    Raises:
        HeadError: there is no such kind.
    """
    return head_class(kind).OPTIONS


def create(kind: str, **params: Any) -> Head:
    """Return an unfitted head of a kind with these parameters, the others at their defaults.

    Raises:
        HeadError: the kind or a parameter is unknown, or a value has the wrong type or range.
    """
    found = head_class(kind)
    for name in params:
        if name not in found.OPTIONS:
            raise unknown(f"option of head {kind!r}:", name, found.OPTIONS, HeadError)
    head = found(**params)
    head.check_options()
    return head
