"""Configurations suggested one after the other by what the earlier ones reached, with Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from featcache.errors import OptionError
from featcache.training.grid import Grid, Range
from featcache.training.ranking import Configuration

TOGETHER = 8  # suggestions that are made at once where heads train together


class Suggestions:
    """`count` points of a grid, suggested by Optuna's tree-structured Parzen estimator.

    Source: Bergstra, Bardenet, Bengio and Kégl, Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
    `together` suggestions are made at a time; those that are not told yet count as bad ones meanwhile. The
    same seed and the same results give the same suggestions, so a sweep that is run again comes by the very
    points it was at, finds their runs, and goes on from there.

    Raises:
        OptionError: Optuna is not installed.
    """

    def __init__(self, grid: Grid, count: int, seed: int = 0, together: int = 1) -> None:
        try:
            import optuna
        except ImportError:
            raise OptionError(
                "Optuna is not installed.",
                "pip install 'featcache[optuna]', or draw at random: --random N.",
            ) from None
        self.count, self._grid, self._together = count, grid, together
        self._left = count
        self._asked: list[tuple[Any, dict[str, Any]]] = []
        self._failed = optuna.trial.TrialState.FAIL
        loud = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=together > 1)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        optuna.logging.set_verbosity(loud)

    def ask(self) -> list[dict[str, Any]]:
        """Return the next points, without those that were suggested twice."""
        trials = [self._study.ask() for _ in range(min(self._together, self._left))]
        self._left -= len(trials)
        self._asked = [(trial, self._point(trial)) for trial in trials]
        points: list[dict[str, Any]] = []
        for _, point in self._asked:
            points += [] if point in points else [point]
        return points

    def tell(self, found: Sequence[Configuration]) -> None:
        """Tell the study the mean validation accuracy of each point, or that it failed."""
        for trial, point in self._asked:
            own = next(each for each in found if each.values == point)
            reached = None if own.failures else own.mean("val", "accuracy")
            if reached is None:
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, reached)

    def _point(self, trial: Any) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for name, values in self._grid.items():
            if not isinstance(values, Range):
                point[name] = values[trial.suggest_categorical(name, range(len(values)))]
            elif values.whole:
                point[name] = trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
            else:
                point[name] = values.tidy(trial.suggest_float(name, values.low, values.high, log=values.log))
        return point
