"""`featcache finetune`: a whole network, from a backbone's weights or from scratch, beside the heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from featcache.commands import options
from featcache.commands.output import duration, progress_bar, say, show_json, size
from featcache.commands.train import show_layers, show_run
from featcache.finetuning import options as known
from featcache.finetuning.options import AUGMENTATIONS

# What a run that this one starts from, or an interrupted run, has decided already.
_BY_RUN = ("network", "dataset", "hidden", "channels", "preprocess", "image_size", "normalize", "limit",
           "max_pixels", "val_fraction", "split_seed", "split_mode")  # fmt: skip
_WITH_RESUME = ("resume", "epochs", "device", "workers", "keep_checkpoints", "features_dir",
                "data_dir", "as_json", "tensorboard", "mlflow")  # fmt: skip


class Names(click.ParamType[Any]):
    """Names one after the other: `flip,jitter`."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        return value if isinstance(value, tuple) else tuple(each.strip() for each in value.split(",") if each)


@click.command(short_help="Train a whole network on the images, beside the heads.")
@click.option("--network", default="resnet18", show_default=True,
              help="A backbone, or small-cnn, simple-resnet, inception-resnet.")  # fmt: skip
@click.option("--dataset", default="cifar10", show_default=True, metavar="NAME|folder:DIR|csv:FILE")
@click.option("--weights", metavar="DEFAULT|NAME|PATH|random:SEED|scratch",
              help="With --from-run: where its weights are now [default: official ones].")  # fmt: skip
@click.option("--from-run", metavar="RUN",
              help="Start with the backbone and the head of a run, on its data set and split.")  # fmt: skip
@click.option("--train", default="all", show_default=True, type=click.Choice(known.TRAIN),
              help="What learns: all, the head, or the head and the last block.")  # fmt: skip
@click.option("--hidden", type=options.Sizes(), default="",
              help="Hidden layers of a new head, e.g. 512 [default: none].")  # fmt: skip
@click.option("--optimizer", default="adamw", show_default=True, type=click.Choice(known.OPTIMIZERS))
@click.option("--lr", type=float, default=1e-4, show_default=True, help="Learning rate.")
@click.option("--weight-decay", type=float, default=0.01, show_default=True)
@click.option("--schedule", default="none", show_default=True, type=click.Choice(known.SCHEDULES),
              help="Of the learning rate: step and plateau multiply it by --gamma.")  # fmt: skip
@click.option("--step-epochs", type=int, default=10, show_default=True, help="Epochs between two steps.")
@click.option("--gamma", type=float, help="[default: .5 for step, .1 for plateau]")
@click.option("--augment", type=Names(), default="", metavar="NAME[,NAME…]",
              help=f"Steps in a row: {', '.join(AUGMENTATIONS)}.")  # fmt: skip
@click.option("--epochs", type=int, default=10, show_default=True, help="Most epochs.")
@click.option("--patience", type=click.IntRange(0), default=5, show_default=True,
              help="Epochs without a better one before stopping; 0 never stops.")  # fmt: skip
@click.option("--min-delta", type=float, default=1e-3, show_default=True, help="How much better counts.")
@click.option("--monitor", default="val_loss", show_default=True,
              type=click.Choice(["val_loss", "val_accuracy"]), help="What stopping watches.")  # fmt: skip
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(known.PRECISIONS),
              help="bf16: products in bfloat16, weights in float32.")  # fmt: skip
@click.option("--channels", type=click.Choice(["1", "3"]),
              help="1: grey, the first layer's weights summed [default: 3; small-cnn 1].")  # fmt: skip
