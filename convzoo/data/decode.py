"""Turn picture files into upright RGB uint8, whatever their mode, and refuse what is none or too large."""

import io
import warnings

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from convzoo.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 100_000_000
EXIF = b"Exif\0\0"  # what a JPEG's segment APP1 begins with where the camera says how it was held
APP1, START_OF_SCAN = 0xE1, 0xDA

# The limit above is ours and is an error; Pillow's own warning at about the same size would only repeat it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_rgb(data: bytes, shown: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a picture to [3, H, W] uint8 RGB, rotated as its EXIF orientation says.

    Grey is repeated, CMYK and palettes are converted, 16-bit values keep their high byte, transparency is dropped.
    Plain JPEGs are decoded by simplejpeg, half again as fast as Pillow and equal to it; everything else by Pillow.

    Args:
        shown: the path to name in messages.
    Raises:
        DataError: not a picture of a known format, truncated, or beyond max_pixels.
    """
    if not data:
        raise DataError(f"{shown}: empty file")
    pixels = _plain_jpeg(data, max_pixels)
    if pixels is None:
        pixels = _by_pillow(data, shown, max_pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _by_pillow(data: bytes, shown: str, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{shown}: {width}x{height} pixels, more than the {max_pixels:,} that are read")
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except Image.UnidentifiedImageError:
        raise DataError(f"{shown}: not a picture in {', '.join(FORMATS)}; it begins with {data[:12]!r}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{shown}: more than the {max_pixels:,} pixels that are read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{shown}: damaged picture: {' '.join(str(error).split())}") from None


def _plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Return the pixels [H, W, 3] of an upright 8-bit JPEG in colour or grey; None for what Pillow has to judge."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        if _has_exif(data) and Image.open(io.BytesIO(data)).getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray") or int(height) * int(width) > max_pixels:
            return None
        # The slow transform and upsampling, which are Pillow's too.
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except (OSError, SyntaxError, ValueError):  # what it refuses may still be readable, and has its message if not
        return None


def _has_exif(data: bytes) -> bool:
    """Tell whether a segment before a JPEG's scan is EXIF's; a search of the bytes would take a 25th of the decoding.

    Raises:
        ValueError: no chain of segments that leads to a scan.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and len(data) > at + 4:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == START_OF_SCAN:
            return False
        if marker == APP1 and data.startswith(EXIF, at + 4):
            return True
        at += 2 + size
    raise ValueError("no scan")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion would clip them at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
