"""The verb `report`: runs as a page, written or served."""

from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.serve import serving
from convzoo.errors import UsageError
from convzoo.storage import shown, url_of, written

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where the validation pictures are now.", show_default="where they were in training"),
]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Folders that `train` wrote.")],
    html: Annotated[bool, typer.Option("--html", help="Write one file that holds everything.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Serve it while they train, on this machine alone.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of --watch; 0 for one that is free.")] = 8001,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file.", show_default="RUN/report.html; comparison.html of several")
    ] = None,
    data: Data = None,
) -> None:
    """Show runs as a page: curves, confusions, pictures with explanations, what was deployed, how recipes differ."""
    if html == watch:
        raise UsageError("report writes a page or serves it: --html or --watch")
    for run in runs:
        if url_of(run):
            raise UsageError(f"{url_of(run)}: a run behind a URL has its page beside it, report.html")
    if watch:
        with serving("report --watch"):
            from convzoo.serve.watch import watch as serve
        serve(runs, port, data)
        return
    out = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    from convzoo.training.run_report import write_report

    with written(out) as local:
        write_report(runs, local, data)
    print(shown(out))
