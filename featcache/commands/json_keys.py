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
    "peak_rss_bytes": "largest resident memory of the process, see `costs`",
    "params": "all options of the head",
    "costs": "what it cost, see below",
}

COSTS = {
    "fit_seconds": "wall clock; of heads fitted together each one's share",
    "fit_rows": "rows trained on, each as often as it was seen",
    "predict_seconds": "of the splits predicted when the run was made",
    "predict_rows": "of these",
    "reads": "what the seconds begin with: features (in a cache) or images (to be decoded)",
    "peak_ram_bytes": "largest resident memory of the process, touched pages of mapped files included",
    "ram_before_bytes": "of it there before: the interpreter, libraries, what the process had done",
    "ram_since": "since when the peak counts: measurement, or process start where it cannot be set back",
    "peak_gpu_bytes": "most GPU memory that torch's tensors had; null without a GPU",
    "parameters_trained": "numbers that were learned",
    "parameters": "numbers that the stored model holds, mean and scale included",
    "disk_bytes": "of the stored model",
    "together": "how many were fitted at once; memory is that of all",
    "predict_seconds_per_1000": "seconds to predict 1000 rows",
    "images_per_second": "rows predicted in a second",
    "fit_images_per_second": "rows trained on in a second",
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
    "runtime": "what ran the backbone: torch, compile or openvino; null if it embedded none",
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
        "runtime": "what would run the backbone; null for a hit",
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
    "predict": {
        "run": "the run's id",
        "images": "how many were classified",
        "bad_images": "how many could not be read",
        "seconds": "from the first file to the last",
        "images_per_second": "of these",
        "predictions": "a list in order, each with path, class, probability, top (the likeliest classes, "
        "each with class and probability) and error (null, or why there is no class)",
    },
    "export": {
        "path": "the file",
        "bytes": "its size",
        "run": "the run's id",
        "format": "onnx, torch-export or torchscript",
        "input": "type and shape of what it takes",
        "output": "type and shape of what it answers",
        "classes": "their names, in the order of the probabilities",
        "preprocess": "what has to be done to an image before: resize, crop, interpolation, mean, std",
        "recipe": "all that the features depend on",
        "node": "the node that the head reads",
        "difference": "largest difference of a probability from featcache's own, in the check",
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
        "accuracy, its 95 % interval from low to high, and costs (see below)",
        "pairs": "a list, each with a, b, difference (b - a, of 1), low, high, only_a and only_b (rows that "
        "one alone got right), p (McNemar), p_holm, better (a run, or null) and verdict, a sentence",
        "notes": "what to keep in mind",
    },
    "report": {
        "page": "where the page was written; null without one",
        "figures": "the files of figures written",
        "groups": "a list, each of runs evaluated on the same rows, with dataset, split, rows, runs (see below), "
        "against (of each run but the first: run, difference of the first to it, low, high, p_holm, worse; null "
        "where rows cannot be paired), front (runs on the Pareto front of accuracy and time to fit, fastest "
        "first), verdict and notes (sentences)",
        "left_out": "runs that are not in it, and why",
    },
    "a run of report": {
        "rank": "by accuracy, from 1",
        "run": "the run's id",
        "label": "its short name in the report",
        **{name: "as recorded" for name in ("dataset", "split", "rows", "head", "cache", "backbone", "node")},
        **{
            name: "as recorded; null for what is not known" for name in ("train_rows", "epochs", "best_epoch")
        },
        "accuracy": "share of rows",
        "low": "of its 95 % interval",
        "high": "likewise",
        **{name: METRICS[name] for name in ("top5", "macro_f1", "log_loss", "ece")},
        "worst_class": "the class with the least F1",
        "worst_f1": "its F1",
        **COSTS,
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
        "extractions": "the extractions that filled it: images, seconds, device, runtime, batch_size",
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
    "doctor --drift": {
        "cache": "the cache's name",
        "rows": "how many rows were embedded again",
        "nodes": "node → how far they are from the stored ones: cosine (the smallest over the rows), "
        "difference (the largest, in standard deviations of its column, beyond what rounding to the stored "
        "type explains), worst (id of that row), column",
        "least_cosine": "what is allowed for the recipe's precision",
        "largest_difference": "likewise; null where only the cosine is held to a limit",
        "versions": "library → [when it was made, here], where they differ",
        "within": "whether all is within what is allowed; if not, the exit code is 1",
    },
    "demo": {
        "weights": "which weights ResNet-18 got",
        "extract": "as `extract --json` gives it",
        "hit_seconds": "time of the second extraction",
        "rows": "a list, each with head, features, val_accuracy, test_accuracy, fit_seconds",
    },
    "any of them, when it fails": {"error": "what went wrong", "hint": "what to do next, possibly empty"},
}
