"""The verb `serve`: models over HTTP."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.options import Device, Precision, Provider
from convzoo.errors import MissingPackageError, UsageError

TOKEN = "CONVZOO_TOKEN"


def serve(
    models: Annotated[list[Path], typer.Argument(help="Model files, exported files, other programs' weights.")],
    host: Annotated[str, typer.Option("--host", help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for one that is free.")] = 8000,
    device: Device = "auto",
    provider: Provider = None,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.fp32,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures that run together at most.")] = 16,
    delay_ms: Annotated[
        float, typer.Option("--delay-ms", min=0, help="What a batch waits for more, while several clients ask.")
    ] = 2.0,
    max_body_mb: Annotated[int, typer.Option("--max-body-mb", min=1, help="Of a request: beyond it 413.")] = 32,
    max_megapixels: Annotated[int, typer.Option("--max-megapixels", min=1, help="Of a picture: beyond it 422.")] = 64,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests waiting for a model: beyond it 429.")] = 64,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for an answer: beyond it 503.")] = 30.0,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help=f"A token that requests must bear; or the variable {TOKEN}.", dir_okay=False),
    ] = None,
    replaceable: Annotated[
        bool, typer.Option("--replaceable", help="Let POST /models/NAME open a model's file again.")
    ] = False,
) -> None:
    """Answer over HTTP: POST /predict/NAME takes pictures, /v2 is the Open Inference Protocol, / a page to try it."""
    token = _token(token_file)
    from convzoo import distributed

    with serving("serve"):
        from convzoo.serve.limits import Limits
        from convzoo.serve.models import Opening
        from convzoo.serve.server import serve as run
    limits = Limits(
        body_bytes=max_body_mb << 20,
        pixels=max_megapixels * 1_000_000,
        queue=queue,
        seconds=timeout,
        batch=batch,
        delay_s=delay_ms / 1000,
    )
    opening = Opening(distributed.resolve_device(device), provider, precision.value)
    run(models, opening, host=host, port=port, limits=limits, token=token, replaceable=replaceable)


@contextlib.contextmanager
def serving(what: str) -> Iterator[None]:
    """Import the server's parts. Raises MissingPackageError where a package of the extra is not installed."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "python_multipart", "h11"):
            raise
        raise MissingPackageError(f"{what} needs {error.name}: pip install 'convzoo[serve]'") from None


def _token(path: Path | None) -> str | None:
    """Return the token, or None where none is asked for. Raises UsageError."""
    if path is None:
        return os.environ.get(TOKEN) or None
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise UsageError(f"{path}: no token in it", ("token_file",))
    return token
