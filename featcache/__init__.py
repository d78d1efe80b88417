"""featcache: transfer learning on frozen features.

>>> import featcache
>>> cache = featcache.extract("cifar10", backbone="vgg16")               # doctest: +SKIP
>>> train, val = cache.table("train"), cache.table("val")                # doctest: +SKIP
>>> head = featcache.MLPHead(hidden=(50, 20))                            # doctest: +SKIP
>>> head.fit(train.X, train.y, X_val=val.X, y_val=val.y)                 # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featcache.version import VERSION as __version__

if TYPE_CHECKING:
    from featcache.api import compare, evaluate, extract, finetune, predictor, report, sweep, train_head
    from featcache.errors import FeatcacheError
    from featcache.heads.baselines import DummyHead, NaiveBayesHead
    from featcache.heads.convex import LogisticHead, RidgeHead
    from featcache.heads.forests import BoostingHead, ForestHead, TreeHead
    from featcache.heads.neighbours import KNNHead
    from featcache.heads.neural import LinearHead, MLPHead
    from featcache.heads.saving import loads as load_head
    from featcache.heads.svm import SVMHead
    from featcache.inference.predictor import Predictor
    from featcache.store.cache import Cache
    from featcache.store.table import Table


# Each name is imported when it is first used: `import featcache` loads neither torch nor scikit-learn.
_PLACES = {
    "BoostingHead": "featcache.heads.forests",
    "Cache": "featcache.store.cache",
    "DummyHead": "featcache.heads.baselines",
    "FeatcacheError": "featcache.errors",
    "ForestHead": "featcache.heads.forests",
    "KNNHead": "featcache.heads.neighbours",
    "LinearHead": "featcache.heads.neural",
    "LogisticHead": "featcache.heads.convex",
    "MLPHead": "featcache.heads.neural",
    "NaiveBayesHead": "featcache.heads.baselines",
    "Predictor": "featcache.inference.predictor",
    "RidgeHead": "featcache.heads.convex",
    "SVMHead": "featcache.heads.svm",
    "Table": "featcache.store.table",
    "TreeHead": "featcache.heads.forests",
    "compare": "featcache.api",
    "evaluate": "featcache.api",
    "extract": "featcache.api",
    "finetune": "featcache.api",
    "load_head": "featcache.heads.saving:loads",
    "predictor": "featcache.api",
    "report": "featcache.api",
    "sweep": "featcache.api",
    "train_head": "featcache.api",
}

__all__ = [
    "BoostingHead",
    "Cache",
    "DummyHead",
    "FeatcacheError",
    "ForestHead",
    "KNNHead",
    "LinearHead",
    "LogisticHead",
    "MLPHead",
    "NaiveBayesHead",
    "Predictor",
    "RidgeHead",
    "SVMHead",
    "Table",
    "TreeHead",
    "__version__",
    "compare",
    "evaluate",
    "extract",
    "finetune",
    "load_head",
    "predictor",
    "report",
    "sweep",
    "train_head",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
