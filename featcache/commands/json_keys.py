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
        "nodes": _EXTRACT["nodes"],
        "columns": _EXTRACT["columns"],
        "bytes_per_image": "of the features, all nodes together",
        "bytes": "still to write",
        "free_bytes": "free on the disk of the features folder",
        "images_per_second": "measured on a few batches; null for a hit",
        "seconds": "what is left, at that rate",
    },
    "train-head": _RUN,
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
        "split": "which rows: test or val",
        "rows": "how many",
        "seed": "of the bootstrap",
        "resamples": "of the bootstrap",
        "runs": "a list, each with run, head, cache, accuracy, and its 95 % interval from low to high",
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
        "sessions": "the extractions that filled it: images, seconds, device, batch_size",
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
