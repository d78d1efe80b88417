"""Lightning at work: on which devices, how repeatably, and without its chatter."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Iterator
from importlib import util
from typing import TYPE_CHECKING, Any

import torch

from featcache.backbones.devices import float32_as, resolve_device
from featcache.errors import OptionError
from featcache.finetuning.options import Finetuning

if TYPE_CHECKING:
    from featcache.finetuning.learner import Learner

EXTRA = "pip install 'featcache[finetune]'"


def require_lightning() -> None:
    """Refuse to go on without Lightning.

    Raises:
        OptionError: it is not installed; the hint says how to install it.
    """
    if util.find_spec("lightning") is None:
        raise OptionError("Fine-tuning needs Lightning, which is not installed.", f"{EXTRA}.")


def devices_of(device: str) -> list[str]:
    """Return the devices that a text such as "auto", "cpu" or "cuda:0,cuda:1" names.

    Raises:
        OptionError: one is unknown, is not there, or is named twice.
    """
    found = [resolve_device(each.strip()) for each in device.split(",")]
    if len(set(found)) < len(found) or (len(found) > 1 and "cpu" in found):
        raise OptionError(f"Cannot train on {device!r}.", "Name one device, or several GPUs, each once.")
    return found


def processes() -> Any:
    """Return the way in which processes of several devices are started: as new ones where that is possible.

    A forked process cannot train where its parent has trained or used a GPU before. An interactive session
    has no file that a new process could begin with, so that forking is all there is.
    """
    return multiprocessing.get_context("fork" if _interactive() else "spawn")


def check_processes() -> None:
    """Refuse several devices where processes for them cannot be started.

    Raises:
        OptionError: saying what to do.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise OptionError(
            "Training on several devices begins this program anew in every process, which then trains again.",
            'Put what it does under: if __name__ == "__main__":',
        )
    if _interactive() and torch.cuda.is_initialized():
        raise OptionError(
            "An interactive session that has used a GPU cannot start the processes for several devices.",
            "Restart it and train on several devices first, or run: featcache finetune --device …",
        )


def _interactive() -> bool:
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def run(learner: Learner, asked: Finetuning, devices: list[str]) -> None:
    """Train for the epochs that are left.

    Raises:
        KeyboardInterrupt: it was stopped; who listens to that is as it was before.
    """
    import lightning.pytorch as pl

    on_gpu = devices[0] != "cpu"
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[int(each.partition(":")[2]) for each in devices] if on_gpu else len(devices),
        strategy="auto" if len(devices) == 1 else f"ddp_{processes().get_start_method()}",
        precision="bf16-mixed" if asked.precision == "bf16" else "32-true",
        max_epochs=learner.left,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=None if len(learner.data.val_rows) else 0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    learner.model.to(memory_format=torch.channels_last)
    learner.train()
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(learner)
    except SystemExit:  # Lightning's answer to Ctrl-C, which it has let nobody hear from then on
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread: then nothing was changed either
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice and the warnings about its own code to itself."""
    import lightning.pytorch  # sets levels of its own  # noqa: F401

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


@contextlib.contextmanager
def repeatable(precision: str, devices: list[str]) -> Iterator[None]:
    """Compute float32 as the precision says, with cuDNN's repeatable algorithms.

    torch's own generators are left as they were.
    """
    gpus = [each for each in devices if each != "cpu"] if len(devices) == 1 else []
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with torch.random.fork_rng(devices=gpus), float32_as("tf32" if precision == "tf32" else "ieee"):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
