"""Predictions of a whole network on the rows of a split."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.errors import DatasetError
from featcache.finetuning import images
from featcache.finetuning.job import Job, open_dataset
from featcache.finetuning.model import Model
from featcache.finetuning.options import Finetuning, Place
from featcache.finetuning.predictor import NetworkPredictor
from featcache.progress import Progress, silent
from featcache.store.roster import Roster


@dataclass(frozen=True)
class Found:
    """Probabilities (N, C) of one split's rows (N,), with their labels and the seconds it took."""

    split: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    proba: NDArray[np.float32]
    seconds: float


def predict(
    job: Job, model: Model, split: str, device: str, workers: int = 0, progress: Progress = silent
) -> Found:
    """Return a model's probabilities on a split's rows, in float32 and in evaluation mode.

    Raises:
        DatasetError: an image cannot be read.
    """
    rows, asked = job.rows(split), job.asked
    source = images.Images(job.dataset, job.preprocess, asked.max_pixels, None, device)
    intake = images.Intake(job.preprocess, device)
    proba = np.empty((len(rows), job.layout.classes), np.float32)
    begin, done = time.perf_counter(), 0
    model = model.to(device).eval()
    with torch.inference_mode():
        for batch in images.loader(source, images.plain_batches(rows, asked.batch_size), workers, False):
            pixels, _, _ = images.checked(batch)
            found = torch.softmax(model(intake(pixels)).float(), dim=1).cpu().numpy()
            proba[done : done + len(found)] = found
            done += len(found)
            progress(f"predict {split}", done, len(rows))
    return Found(split, rows, job.plan.labels[rows], proba, time.perf_counter() - begin)


def test(roster: Roster, predictor: NetworkPredictor, batch_size: int = 64) -> Found:
    """Return a stored network's probabilities on the test rows of its roster.

    Raises:
        DatasetError: the images are not there any more, or are others, or one cannot be read.
    """
    request = roster.record["request"]
    asked = Finetuning(**{name: request[name] for name in ("dataset", "limit", "max_pixels")})
    dataset = open_dataset(asked, Place(roster.path.parent, Path(request["data_dir"])), silent)
    if dataset.fingerprint != roster.record["dataset"]["fingerprint"]:
        raise DatasetError(f"The images of {asked.dataset} are not those of {roster.name} any more.")
    rows = np.asarray(roster.plan.range_of("test"), dtype=np.int64)
    source = images.Images(dataset, predictor.preprocess, predictor.max_pixels, None)
    begin, proba = time.perf_counter(), []
    for batch in images.loader(source, images.plain_batches(rows, batch_size), 0, False):
        proba.append(predictor.probabilities(images.checked(batch)[0].numpy()))
    seconds = time.perf_counter() - begin
    return Found("test", rows, roster.plan.labels[rows], np.concatenate(proba), seconds)
