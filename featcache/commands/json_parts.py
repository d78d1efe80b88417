"""Keys that the `--json` answers of several commands share: a run, its metrics and costs, an extraction."""

from __future__ import annotations

METRICS = {
    "n": "rows",
    "accuracy": "share of rows whose likeliest class is the true one",
    "top5": "share of rows whose true class is among the five likeliest",
    **dict.fromkeys(("macro_precision", "macro_recall", "macro_f1"), "mean over the classes"),
    "log_loss": "mean of -ln p(true class), in nats",
    "ece": "expected calibration error, 15 bins, 0..1",
    "worst_class": "the class with the least F1: class, f1, precision, recall",
    "predict_seconds": "time to predict the split",
}

RUN = {
    "run": "the run's id",
    "head": "its kind",
    "cache": "the cache's name",
    "val": "metrics on the validation split (see below), null without one",
    "test": "metrics on the test split, null where it was not asked for; with --test-views also views, how "
    "many each probability is the mean over",
    "best_epoch": "1-based; null for heads that are not trained by epochs",
    "epochs": "epochs trained; null likewise",
    "cv": "of a head that cross-validation chose: metrics of the folds' pooled predictions, folds, seed, "
    "mean and sd of the folds' accuracies, runs (the folds'); null otherwise",
    "subset": "which training rows it saw: per_class or fraction, trial and seed, or fold, folds and seed; "
    "null: all",
    "views": "of a cache with augmented views: mode (random, all or clean) and count; null otherwise",
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

EXTRACT = {
    "cache": "path of the cache",
    "hit": "whether it was finished before",
    "fingerprint": "of data set and recipe, 64 hexadecimal digits; the folder's name ends with the first ten",
    "rows": "rows per split",
    "columns": "D of the first node",
    "nodes": "D of every node",
    "bytes": "size of all shards",
    "images_per_second": "of this call, null if it embedded none",
    "seconds": "of the whole call",
    "copied": "views that were copied from finished caches of the same recipe, or from an equal image",
    "bad_images": "how many images could not be read",
    "runtime": "what ran the backbone: torch, native, winograd, compile, openvino; null if it embedded none",
}
