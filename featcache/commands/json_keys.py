"""The keys of every `--json` answer: docs/cli.md is made from them, and a test holds the commands to them."""

from __future__ import annotations

METRICS = {
    "n": "rows",
    "accuracy": "share of rows whose likeliest class is the true one",
    "top5": "share of rows whose true class is among the five likeliest",
    "macro_precision": "mean over the classes",
    "macro_recall": "mean over the classes",
    "macro_f1": "mean over the classes",
    "log_loss": "mean of -ln p(true class), in nats",
    "ece": "expected calibration error, 15 bins, 0..1",
    "worst_class": "the class with the least F1: class, f1, precision, recall",
    "predict_seconds": "time to predict the split",
}

_RUN = {
    "run": "the run's id",
    "head": "its kind",
    "cache": "the cache's name",
    "val": "metrics on the validation split (see below), null without one",
    "test": "metrics on the test split, null where it was not asked for",
    "best_epoch": "1-based; null for heads that are not trained by epochs",
    "epochs": "epochs trained; null likewise",
    "cv": "of a head that cross-validation chose: metrics of the folds' pooled predictions, folds, seed, "
    "mean and sd of the folds' accuracies, runs (the folds'); null otherwise",
    "subset": "which training rows it saw: per_class or fraction, trial and seed, or fold, folds and seed; "
    "null: all",
    "train_rows": "how many",
    "calibration": "null unless --calibrate: temperature, and val and test with ece_before and ece_after",
    "fit_seconds": "time to fit, without reading and predicting",
    "peak_rss_bytes": "largest resident memory of the process",
    "params": "all options of the head",
}

_EXTRACT = {
    "cache": "path of the cache",
    "hit": "whether it was finished before",
    "fingerprint": "of data set and recipe, 64 hexadecimal digits; the folder's name ends with the first ten",
    "rows": "rows per split",
    "columns": "D of the first node",
    "nodes": "D of every node",
    "bytes": "size of all shards",
    "images_per_second": "of this call, null if it embedded none",
    "seconds": "of the whole call",
    "bad_images": "how many images could not be read",
}

KEYS: dict[str, dict[str, str]] = {
    "extract": _EXTRACT,
    "extract --dry-run": {
        "cache": _EXTRACT["cache"],
        "hit": _EXTRACT["hit"],
        "fingerprint": _EXTRACT["fingerprint"],
        "images": "images of the data set",
        "rows": _EXTRACT["rows"],
        "rows_there": "rows that are committed already",
        "rows_elsewhere": "images whose features other caches of the same recipe have",
        "nodes": _EXTRACT["nodes"],
        "columns": _EXTRACT["columns"],
        "bytes_per_image": "of the features, all nodes together",
        "bytes": "still to write",
        "free_bytes": "free on the disk of the features folder",
        "images_per_second": "measured on a few batches; null for a hit",
        "seconds": "what is left, at that rate",
    },
    "train-head": _RUN,
    "sweep": {
        "cache": "the cache's name",
        "head": "the kind of the heads",
        "heads": "how many there are: configurations × seeds",
        "found": "of these, how many had been trained before",
        "failed": "of these, how many could not be trained",
        "together": "how many were fitted together, at most; 0 where all were found",
        "seconds": "of the whole sweep",
        "configurations": "a list, the best first, each with the keys below; of a learning curve those of "
        "the last size",
        "best": "the run chosen, as `train-head` gives it; its `test` is null without --test",
        "curve": "with --few-shot or --fractions a list, one a size, each with the keys below; else empty",
    },
    "a configuration of sweep": {
        "values": "option → value, of the grid",
        "runs": "ids of its runs, one for each seed, or for each trial or fold and seed",
        "val_accuracy": "their mean, null where every one failed; with --cv over the folds",
        "val_accuracy_sd": "sample standard deviation over the seeds, or over the trials or folds; null for "
        "fewer than two",
        "val_log_loss": "mean",
        "best_epoch": "mean; null for heads that are not trained by epochs",
        "fit_seconds": "mean; heads trained together share the time equally",
        "failures": "what went wrong, for each head that failed",
    },
    "a size of sweep --few-shot or --fractions": {
        "size": "in words",
        "per_class": "rows of each class, or null",
        "fraction": "share of each class's rows, or null",
        "rows": "training rows, mean over the trials",
        "trials": "how many draws",
        "values": "of the configuration chosen by its mean validation accuracy at this size",
        "runs": "ids of its runs, one for each trial and seed",
        "val_accuracy": "mean over its runs",
        "val_accuracy_sd": "sample standard deviation over the trials, null for fewer than two",
        "test_accuracy": "mean over its runs, each evaluated once; null without --test",
        "test_accuracy_sd": "as val_accuracy_sd",
        "configurations": "all configurations at this size, the best first",
    },
    "evaluate": {
        **_RUN,
        "val": "metrics on the validation split and `per_class` (class, precision, recall, f1, support), "
        "`confusion` (rows: true class)",
        "test": "the same for the test split",
    },
    "runs": {"runs": "a list, each with the columns of the ledger"},
    "runs --check": {
        "runs": "how many run folders there are",
        "differences": "run → what differs; empty, for otherwise there is an error",
    },
    "compare": {
        "split": "which rows: test, val or cv",
        "rows": "how many",
        "seed": "of the bootstrap",
        "resamples": "of the bootstrap",
        "runs": "a list, each with run, head, cache, subset (of the training rows, in words, or null), "
        "accuracy, and its 95 % interval from low to high",
        "pairs": "a list, each with a, b, difference (b - a, of 1), low, high, only_a and only_b (rows that "
        "one alone got right), p (McNemar), p_holm, better (a run, or null) and verdict, a sentence",
        "notes": "what to keep in mind",
    },
    "ls": {"caches": "a list, each with cache, rows, columns, size, state"},
    "ls --datasets": {"datasets": "a list, each with name and about"},
    "info": {
        "cache": "path of the cache",
        "fingerprint": _EXTRACT["fingerprint"],
        "sealed": "whether it is finished",
        "recipe": "all that its features depend on",
        "request": "the options it was made with",
        "versions": "of the libraries it was made with",
        "rows": "rows per split",
        "nodes": "D of every node",
        "bytes": "size of all shards",
        "shards": "how many are committed",
        "rows_per_shard": "rows a shard holds, at most",
        "classes": "their names in order; a label is an index into them",
        "ignored": "files of the data set that are no images: count, and first, the names of the first 1000",
        "bad_images": "a list, each with id and reason",
        "extractions": "the extractions that filled it: images, seconds, device, batch_size",
        "runs": "its runs, as `runs` gives them",
    },
    "verify": {
        "cache": "path of the cache",
        "shards": "how many are planned",
        "damaged": "shard → what is wrong; empty, for otherwise there is an error",
        "repaired": "the shards computed again",
    },
    "layers": {
        "backbone": "its name",
        "default": "the nodes read without --layer",
        "layers": "a list, each with node, shape (for one image), kind, parameters",
    },
    "doctor": {
        "versions": "of Python and the libraries",
        "devices": "what there is to compute on",
        "folders": "where data, features and official weights are",
        "file_system": 'promise → "" where it is kept, else what happened',
    },
    "demo": {
        "weights": "which weights ResNet-18 got",
        "extract": "as `extract --json` gives it",
        "hit_seconds": "time of the second extraction",
        "rows": "a list, each with head, features, val_accuracy, test_accuracy, fit_seconds",
    },
    "any of them, when it fails": {"error": "what went wrong", "hint": "what to do next, possibly empty"},
}
