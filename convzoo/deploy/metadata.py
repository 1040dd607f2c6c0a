"""What an exported file says of itself, and the digest that says whether it is still what was written.

Metadata is data: JSON of bounded size, checked key by key before anything uses it.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.config.registry import explain
from convzoo.errors import ConvzooError, UsageError
from convzoo.types import Task
from convzoo.version import __version__

FORMAT = 1
UNSEALED = "sha256:" + 64 * "0"
MAX_DOCUMENT = 4 << 20  # characters; a recipe and a thousand class names take 30,000
HALVINGS = 5  # of most networks; a size that they divide without remainders can be traced as any such size

Positive = Annotated[int, Field(gt=0, le=1 << 16)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ExportInfo(pydantic.BaseModel):
    """The metadata of an exported file.

    Attributes:
        recipe, class_names, metrics, provenance, licence: the model file's.
        preprocessing: the evaluation transform: operations, mean and std.
        input, stage: see `types.Runner`.
        size: (height, width) of the pictures, for dynamic_size the usual one.
        batch: pictures in a batch, None for any number.
        source_sha256: of the model file.
        tolerance: what its outputs may differ by from the model's, as max|a-b| / max|b|; None where that is not known.
        rounding: what float32 alone costs the model, as `parity.float32_rounding`; None where that is not known.
        versions: of the libraries that wrote it.
        seal: SHA-256 of the file's bytes with this very text set to zeros; what "any bit changed" means.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    convzoo: str = __version__
    recipe: dict[str, Any]
    preprocessing: dict[str, Any]
    class_names: list[str]
    task: str
    input: Literal["float_nchw", "uint8_nhwc"] = "float_nchw"
    stage: Literal["raw", "decoded", "nms"] = "raw"
    size: tuple[Positive, Positive]
    dynamic_size: bool = False
    batch: Positive | None = None
    opset: int | None = None
    source_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tolerance: NotNegative | None = None
    rounding: NotNegative | None = None
    versions: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    licence: str | None = None
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

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)  # ASCII, on one line


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


def parse_document(document: str) -> dict[str, Any]:
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
    try:
        info = ExportInfo.model_validate_json(json.dumps(parse_document(document)), strict=True)
        recipe = recipes.from_plain(info.recipe, "recipe")
        build.check_recipe(recipe)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConvzooError(f"its metadata: {'.'.join(map(str, first['loc']))}: {explain(first)}") from None
    except UsageError as error:
        raise ConvzooError(f"its metadata: {error}") from None
    plain = recipe.plain()
    if info.preprocessing != {key: plain["transform"][key] for key in ("eval", "mean", "std")}:
        raise ConvzooError("its metadata: preprocessing is not the recipe's transform")
    has_stages = build.build_task(recipe, info.class_names).predicts == "boxes"
    if info.task != recipe.task or (info.stage != "raw" and not has_stages) or not info.class_names:
        raise ConvzooError("its metadata: task, stage and class names do not go together")
    return info, recipe


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, at most 200 characters, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
