"""Turn picture files into upright RGB uint8, whatever their mode, and refuse what is none or too large."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from convzoo.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 100_000_000

# The limit above is ours and is an error; Pillow's own warning at about the same size would only repeat it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_rgb(data: bytes, shown: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a picture to [3, H, W] uint8 RGB, rotated as its EXIF orientation says.

    Grey is repeated, CMYK and palettes are converted, 16-bit values keep their high byte, transparency is dropped.

    Args:
        shown: the path to name in messages.
    Raises:
        DataError: not a picture of a known format, truncated, or beyond max_pixels.
    """
    if not data:
        raise DataError(f"{shown}: empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{shown}: {width}x{height} pixels, more than the {max_pixels:,} that are read")
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except Image.UnidentifiedImageError:
        raise DataError(f"{shown}: not a picture in {', '.join(FORMATS)}; it begins with {data[:12]!r}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{shown}: more than the {max_pixels:,} pixels that are read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{shown}: damaged picture: {' '.join(str(error).split())}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion would clip them at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
