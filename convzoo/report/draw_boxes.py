"""Pictures with boxes drawn on them: what a model sees, and where it and the truth differ."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convzoo.report.draw import INK, PAPER, contact_sheet

# Chosen one after the other, each as far as possible from all before it, in OKLab as seen with normal, deuteranope and
# protanope sight. The first are the most different; a class beyond the last shares the colour of an earlier one.
COLOURS = bytes.fromhex("""
e69f00 56b4e9 009e73 d55e00 0000ff 871e87 2dffc3 a5002d 8778ff f0e100 d22db4 87c387 69f0ff d287b4 964b69 7800c3
ffd287 ff3c69 0078a5 d21e3c 874be1 0fd2e1 4b87d2 ffa5b4 e1c34b e1874b 7896f0 d20087 783ca5 1ed2b4 961e69 4bb487
a53c00 00874b 69e1d2 b478b4 00a5d2 c3b45a 0069ff 87c3ff a52dc3 962d4b d26996 e14b4b 5a2de1 2db4c3 f06900 4bf078
96f0a5 d23c0f 004bff 87ff5a a54b96 8769e1 2de1ff ff6978 d26978 87d278 87f0e1 a51e87 c34b5a f078d2 78a53c d278ff
e1d22d ff69a5 0f9696 781ea5 ff87a5 f0b400 96d296 783c78 4bf0c3 a5a5ff 8769b4 965ac3 b41e3c 4be15a d23cd2 0fc3e1
""")
READABLE_PX, LONGEST_PX = 320, 1600  # a shorter picture is enlarged, but not beyond the longer
MAX_TAG_OVERLAP = 0.05  # of a tag's area with better ones; beyond it text would be cut, and the tag is left out
EDGE_ALPHA = 100  # of 255

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Mark:
    """One box to draw.

    Attributes:
        box: [4] xyxy in pixels of the picture drawn on.
        caption: empty for no tag.
        weight: of the line, as a multiple of the usual one.
        quiet: a dark tag with coloured text instead of a coloured tag.
    """

    box: np.ndarray
    colour: Colour
    caption: str = ""
    weight: float = 1.0
    dashed: bool = False
    quiet: bool = False


NOWHERE = np.zeros(4)
MISSED, FALSE = Mark(NOWHERE, (255, 176, 0), weight=1.6, dashed=True), Mark(NOWHERE, (220, 38, 60), weight=1.6)
RIGHT, FOUND = Mark(NOWHERE, (64, 200, 130), weight=0.75, quiet=True), Mark(NOWHERE, (235, 240, 245), weight=0.4)


def colour_of(label: int) -> Colour:
    """Return the RGB colour of a class, the same in every picture."""
    first = label % (len(COLOURS) // 3) * 3
    red, green, blue = COLOURS[first : first + 3]
    return red, green, blue


def boxed(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int],
    captions: Sequence[str],
    fit_px: int | None = None,
) -> Image.Image:
    """Return a picture with its boxes; the first box counts as the best and is drawn last.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes_xyxy: [N, 4] pixels of `image`; what lies outside is cut off.
        labels: N class indices, which choose the colours.
        captions: N texts; one that would cover better ones is left out.
        fit_px: scale the longer side to this before drawing, so that lines and captions keep their size; None: only
            enlarge a small picture, in whole pixels.
    """
    picture, factor = _scaled(image, fit_px)
    marks = [
        Mark(box * factor, colour_of(int(label)), caption)
        for box, label, caption in zip(_array(boxes_xyxy), labels, captions, strict=True)
    ]
    return _marked(picture, marks)


def compared(
    image: np.ndarray,
    truth_xyxy: np.ndarray,
    truth_names: Sequence[str],
    truth_found: Sequence[bool],
    boxes_xyxy: np.ndarray,
    names: Sequence[str],
    scores: Sequence[float],
    is_right: Sequence[bool],
    fit_px: int | None = None,
    legend: bool = True,
) -> Image.Image:
    """Return a picture with its truth and its detections above a legend; mistakes are loud, what is right is quiet.

    Args:
        image: [H, W, 3] uint8 RGB.
        truth_xyxy: [M, 4] pixels of `image`; truth_names and truth_found belong to them.
        boxes_xyxy: [N, 4] pixels of `image`, best first; names, scores (0..1) and is_right belong to them.
        fit_px: as in `boxed`.
        legend: add the strip that says what the lines mean; False for a cell of a sheet that has one.
    """
    picture, factor = _scaled(image, fit_px)
    truth = list(zip(_array(truth_xyxy) * factor, truth_names, truth_found, strict=True))
    detected = list(zip(_array(boxes_xyxy) * factor, names, scores, is_right, strict=True))
    missed = [replace(MISSED, box=box, caption=name) for box, name, is_found in truth if not is_found]
    false = [
        replace(FALSE, box=box, caption=f"{name}  {score:.0%}") for box, name, score, right in detected if not right
    ]
    right = [replace(RIGHT, box=box, caption=f"{name}  {score:.0%}") for box, name, score, right in detected if right]
    matched = [replace(FOUND, box=box) for box, _, is_found in truth if is_found]
    marked = _marked(picture, [*missed, *false, *right, *matched])
    return _with_legend(marked, (len(missed), len(false), len(right))) if legend else marked


def detection_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[tuple[str, str]],
    columns: int = 3,
    cell_px: int = 360,
    legend: bool = False,
) -> Image.Image:
    """Return pictures in a grid, each with a caption and a smaller second line, and the legend of `compared` if wanted.

    The pictures are drawn with fit_px=cell_px (and legend=False), so that what is written on them is not scaled.
    """
    arrays = [np.asarray(image) for image in images]
    sheet = contact_sheet(arrays, captions, [INK] * len(arrays), columns, cell_px)
    return _with_legend(sheet) if legend else sheet


def _array(boxes_xyxy: np.ndarray) -> np.ndarray:
    return np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)


def _scaled(image: np.ndarray, fit_px: int | None) -> tuple[Image.Image, np.ndarray]:
    """Return the picture in the size to draw on, and the factors [4] that its boxes are to be multiplied with."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    width, height = picture.size
    if fit_px is None:
        factor = max(1, min(math.ceil(READABLE_PX / min(width, height)), LONGEST_PX // max(width, height)))
    else:
        factor = fit_px / max(width, height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size != picture.size:
        picture = picture.resize(
            size, Image.Resampling.NEAREST if fit_px is None or factor >= 3 else Image.Resampling.LANCZOS
        )
    return picture, np.array([size[0] / width, size[1] / height] * 2)


def _marked(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Draw all boxes, the first last, then all tags."""
    limits = np.array([picture.width, picture.height] * 2)
    inside = [(np.clip(mark.box, 0, limits), mark) for mark in marks if np.isfinite(mark.box).all()]
    inside = [(box, mark) for box, mark in inside if box[0] < box[2] and box[1] < box[3]]
    draw, side_px = ImageDraw.Draw(picture, "RGBA"), math.sqrt(picture.width * picture.height)
    for box, mark in reversed(inside):
        _outline(draw, box, mark, max(1, round(mark.weight * max(2, side_px / 240))))
    font = ImageFont.load_default(max(11, side_px / 38))
    tags = _tags(draw, inside, font, (picture.width, picture.height))
    for (left, top, right, bottom), mark in tags:
        fill, ink = (INK, mark.colour) if mark.quiet else (mark.colour, _ink(mark.colour))
        draw.rectangle((left, top, right - 1, bottom - 1), fill=fill)
        draw.text((left + (bottom - top) / 5, (top + bottom) / 2), mark.caption, ink, font, anchor="lm")
    return picture


def _outline(draw: ImageDraw.ImageDraw, box: np.ndarray, mark: Mark, line_px: int) -> None:
    """Draw a box's border, set off by a thin shade in black or white so that it shows on any background."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(left, right - 1), max(top, bottom - 1)  # Pillow counts the last pixel in
    edge_px = max(1, line_px // 3)
    around = (left - edge_px, top - edge_px, right + edge_px, bottom + edge_px)
    draw.rectangle(around, outline=(*_ink(mark.colour), EDGE_ALPHA), width=line_px + 2 * edge_px)
    if not mark.dashed:
        draw.rectangle((left, top, right, bottom), outline=mark.colour, width=line_px)
        return
    dash_px = 4 * line_px
    for x in range(left, right + 1, 2 * dash_px):
        for y in (top, bottom - line_px + 1):
            draw.rectangle((x, y, min(x + dash_px, right), max(top, y) + line_px - 1), fill=mark.colour)
    for y in range(top, bottom + 1, 2 * dash_px):
        for x in (left, right - line_px + 1):
            draw.rectangle((x, y, max(left, x) + line_px - 1, min(y + dash_px, bottom)), fill=mark.colour)


def _tags(
    draw: ImageDraw.ImageDraw,
    inside: Sequence[tuple[np.ndarray, Mark]],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size_wh: tuple[int, int],
) -> list[tuple[tuple[int, int, int, int], Mark]]:
    """Place captions, best first, each where it covers least of better ones and of objects; return them worst first."""
    height = round(1.35 * font.size) if isinstance(font, ImageFont.FreeTypeFont) else 14
    placed, tags = np.empty((0, 4)), []
    boxes = np.array([box for box, _ in inside]).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for box, mark in inside:
        width = math.ceil(draw.textlength(mark.caption, font) + 0.4 * height)
        if not mark.caption or width > size_wh[0] or height > size_wh[1]:
            continue
        spots = np.array(list(_spots(box, width, height, size_wh)))
        overlaps = _intersections(spots, placed).sum(1) / (width * height)
        hidden = (_intersections(spots, boxes) / areas).sum(1)
        best = int(np.where(overlaps <= MAX_TAG_OVERLAP, hidden, np.inf).argmin())  # the first of equals
        if overlaps[best] <= MAX_TAG_OVERLAP:
            placed = np.vstack([placed, spots[best]])
            tags.append((tuple(spots[best].tolist()), mark))
    return tags[::-1]


def _intersections(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Return the area [N, M] that each of N boxes shares with each of M."""
    low, high = np.maximum(a_xyxy[:, None, :2], b_xyxy[:, :2]), np.minimum(a_xyxy[:, None, 2:], b_xyxy[:, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def _spots(box: np.ndarray, width: int, height: int, size_wh: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield places [4] xyxy for a tag, liked best first: above, inside, below, each at the left and at the right."""
    left, top, right, bottom = (round(value) for value in box)
    for y in (top - height, top, bottom, bottom - height):
        for x in (left, right - width):
            x, y = max(0, min(x, size_wh[0] - width)), max(0, min(y, size_wh[1] - height))
            yield x, y, x + width, y + height


def _ink(colour: Colour) -> Colour:
    """Return black or white, whichever differs more in WCAG's contrast ratio."""
    linear = (np.array(colour) / 255) ** 2.2
    return (0, 0, 0) if float(linear @ (0.2126, 0.7152, 0.0722)) > 0.179 else (255, 255, 255)


def _with_legend(picture: Image.Image, counts: Sequence[int] = ()) -> Image.Image:
    """Return the picture above a strip that shows each kind of line with its name, in as many rows as needed."""
    names = ["missed", "false", "right", "their truth"]
    texts = [f"{count} {name}" for count, name in zip(counts, names, strict=False)]
    entries = list(zip([*texts, *names[len(texts) :]], (MISSED, FALSE, RIGHT, FOUND), strict=True))
    font, pad, row_px, swatch = ImageFont.load_default(13), 10, 24, (26, 14)
    widths = [math.ceil(font.getlength(text)) + swatch[0] + 3 * pad for text, _ in entries]
    canvas_width = max(picture.width, *widths)
    spots, x, y = [], 0, picture.height
    for width in widths:
        if x and x + width > canvas_width:
            x, y = 0, y + row_px
        spots.append((x, y))
        x += width
    canvas = Image.new("RGB", (canvas_width, y + row_px), INK)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas, "RGBA")
    for (x, y), (text, mark) in zip(spots, entries, strict=True):
        top = y + (row_px - swatch[1]) // 2
        box = np.array([x + pad, top, x + pad + swatch[0], top + swatch[1]])
        _outline(draw, box, mark, max(1, round(2 * mark.weight)))
        draw.text((x + swatch[0] + 2 * pad, y + row_px / 2), text, PAPER, font, anchor="lm")
    return canvas
