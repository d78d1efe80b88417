"""Heads of decision trees: one tree, a random forest, gradient boosting. scikit-learn grows them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import STANDARDIZE, ArraySpec, Head, ScoredHead, Task, two_sided
from featcache.heads.labels import UNKNOWN
from featcache.heads.options import Option, choice, number, whole
from featcache.heads.scaling import Matrix, standardised
from featcache.heads.trees import LEAF, Trees, specs, together

_CRITERION = choice("what a split should lessen", "gini", "entropy")
_DEPTH = whole("depth of a tree, at most; None: as deep as the rows allow", least=1, or_none=True)
_LEAF_ROWS = whole("training rows in a leaf, at least", least=1)
_SEED = whole("of the order of columns, and of the rows of each tree", least=0)
_SHARE = number("share", above=0, below=1 + 1e-9)


class TreesHead(Head):
    """What the heads of trees share: their arrays. Columns are not standardised: no tree minds a scale.

    Fitted: the arrays of `featcache.heads.trees.Trees`, each with an underscore: `column_`, `threshold_`,
    `left_`, `right_`, `value_`, `roots_`.
    """

    STANDARDIZES: ClassVar = False

    column_: NDArray[np.int32]
    threshold_: NDArray[np.float64]
    left_: NDArray[np.int32]
    right_: NDArray[np.int32]
    value_: NDArray[np.float64]
    roots_: NDArray[np.int64]

    def damage(self) -> str:
        """Return a word on nodes that lead out of their tree."""
        return self._trees.damage(self.n_features_in_)

    @property
    def _trees(self) -> Trees:
        return Trees(self.column_, self.threshold_, self.left_, self.right_, self.value_, self.roots_)

    def _keep(self, trees: Trees) -> None:
        for name, array in vars(trees).items():
            setattr(self, f"{name}_", array)


class VotingHead(TreesHead):
    """Trees whose leaves hold the classes' shares of training rows; the mean over the trees is the answer.

    A calibrated head counts one tree more that is for all classes alike, so that none is impossible.
    """

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what the trees' arrays must be."""
        return specs(len(self.classes_))

    def _learn(self, task: Task) -> None:
        rows = standardised(task.X, self._moments(task))
        self._keep(together([_grown(tree) for tree in self._grow(rows, task)]))

    @abstractmethod
    def _grow(self, rows: Matrix, task: Task) -> list[Any]:
        """Return scikit-learn's fitted trees."""

    def _block_scores(self, block: Matrix) -> Matrix:
        # scikit-learn compares float32 values with float64 thresholds.
        summed = self._trees.sums(block.astype(np.float32, copy=False))[:, 0]
        return (summed / len(self.roots_)).astype(block.dtype, copy=False)

    def _probabilities(self, scores: Matrix) -> Matrix:
        return scores

    def _logits(self, scores: Matrix) -> Matrix:
        logits: Matrix = np.log(scores * len(self.roots_) + 1 / scores.shape[1])
        return logits


class TreeHead(VotingHead):
    """One decision tree: scikit-learn's DecisionTreeClassifier (CART, Breiman et al. 1984)."""

    KIND: ClassVar = "tree"
    OPTIONS: ClassVar = {
        "criterion": _CRITERION,
        "max_depth": _DEPTH,
        "min_samples_leaf": _LEAF_ROWS,
        "standardize": STANDARDIZE,
        "seed": _SEED,
    }

    def __init__(
        self,
        criterion: str = "gini",
        max_depth: int | None = None,
        min_samples_leaf: int = 1,
        standardize: str = "auto",
        seed: int = 0,
    ) -> None:
        self.criterion = criterion
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.standardize = standardize
        self.seed = seed

    def _grow(self, rows: Matrix, task: Task) -> list[Any]:
        from sklearn.tree import DecisionTreeClassifier

        tree = DecisionTreeClassifier(
            criterion=self.criterion,
            max_depth=self.max_depth,
            min_samples_leaf=int(self.min_samples_leaf),
            random_state=_seed(self.seed),
        )
        return [tree.fit(rows, task.y)]


class ForestHead(VotingHead):
    """A random forest: scikit-learn's RandomForestClassifier (Breiman 2001), grown on all cores.

    `max_features` is how many columns a split looks at: "sqrt" of them, "all", or a share of them.
    """

    KIND: ClassVar = "forest"
    OPTIONS: ClassVar = {
        "n_estimators": whole("trees", least=1),
        "criterion": _CRITERION,
        "max_depth": _DEPTH,
        "min_samples_leaf": _LEAF_ROWS,
        "max_features": Option(
            "sqrt, all or a share above 0 and at most 1",
            "columns that a split looks at",
            lambda value: value in ("sqrt", "all") if isinstance(value, str) else _SHARE.accepts(value),
        ),
        "standardize": STANDARDIZE,
        "seed": _SEED,
    }

    def __init__(
        self,
        n_estimators: int = 100,
        criterion: str = "gini",
        max_depth: int | None = None,
        min_samples_leaf: int = 1,
        max_features: str | float = "sqrt",
        standardize: str = "auto",
        seed: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.criterion = criterion
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.standardize = standardize
        self.seed = seed

    def _grow(self, rows: Matrix, task: Task) -> list[Any]:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            n_estimators=int(self.n_estimators),
            criterion=self.criterion,
            max_depth=self.max_depth,
            min_samples_leaf=int(self.min_samples_leaf),
            max_features=_columns(self.max_features),
            random_state=_seed(self.seed),
            n_jobs=-1,  # trees do not depend on each other: the same forest on any number of cores
        )
        return list(forest.fit(rows, task.y).estimators_)


