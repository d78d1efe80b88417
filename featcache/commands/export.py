"""`featcache export`: backbone and head of a run as one model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from featcache.commands import options
from featcache.commands.output import progress_bar, say, show, show_json, size
from featcache.errors import RunError

if TYPE_CHECKING:
    from featcache.inference.predictor import Predictor


@click.command(
    short_help="Write backbone and head as one model: ONNX, torch.export, TorchScript, safetensors."
)
@click.option("--run", "run_name", required=True, metavar="RUN", help="The run to export.")
@click.option(
    "--format", "form", type=click.Choice(["onnx", "torch-export", "torchscript", "safetensors"]),
    default="onnx", show_default=True,
)  # fmt: skip
@click.option(
    "--input", "takes", type=click.Choice(["normalized", "uint8"]), default="normalized", show_default=True,
    help="normalized: float32 (B, 3, S, S); uint8: pixels (B, S, S, 3), scaled and normalised in the model.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file [default: RUN with a suffix]."
)
@click.option("--weights", help="Where the backbone's weights are now [default: where they were].")
@options.features_dir
@options.as_json
def export(
    run_name: str,
    form: str,
    takes: str,
    output: Path | None,
    weights: str | None,
    features_dir: Path,
    as_json: bool,
) -> None:
    """Write the backbone and the head of a run as one model, with class names and recipe in its metadata.

    The model takes images that are resized and cropped already, in batches of any size, and answers with
    probabilities. Before it is written, its answers are compared with featcache's own. ONNX needs
    `pip install 'featcache[onnx]'`; safetensors holds the numbers alone. Exported are linear, mlp, logreg,
    ridge and linear svm.
    """
    from featcache.training.runs import find_run

    folder = find_run(features_dir, run_name)  # before anything heavy is imported
    from featcache.training.networks import is_network

    if is_network(folder):
        raise RunError(
            f"{folder.name} is a whole network, and those are not exported yet.",
            f"Its weights are {folder / 'network.safetensors'}; featcache predict runs it.",
        )
    from featcache.api import predictor
    from featcache.inference.export import SUFFIXES
    from featcache.inference.export import export as write

    path = output or Path(f"{folder.name}{SUFFIXES[form]}")
    with progress_bar(as_json) as progress:
        rebuilt = predictor(
            str(folder),
            weights=weights,
            device="cpu",
            progress=lambda done, total: progress("weights", done, total),
        )
    written = write(cast("Predictor", rebuilt), path, form, takes)
    if as_json:
        show_json({"path": str(path), "bytes": path.stat().st_size, "run": folder.name, **written})
        return
    show(str(path))
    say(f"{size(path.stat().st_size)} · {written['input']} → {written['output']}")
    say(f"its probabilities differ by at most {written['difference']:.1g} from featcache's")
    step = written["preprocess"]
    say(f"before it: {step['mode']}, resize {step['resize']}, crop {step['crop']}, {step['interpolation']}")
