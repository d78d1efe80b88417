"""The Python interface: the same powers as the command line, in one call each."""

from featcache.api.heads import evaluate, sweep, train_head
from featcache.api.making import extract, finetune
from featcache.api.using import compare, predictor, report

__all__ = ["compare", "evaluate", "extract", "finetune", "predictor", "report", "sweep", "train_head"]