class BoostingHead(TreesHead, ScoredHead):
    """Gradient-boosted trees: scikit-learn's HistGradientBoostingClassifier (after LightGBM, Ke et al. 2017).

    With validation rows and a patience, boosting stops after so many rounds without a smaller validation
    loss, and the trees after the best round are dropped. Fitted besides the trees: `baseline_` (K,), K = 1
    with two classes, else C, and `n_iter_`, the rounds kept.
    """

    KIND: ClassVar = "boosting"
    OPTIONS: ClassVar = {
        "n_estimators": whole("rounds, at most; each grows a tree a class", least=1),
        "lr": number("how much of each tree's answer counts", above=0),
        "max_leaf_nodes": whole("leaves of a tree, at most", least=2),
        "max_depth": _DEPTH,
        "min_samples_leaf": _LEAF_ROWS,
        "patience": whole("rounds without improvement before stopping; None: never", least=1, or_none=True),
        "standardize": STANDARDIZE,
        "seed": _SEED,
    }
    ATTRIBUTES: ClassVar = {"n_iter_": int}

    baseline_: NDArray[np.float64]
    n_iter_: int

    def __init__(
        self,
        n_estimators: int = 100,
        lr: float = 0.1,
        max_leaf_nodes: int = 31,
        max_depth: int | None = None,
        min_samples_leaf: int = 20,
        patience: int | None = 10,
        standardize: str = "auto",
        seed: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.lr = lr
        self.max_leaf_nodes = max_leaf_nodes
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.patience = patience
        self.standardize = standardize
        self.seed = seed

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what the trees' arrays and the baseline must be."""
        return {**specs(1), "baseline_": ArraySpec((self._outputs,))}

    def damage(self) -> str:
        """Return a word on nodes that lead out of their tree, or on trees that are missing."""
        if len(self.roots_) % self._outputs:
            return "a round of boosting lacks trees"
        return super().damage()

    @property
    def _outputs(self) -> int:
        return len(self.classes_) if len(self.classes_) > 2 else 1

    def _learn(self, task: Task) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        columns = self._moments(task)
        stops = self.patience is not None and task.X_val is not None
        model = HistGradientBoostingClassifier(
            learning_rate=float(self.lr),
            max_iter=int(self.n_estimators),
            max_leaf_nodes=int(self.max_leaf_nodes),
            max_depth=self.max_depth,
            min_samples_leaf=int(self.min_samples_leaf),
            early_stopping=stops,
            n_iter_no_change=int(self.patience or 1),
            tol=0.0,
            random_state=_seed(self.seed),
        )
        held = {}
        if stops and task.X_val is not None and task.y_val is not None:
            known = task.y_val != UNKNOWN
            held = {"X_val": standardised(task.X_val[known], columns), "y_val": task.y_val[known]}
        model.fit(standardised(task.X, columns), task.y, **held)
        # The score before the first round comes first; a model without any tree would have no use.
        self.n_iter_ = max(1, int(np.argmax(model.validation_score_))) if stops else int(model.n_iter_)
        rounds = model._predictors[: self.n_iter_]
        self._keep(together([_boosted(tree.nodes) for each in rounds for tree in each]))
        self.baseline_ = np.asarray(model._baseline_prediction, np.float64).reshape(-1)

    def _block_scores(self, block: Matrix) -> Matrix:
        raw = self._trees.sums(block, self._outputs)[:, :, 0] + self.baseline_
        return two_sided(raw.astype(block.dtype, copy=False))


def _grown(model: Any) -> dict[str, NDArray[Any]]:
    tree = model.tree_
    leaf = tree.children_left < 0
    shares = tree.value[:, 0, :]
    return {
        "column": np.where(leaf, LEAF, tree.feature),
        "threshold": tree.threshold,
        "left": tree.children_left,
        "right": tree.children_right,
        "value": shares / shares.sum(axis=1, keepdims=True),
    }


def _boosted(nodes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {
        "column": np.where(nodes["is_leaf"], LEAF, nodes["feature_idx"]),
        "threshold": nodes["num_threshold"],
        "left": nodes["left"].astype(np.int64),
        "right": nodes["right"].astype(np.int64),
        "value": nodes["value"][:, None],
    }


def _columns(asked: str | float) -> str | float | None:
    if isinstance(asked, str):
        return None if asked == "all" else asked
    return float(asked)


def _seed(seed: int) -> int:
    """Return a seed as scikit-learn takes it, below 2^32."""
    return int(seed) % (1 << 32)
