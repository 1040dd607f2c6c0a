"""Pictures within a page: small copies as data, with boxes beside them, as many as a page has room for."""

import base64
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SMALL_PX = 64  # a picture up to this side is kept pixel by pixel
QUALITY = 82


@dataclass(frozen=True)
class Box:
    """A box on a picture: `kind` is "right", "false" or "missed", the sides are shares of the picture's."""

    kind: str
    name: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Picture:
    """A picture to show.

    Attributes:
        source: a data URL; empty where the picture is gone or the page has no room for it.
        size: width and height in pixels of the original.
        title, note: two lines below it; mood: "right", "wrong" or nothing.
        heats: (what speaks for it, data URL) of explanations.
    """

    source: str
    size: tuple[int, int]
    title: str
    note: str
    mood: str = ""
    boxes: list[Box] = field(default_factory=list)
    heats: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_small(self) -> bool:
        return max(self.size) <= SMALL_PX

    @property
    def description(self) -> str:
        return ". ".join(part for part in (self.title, self.note) if part)


class Room:
    """The bytes that pictures may still take."""

    def __init__(self, size: int):
        self.left = size

    def taken(self, source: str) -> str:
        """Return a data URL, or nothing where there is no room for it."""
        if len(source) > self.left:
            return ""
        self.left -= len(source)
        return source


def data_url(image: np.ndarray, side_px: int) -> str:
    """Return a picture [H, W, 3] uint8, its longer side at most so many pixels, as a data URL."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    if max(picture.size) > side_px:
        picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "png" if max(picture.size) <= SMALL_PX else "jpeg"
    if kind == "png":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
