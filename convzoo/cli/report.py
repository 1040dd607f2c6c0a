"""The verb `report`: a run, or several beside each other, as a page."""

from pathlib import Path
from typing import Annotated

import typer

from convzoo.errors import UsageError
from convzoo.storage import shown, url_of, written

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where the validation pictures are now.", show_default="where they were in training"),
]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Folders that `train` wrote.")],
    html: Annotated[bool, typer.Option("--html", help="Write one file that holds everything.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file.", show_default="RUN/report.html; comparison.html of several")
    ] = None,
    data: Data = None,
) -> None:
    """Show runs as a page: curves, confusions, pictures with explanations, what was deployed, how recipes differ."""
    if not html:
        raise UsageError("report writes a page: --html")
    for run in runs:
        if url_of(run):
            raise UsageError(f"{url_of(run)}: a run behind a URL has its page beside it, report.html")
    out = out or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    from convzoo.training.run_report import write_report

    with written(out) as local:
        write_report(runs, local, data)
    print(shown(out))
