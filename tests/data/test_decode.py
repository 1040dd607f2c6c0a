"""Pictures of every kind become upright RGB uint8; everything else is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from convzoo.data.decode import decode_rgb
from convzoo.errors import DataError

# A gradient that differs in each corner, so that a turned picture shows.
Y, X = np.mgrid[0:16, 0:24]
PIXELS = np.stack([X * 10, Y * 15, (X + Y) * 6], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode_rgb(data, "picture")
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_are_exact(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decoded(encoded(Image.fromarray(PIXELS), kind, **options)) == PIXELS).all()


def test_grey_palette_alpha_cmyk_and_16_bits():
    grey = Image.fromarray(PIXELS[..., 0])
    assert (decoded(encoded(grey, "PNG")) == PIXELS[..., :1]).all()
    palette = Image.fromarray(PIXELS).quantize(64)
    assert (decoded(encoded(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    with_alpha = Image.fromarray(np.dstack([PIXELS, np.full((16, 24), 7, np.uint8)]))
    assert (decoded(encoded(with_alpha, "PNG")) == PIXELS).all()
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    assert (decoded(encoded(deep, "PNG")) == PIXELS[..., :1]).all()
    red = Image.new("CMYK", (24, 16), (0, 255, 255, 0))
    assert np.abs(decoded(encoded(red, "JPEG")).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.fromarray(PIXELS)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decoded(encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif))
    assert got.shape == PIXELS.shape
    assert np.abs(got.astype(int) - PIXELS).mean() < 3


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("size", [(24, 16), (33, 17), (7, 1), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2, "quality": 30},
        {"progressive": True},
        {"optimize": True, "restart_marker_blocks": 1},
        {"comment": b"a comment", "dpi": (300, 300)},
    ],
    ids=str,
)
def test_plain_jpegs_are_decoded_as_pillow_does(size, options):
    """By another decoder: both take libjpeg-turbo's exact transform and its smooth upsampling."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(PIXELS).resize(size), Image.fromarray(noise[..., 0])):
        data = encoded(image, "JPEG", **options)
        assert np.abs(decoded(data).astype(int) - by_pillow(data)).max() <= 2


def test_real_photographs_are_decoded_as_pillow_does(shared):
    paths = sorted((shared / "data/imagenet-sample/val").glob("*/*"))[::4]
    assert len(paths) >= 50
    for path in paths:
        data = path.read_bytes()
        assert np.abs(decoded(data).astype(int) - by_pillow(data)).max() <= 2, path


def test_what_one_decoder_refuses_the_other_may_read():
    plain = encoded(Image.fromarray(PIXELS), "JPEG", quality=95)
    superfluous = plain[:-2] + bytes(40) + plain[-2:]  # before the end's marker: the fast one refuses it
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(superfluous)
    assert (decoded(superfluous) == by_pillow(superfluous)).all()
    adobe = encoded(Image.fromarray(PIXELS), "JPEG", keep_rgb=True, quality=100)  # stored as RGB
    assert np.abs(decoded(adobe).astype(int) - PIXELS).max() <= 3
    tail = plain + b"something behind the end"
    assert (decoded(tail) == decoded(plain)).all()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@pytest.mark.parametrize(
    "before",
    [
        segment(0xED, b"Photoshop 3.0\0 with a thumbnail \xff\xda of its own"),
        segment(0xE2, bytes(65_000)) * 3,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
        b"\xff\xff\xff" + segment(0xFE, b"after fill bytes"),
    ],
    ids=["scan in a thumbnail", "much before it", "another APP1", "fill bytes"],
)
def test_orientation_is_found_in_whatever_segment_it_is(before):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.fromarray(PIXELS), "JPEG", quality=95, subsampling=0)
    turned = plain[:2] + before + segment(0xE1, exif.tobytes()) + plain[2:]
    assert (decoded(turned) == np.rot90(decoded(plain), -1)).all()
    named = plain[:2] + before + segment(0xFE, b"a comment on Exif\0\0") + plain[2:]
    assert (decoded(named) == decoded(plain)).all()


def giant_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"hello, I am a text file", "not a picture"),
        (b"<!DOCTYPE html><html>", "not a picture"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:200], "damaged"),
        (encoded(Image.effect_noise((64, 64), 80), "PNG")[:-2000], "damaged"),
        (giant_png(60_000, 60_000), "pixels"),
        (giant_png(12_000, 9_000), "pixels"),
        (encoded(Image.fromarray(PIXELS), "TIFF"), "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused(data, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_rgb(data, "folder/x.jpg")
    assert str(caught.value).startswith("folder/x.jpg: ") and "\n" not in str(caught.value)
