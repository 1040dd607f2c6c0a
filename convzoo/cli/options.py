"""The options that several verbs share."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from convzoo.errors import UsageError
from convzoo.storage import shown, url_of, written

Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Calibrate on a folder of pictures.", show_default="--data's training split"),
]
MaxDrop = Annotated[
    float, typer.Option("--max-drop", help="What INT8 may lose of top-1, AP or AP50, in points of percent.")
]


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class CocoEval(StrEnum):
    hotcoco = "hotcoco"
    pycocotools = "pycocotools"


class To(StrEnum):
    darknet = "darknet"
    mindspore = "mindspore"


class Resize(StrEnum):
    letterbox = "letterbox"
    stretch = "stretch"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Cache(StrEnum):
    memory = "memory"


class Split(StrEnum):
    train = "train"
    val = "val"


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Recipe keys to replace, such as optim.lr=0.05.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu or npu.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Loader processes.", show_default="what suits the machine")
]
OnBadSample = Annotated[
    OnBad, typer.Option("--on-bad-sample", help="What an unreadable picture means: stop, or leave it out and count it.")
]
Download = Annotated[
    bool, typer.Option("--download", help="Use the network: for CIFAR-10 into --data, and weights by LIBRARY:NAME.")
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder, zip or tar with the pictures.", show_default=False)]
Cfg = Annotated[Path | None, typer.Option("--cfg", help="The network of a Darknet .weights file.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", help="List every tensor too.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

Provider = Annotated[
    str | None,
    typer.Option("--provider", help="ONNX Runtime's execution provider, by name.", show_default="CPUExecutionProvider"),
]
SocVersion = Annotated[str, typer.Option("--soc-version", help="The Ascend chip of an .om file, as `atc` calls it.")]


@contextlib.contextmanager
def output(path: Path | None, beside: Path | None = None) -> Iterator[Path | None]:
    """Give where to write: a local path is its own, what is written for a URL goes up at the end.

    Args:
        beside: the file that it is written beside where there is no path; beside a URL nothing is written unnamed.
    """
    if path is None:
        if beside is not None and url_of(beside):
            raise UsageError(f"{url_of(beside)}: name what is to be written", ("out",))
        yield None
        return
    with written(path) as local:
        yield local


def named(text: str, path: Path | None, local: Path | None) -> str:
    """Return a result's text with the URL that was asked for where it names what was written for it here."""
    if path is None or local is None or url_of(path) is None:
        return text
    return text.replace(str(local.parent), shown(path).rstrip("/").rpartition("/")[0])
