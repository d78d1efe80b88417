"""Decoding JPEG on the device: nvJPEG through torchvision, and Pillow for whatever is no plain JPEG.

Which of the two decodes a file is decided by the file alone (`jpeg_header`), or by nvJPEG refusing it when it
is alone: never by its neighbours. nvJPEG's pixels differ from Pillow's, so its name, torchvision's version
and the card's generation stand in the recipe. What follows the decoding is the same arithmetic as ever.

nvJPEG's hardware engine heeds no stream: it writes into memory at once, even where kernels that were queued
before still read it (pytorch/vision#9606). So it has processes of its own (`decoding.Processes`), in which
nothing is queued when it begins, and nothing read before it has ended. They are ended from outside:
torchvision's decoder, taken apart when a process ends by itself, was seen to hang.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.backbones.devices import resolve_device
from featcache.backbones.resize import resizer
from featcache.backbones.resize_plan import is_pillows
from featcache.errors import BadImageError, OptionError
from featcache.extraction.decoding import Changed, Decoded, Fitting, decode_into, unchanged
from featcache.extraction.jpeg_header import Size, plain_size
from featcache.extraction.pixels import can_share
from featcache.recipe import Decoding

PILLOW = Decoding().decoder
RGB = 3  # torchvision.io.ImageReadMode
CALL_PIXELS = 1 << 25  # of a call to the decoder: 100 MB on the device, and as much again to fit them

Pixels = NDArray[np.uint8]


class JpegDecoder:
    """torchvision's JPEG decoder on a device. On the CPU it is libjpeg, which is there for tests.

    Args:
        device: "cuda:N" or "cpu".

    Raises:
        OptionError: the device cannot decode, see `why_not`.
    """

    def __init__(self, device: str) -> None:
        why = why_not(device)
        if why:
            raise OptionError(f"--decode gpu cannot be used here: {why}.", "Use --decode cpu.")
        self.device, self.name = device, decoder_name(device)

    def __call__(self, files: Sequence[bytes]) -> list[Tensor]:
        """Return the pixels of JPEG files, uint8 (3, H, W) on the device, all there.

        Raises:
            RuntimeError: one of the files cannot be decoded.
        """
        data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        operators: Any = torch.ops.image  # the functions around them warn on every call
        if self.device == "cpu":
            return [operators.decode_jpeg(one, RGB, False) for one in data]
        self.drain()
        images: list[Tensor] = operators.decode_jpegs_cuda(data, RGB, torch.device(self.device))
        self.drain()
        return images

    def drain(self) -> None:
        """Wait until this process's work on the device is done.

        Raises:
            RuntimeError: the device failed, and with it all that follows.
        """
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


def why_not(device: str) -> str:
    """Return why a resolved device cannot decode JPEG by itself; empty where it can."""
    import torchvision.io  # noqa: F401  # it makes the operators known

    if device != "cpu" and not can_share():
        return "this system has no memory to share with processes"
    operator = "decode_jpeg" if device == "cpu" else "decode_jpegs_cuda"
    if not hasattr(torch.ops.image, operator):
        return f"this torchvision {metadata.version('torchvision')} has no decoder for {device}"
    return ""


def decoder_name(device: str) -> str:
    """Return what a recipe calls the JPEG decoder of a resolved device."""
    version = metadata.version("torchvision")
    if device == "cpu":
        return f"libjpeg of torchvision {version}"
    return "nvjpeg of torchvision {}, compute capability {}.{}".format(
        version, *torch.cuda.get_device_capability(device)
    )


def gpu_decoder_name(device: str = "auto") -> str:
    """Return what a recipe calls the JPEG decoder of this machine's GPU.

    Raises:
        OptionError: there is no GPU, or it cannot decode.
    """
    place = resolve_device(device)
    why = "it needs an NVIDIA GPU" if place == "cpu" else why_not(place)
    if why:
        raise OptionError(f"--decode gpu cannot be used here: {why}.", "Use --decode cpu.")
    return decoder_name(place)


def decoder_for(name: str, device: str) -> JpegDecoder | None:
    """Return the decoder that a recipe names, None where that is Pillow.

    Raises:
        OptionError: the device has another.
    """
    if name == PILLOW:
        return None
    known = {"cpu"} if name.startswith("libjpeg") else {device} - {"cpu"}
    for place in known:
        decoder = JpegDecoder(place)
        if decoder.name == name:
            return decoder
        raise OptionError(
            f"The images are to be decoded by {name}; here is {decoder.name}.",
            "Extract into a cache of its own, or use --decode cpu.",
        )
    raise OptionError(f"The images are to be decoded by {name}, which {device} is not.", "Use a GPU.")


def on_device(name: str, device: str) -> OnDevice:
    """Return what decodes as the decoder of a name on a device does.

    Raises:
        OptionError: there is no such decoder here.
    """
    decoder = decoder_for(name, device)
    return OnDevice(JpegDecoder(device) if decoder is None else decoder)


class OnDevice:
    """Decodes a task's images by a device as far as it takes them: what `decode_into` is for Pillow.

    Args:
        jpeg: the device's decoder.
    """

    def __init__(self, jpeg: JpegDecoder) -> None:
        self._jpeg = jpeg

    def __call__(
        self, out: Pixels, source: Any, hashes: Sequence[bytes], fitting: Fitting, fitted: bool = True
    ) -> Decoded:
        """Decode images into `out` (n, crop, crop, 3), always fitted; see `decode_into`."""
        self._fitting = fitting
        files = [_read(source, place, planned) for place, planned in enumerate(hashes)]
        taken = self._decoded(files, out) if is_pillows(fitting.preprocess.interpolation) else set()
        left = [place for place in range(len(hashes)) if place not in taken]
        if not left:
            return Decoded()
        room = np.empty((len(left), *out.shape[1:]), np.uint8)
        ours = [hashes[place] for place in left]
        found = decode_into(room, lambda at: source(left[at]), ours, fitting, True)
        out[left] = room
        found.bad = [(left[at], why) for at, why in found.bad]
        found.changed = None if found.changed is None else left[found.changed]
        return found

    def _decoded(self, files: list[bytes], out: Pixels) -> set[int]:
        """Decode and fit what the device takes; return the places of it."""
        sizes = {at: size for at, data in enumerate(files) if (size := self._size(data)) is not None}
        done: set[int] = set()
        for places in _calls(sizes):
            done |= self._call(places, files, sizes, out)
        return done

    def _size(self, data: bytes) -> Size | None:
        size = plain_size(data)
        if size is None or size[0] * size[1] > self._fitting.max_pixels:
            return None
        try:
            resizer(size, self._fitting.preprocess, self._jpeg.device)
        except BadImageError:  # too elongated
            return None
        return size

    def _call(self, places: list[int], files: list[bytes], sizes: dict[int, Size], out: Pixels) -> set[int]:
        """Decode some files together; one that the decoder refuses leaves the others to be done alone."""
        try:
            images = self._jpeg([files[at] for at in places])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self._jpeg.drain()  # raises if it was the device
            if len(places) == 1:
                return set()
            return {each for at in places for each in self._call([at], files, sizes, out)}
        good = {at: image for at, image in zip(places, images, strict=True) if image.shape[1:] == sizes[at]}
        self._fit(good, sizes, out)
        return set(good)

    def _fit(self, images: dict[int, Tensor], sizes: dict[int, Size], out: Pixels) -> None:
        """Resize and crop on the device, images of one size together, and bring them here."""
        for size in {sizes[at] for at in images}:
            alike = [at for at in images if sizes[at] == size]
            batch = torch.stack([images[at] for at in alike]).permute(0, 2, 3, 1).contiguous()
            out[alike] = resizer(size, self._fitting.preprocess, self._jpeg.device)(batch).cpu().numpy()


def _read(source: Any, place: int, planned: bytes) -> bytes:
    """Return the bytes of a file as planned; nothing where they are for the CPU to see to."""
    try:
        data = unchanged(source, place, planned)
    except (BadImageError, Changed):  # reading it again says it
        return b""
    return data if isinstance(data, bytes) else b""


def _calls(sizes: dict[int, Size]) -> Iterator[list[int]]:
    """Cut the files of a task up so that no call makes too many pixels."""
    places: list[int] = []
    pixels = 0
    for at, (height, width) in sizes.items():
        if places and pixels + height * width > CALL_PIXELS:
            yield places
            places, pixels = [], 0
        places.append(at)
        pixels += height * width
    if places:
        yield places
