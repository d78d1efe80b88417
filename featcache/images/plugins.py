"""Pillow's readers of the formats that count as images; imported when the first image is decoded."""

from __future__ import annotations

from PIL.BmpImagePlugin import BmpImageFile as Bmp
from PIL.GifImagePlugin import GifImageFile as Gif
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile as Png
from PIL.PpmImagePlugin import PpmImageFile as Pnm
from PIL.TiffImagePlugin import TiffImageFile as Tiff
from PIL.WebPImagePlugin import WebPImageFile as WebP

__all__ = ["Bmp", "Gif", "Jpeg", "Png", "Pnm", "Tiff", "WebP"]


class Jpeg(JpegImageFile):
    """Pillow's JPEG reader, not looking for a resolution in the EXIF block, where damage makes it warn."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: dots per inch are no pixels."""
