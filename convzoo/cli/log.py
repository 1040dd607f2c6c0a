"""The verb `log`: a run that lies there, on its way to trackers."""

from pathlib import Path
from typing import Annotated

import typer


def log(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `train` wrote.", file_okay=False)],
    to: Annotated[list[str], typer.Option("--to", metavar="NAME", help="tensorboard, mlflow or wandb; several.")],
) -> None:
    """Send a run's numbers to trackers of experiments: those that were not sent yet."""
    from convzoo.training.loggers import send_run

    for name, count in send_run(run, to).items():
        print(f"{name}: {count} rows")
