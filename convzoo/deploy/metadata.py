"""What an exported file says of itself, and the digest that says whether it is still what was written.

Metadata is data: JSON of bounded size, checked key by key before anything uses it.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.errors import ConvzooError, UsageError
from convzoo.model_file import FileInfo, SidePx
from convzoo.plain import JsonObject
from convzoo.types import Task

FORMAT = 1
UNSEALED = "sha256:" + 64 * "0"
MAX_DOCUMENT = 4 << 20  # characters; a recipe and a thousand class names take 30,000
HALVINGS = 5  # of most networks; a size that they divide without remainders can be traced as any such size

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ExportInfo(FileInfo):
    """The metadata of an exported file.

    Attributes:
        task: the recipe's.
        input, stage: see `types.Runner`.
        size: (height, width) of the pictures, for dynamic_size the usual one.
        batch: pictures in a batch, None for any number.
        source_sha256: of the model file.
        tolerance: what its outputs may differ by from the model's, as max|a-b| / max|b|; None where that is not known.
        rounding: what float32 alone costs the model, as `parity.float32_rounding`; None where that is not known.
        precision: of the weights; half_rounding: what weights of float16 alone cost the model, as `rounding`.
        versions: of the libraries that wrote it.
        seal: SHA-256 of the file's bytes with this very text set to zeros; what "any bit changed" means.
    """

    task: str
    input: Literal["float_nchw", "uint8_nhwc"] = "float_nchw"
    stage: Literal["raw", "decoded", "nms"] = "raw"
    size: tuple[SidePx, SidePx]
    dynamic_size: bool = False
    batch: SidePx | None = None
    opset: int | None = None
    source_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tolerance: NotNegative | None = None
    rounding: NotNegative | None = None
    precision: Literal["fp32", "fp16"] = "fp32"
    half_rounding: NotNegative | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    seal: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")] = UNSEALED

    @functools.cached_property
    def built_task(self) -> Task:
        return build.build_task(recipes.from_plain(self.recipe, "recipe"), self.class_names)

    @property
    def size_step(self) -> int:
        """What height and width must be multiples of."""
        return max(self.built_task.size_step, 2**HALVINGS if self.dynamic_size else 1)

    def output_shapes(self, size_hw: tuple[int, int] | None = None) -> dict[str, tuple[int, ...]]:
        """Return name and shape of each output of one picture, of this file's size where no other is given."""
        return self.built_task.output_shapes(size_hw or self.size, self.stage)


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return `sha256:` and the SHA-256 of several byte strings, each counted with its length."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return f"sha256:{sha.hexdigest()}"


def sealed(data: bytes, *others: bytes) -> bytes:
    """Put the digest of a file, and of the files that belong to it, where it says UNSEALED, which must be once."""
    if data.count(UNSEALED.encode()) != 1:
        raise ConvzooError("the metadata cannot be sealed: its mark is not in the file once")
    return data.replace(UNSEALED.encode(), digest([data, *others]).encode())


def check_seal(document: str, data: bytes, *others: bytes) -> None:
    """Raise ConvzooError where a file is not what was sealed."""
    seal = parse_document(document).get("seal")
    mark = str(seal).encode()
    if len(mark) != len(UNSEALED) or data.count(mark) != 1:
        raise ConvzooError("damaged: it does not hold its own SHA-256 once")
    if digest([data.replace(mark, UNSEALED.encode()), *others]) != seal:
        raise ConvzooError("damaged or changed: its SHA-256 is not the one it was written with")


def parse_document(document: str) -> JsonObject:
    """Return the metadata as plain values. Raises ConvzooError for anything but one JSON object of sane size."""
    try:
        plain = json.loads(document) if len(document) <= MAX_DOCUMENT else None
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise ConvzooError("its metadata is not a JSON object")
    if plain.get("format") != FORMAT:
        raise ConvzooError(f"its metadata is of format {plain.get('format')!r:.20}, this version reads {FORMAT}")
    return plain


def check_document(document: str) -> tuple[ExportInfo, Recipe]:
    """Check metadata key by key, the recipe in it too. Raises ConvzooError with the first thing that is wrong."""
    info = ExportInfo.from_plain(parse_document(document))
    try:
        recipe = recipes.from_plain(info.recipe, "recipe")
        build.check_recipe(recipe)
    except UsageError as error:
        raise ConvzooError(f"its metadata: {error}") from None
    has_stages = build.build_task(recipe, info.class_names).predicts == "boxes"
    if info.task != recipe.task or (info.stage != "raw" and not has_stages) or not info.class_names:
        raise ConvzooError("its metadata: task, stage and class names do not go together")
    return info, recipe


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, at most 200 characters, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
