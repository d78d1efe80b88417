"""A trained network put together again from its run, for new images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.backbones.devices import exact_float32, resolve_device
from featcache.backbones.preprocess import Normalise, fit
from featcache.errors import DamagedError
from featcache.finetuning.model import Layout, Model, skeleton
from featcache.images.decode import decode
from featcache.recipe import Preprocess


class NetworkPredictor:
    """The network of a run, in float32 and in evaluation mode; no weights but the run's own are needed.

    Args:
        record: of the run.
        weights: the bytes of its tensors, a safetensors file.
        classes: their names, in the order of the probabilities.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DamagedError: the record or the weights are not those of one network.
    """

    def __init__(
        self, record: Mapping[str, Any], weights: bytes, classes: Sequence[str], device: str = "auto"
    ) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        self.run, self.classes, self.device = str(record["run"]), tuple(classes), resolve_device(device)
        try:
            network = record["network"]
            layout = Layout.from_dict(network["layout"])
            self.max_pixels = int(record["params"]["max_pixels"])
            self.preprocess = Preprocess.from_dict(network["preprocess"])
            model = skeleton(layout)
            model.load_state_dict(load(weights), strict=True, assign=True)
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DamagedError(f"The run {self.run} is damaged: {reason}.", "Train it again.") from error
        self.model: Model = model.to(self.device).eval().requires_grad_(False)
        step_mean, step_std = self.preprocess.mean, self.preprocess.std
        self._normalise = Normalise(step_mean, step_std, self.device, torch.float32)

    def __call__(self, images: Iterable[bytes | NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the probabilities (N, C) of images: encoded files' bytes, or uint8 (H, W), (H, W, 3).

        Raises:
            BadImageError: one cannot be decoded.
        """
        pixels = [self.prepare(image) for image in images]
        if not pixels:
            return np.empty((0, len(self.classes)), np.float32)
        return self.probabilities(np.stack(pixels))

    def prepare(self, image: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image as the network takes it, uint8 (S, S, 3); safe to call from many threads.

        Raises:
            BadImageError: it cannot be decoded.
        """
        return fit(decode(image, self.max_pixels), self.preprocess)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities (B, C) of prepared images (B, S, S, 3), all in one forward pass."""
        with torch.inference_mode(), exact_float32():
            scores = self.model(self._normalise(pixels)).float()
            found: NDArray[np.float32] = torch.softmax(scores, dim=1).cpu().numpy()
        return found
