"""Pictures with what the model says about them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, MUTED = (33, 37, 41), (255, 255, 255), (108, 117, 125)
RIGHT, WRONG, NEUTRAL = (42, 157, 91), (214, 69, 65), (32, 99, 155)
MIN_SIDE_PX, LONGEST_PX = 240, 1600  # a shorter picture is enlarged, but not beyond the longer
ROW_PX = 26
# Warmth in 0..1 and its RGB: of rising lightness, so that it is read without telling red from green.
HEAT = np.array([(0, 60, 15, 110), (0.35, 150, 40, 100), (0.65, 225, 90, 50), (0.85, 250, 165, 30), (1, 252, 240, 150)])


def classified(
    image: np.ndarray, names: Sequence[str], scores: Sequence[float], short: Sequence[str] | None = None
) -> Image.Image:
    """Return a picture [H, W, 3] uint8 above bars for its best classes; a small one is enlarged in whole pixels.

    Where a name is too long, its short form stands there.
    """
    picture = Image.fromarray(image)
    factor = max(1, min(math.ceil(MIN_SIDE_PX / min(picture.size)), LONGEST_PX // max(picture.size)))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (picture.width, picture.height + ROW_PX * len(names) + 8), PAPER)
    canvas.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for row, (name, shorter, score) in enumerate(zip(names, short or names, scores, strict=True)):
        top = picture.height + 4 + row * ROW_PX
        percent = f"{100 * score:.1f} %"
        room = picture.width - 16
        text_px = room - draw.textlength(percent, font) - 16
        text = name if draw.textlength(name, font) <= text_px else shorter
        draw.rectangle(
            (8, top + 3, 8 + room * float(score), top + ROW_PX - 3), fill=(206, 222, 235) if row else (168, 200, 225)
        )
        draw.text(
            (12, top + ROW_PX / 2),
            _fitted(text, text_px, draw, font),
            INK,
            font,
            anchor="lm",
        )
        draw.text((picture.width - 12, top + ROW_PX / 2), percent, INK, font, anchor="rm")
    return canvas


def heated(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Return a picture [H, W, 3] uint8 under a heat map [h, w] in 0..1 of the whole of it, the hottest brightest."""
    size = (image.shape[1], image.shape[0])
    warmth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    picture = Image.fromarray(image).convert("RGBA")
    return Image.alpha_composite(picture, heat_layer(warmth)).convert("RGB")


def heat_layer(heat: np.ndarray) -> Image.Image:
    """Return a heat map [h, w] in 0..1 as an RGBA picture to lay over another, clear where it is cold."""
    warmth = heat.clip(0, 1)
    colours = [np.interp(warmth, HEAT[:, 0], HEAT[:, channel]) for channel in (1, 2, 3)]
    cover = 255 * 0.75 * warmth**0.8
    return Image.fromarray(np.stack([*colours, cover], -1).round().astype(np.uint8))


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[tuple[str, str]],
    colours: Sequence[tuple[int, int, int]],
    columns: int = 6,
    cell_px: int = 150,
) -> Image.Image:
    """Return pictures [H, W, 3] uint8 in a grid, each with a caption and a smaller second line."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    pad, text_px = 12, 42
    sheet = Image.new("RGB", (columns * (cell_px + pad) + pad, rows * (cell_px + text_px + pad) + pad), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for i, (image, (first, second), colour) in enumerate(zip(images, captions, colours, strict=True)):
        left, top = pad + (i % columns) * (cell_px + pad), pad + (i // columns) * (cell_px + text_px + pad)
        picture = _fit(Image.fromarray(image), cell_px)
        sheet.paste(picture, (left + (cell_px - picture.width) // 2, top + (cell_px - picture.height) // 2))
        draw.text((left, top + cell_px + 4), _fitted(first, cell_px, draw, large), colour, large)
        draw.text((left, top + cell_px + 23), _fitted(second, cell_px, draw, small), MUTED, small)
    return sheet


def _fit(picture: Image.Image, side_px: int) -> Image.Image:
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS)


def _fitted(
    text: str, width: float, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."


def save_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")