@click.option("--preprocess", default="auto", show_default=True, type=click.Choice(known.PREPROCESS))
@click.option("--image-size", type=int, help="Input size in pixels [default: the network's own].")
@click.option("--normalize", default="weights", show_default=True, type=click.Choice(known.NORMALIZE))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Of new weights, order, dropout and augmentation.")  # fmt: skip
@options.split
@click.option("--limit", type=click.IntRange(1), help="Only the first N images of each class and split.")
@click.option("--max-pixels", type=int, default=50_000_000, show_default=True)
@click.option("--test", is_flag=True, help="Evaluate on the test split too: once, for the network you chose.")
@click.option("--keep-checkpoints", type=click.IntRange(0), default=5, show_default=True,
              help="Keep the last N epochs, to resume from.")  # fmt: skip
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run, or with --epochs for longer.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode [default: 0 on a CPU].")
@options.devices
@options.live
@options.data_dir
@options.features_dir
@options.as_json
def finetune(
    resume: str | None,
    from_run: str | None,
    weights: str | None,
    workers: int | None,
    keep_checkpoints: int,
    device: str,
    tensorboard: Path | None,
    mlflow: str | None,
    data_dir: Path,
    features_dir: Path,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a whole network and store the run in the same ledger as those of heads.

    A network's last linear layer is replaced by a new one for the classes of the data set, or, with
    --from-run, by the trained head of that run: linear probing, then fine-tuning. The validation split
    decides when to stop and which epoch is best; its rows are those of a cache of the same data set, so that
    `featcache compare` puts frozen features, fine-tuned and from scratch side by side. Needs
    `pip install 'featcache[finetune]'`.
    """
    _refuse_ignored(resume, from_run)
    from featcache import whole
    from featcache.live.listeners import listening

    place = known.Place(features_dir, data_dir, device, workers, keep_checkpoints)
    with progress_bar(as_json) as progress, listening(tensorboard, mlflow, _note) as listener:
        watch = whole.Watch(
            layers=(lambda rows: None) if as_json else show_layers,
            epoch=(lambda report: None) if as_json else _say_epoch,
            keeps=lambda run: say(f"run {run}: if it is stopped, featcache finetune --resume {run}"),
            progress=progress,
            listener=listener,
        )
        if resume is not None:
            done = whole.resume(resume, place, watch, _epochs(given))
        else:
            done = whole.finetune(_asked(given, from_run, weights), place, watch)
    if as_json:
        show_json(_result(done.record))
    else:
        show_run(done.record)
        say(f"weights {done.folder / 'network.safetensors'} ({size(done.record['costs']['disk_bytes'])})")


def _note(text: str) -> None:
    say(f"note: {text}")


def _epochs(given: dict[str, Any]) -> int | None:
    return int(given["epochs"]) if _was_given("epochs") else None


def _asked(given: dict[str, Any], from_run: str | None, weights: str | None) -> Any:
    """Return what the options ask for; beside a run only what it has not decided."""
    from featcache.whole import Asked

    given = {**given, "patience": given["patience"] or None}
    given["channels"] = None if given["channels"] is None else int(given["channels"])
    if from_run is not None:
        return Asked({k: v for k, v in given.items() if k not in _BY_RUN}, from_run, weights)
    return Asked({**given, "weights": "auto" if weights is None else weights})


def _refuse_ignored(resume: str | None, from_run: str | None) -> None:
    """Options that another one has decided already would be ignored: refuse them."""
    for name in click.get_current_context().params:
        if not _was_given(name):
            continue
        flag = f"--{name.replace('_', '-')}"
        if resume is not None and name not in _WITH_RESUME:
            raise click.UsageError(f"{flag} cannot be given with --resume: the run goes on as it began.")
        if from_run is not None and name in _BY_RUN:
            raise click.UsageError(f"{flag} cannot be given with --from-run: the run has decided it.")


def _was_given(name: str) -> bool:
    context = click.get_current_context()
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _say_epoch(report: Any) -> None:
    found = report.metrics
    val = ""
    if found["val_loss"] is not None:
        val = f" · val loss {found['val_loss']:.4f}, accuracy {found['val_accuracy']:.4f}"
    train = f"train loss {found['train_loss']:.4f}, accuracy {found['train_accuracy']:.4f}"
    say(f"epoch {report.epoch}/{report.epochs} · {train}{val} · {duration(found['seconds'])}")


def _result(record: dict[str, Any]) -> dict[str, Any]:
    """Return the documented keys of `finetune --json`."""
    keys = ("run", "head", "backbone", "cache", "val", "test", "best_epoch", "epochs", "train_rows",
            "fit_seconds", "costs", "network", "params")  # fmt: skip
    return {key: record.get(key) for key in keys}
