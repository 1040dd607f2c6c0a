"""The command line: parse, import what is needed, call one function. stdout is the result, stderr the log."""

import sys
from typing import Annotated

import typer

from convzoo import errors, logs
from convzoo.cli.bench import bench
from convzoo.cli.convert import convert
from convzoo.cli.doctor import doctor
from convzoo.cli.eval import eval_
from convzoo.cli.export import export
from convzoo.cli.hints import hint
from convzoo.cli.info import list_
from convzoo.cli.log import log
from convzoo.cli.pack import data_app
from convzoo.cli.predict import predict
from convzoo.cli.quantize import quantize
from convzoo.cli.report import report
from convzoo.cli.serve import serve
from convzoo.cli.train import train
from convzoo.environment import keep_memory
from convzoo.errors import ConvzooError, UsageError
from convzoo.version import __version__

app = typer.Typer(
    help="Train, check and ship the classic convolutional networks. Every number and every file verified.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"convzoo {__version__}")
        raise typer.Exit


app.command()(train)
app.command(name="eval")(eval_)
app.command(name="val", hidden=True)(eval_)
app.command()(predict)
app.command()(export)
app.command()(quantize)
app.command()(bench)
app.command()(serve)
app.command()(report)
app.command()(log)
app.command()(convert)
app.command(name="list")(list_)
app.command()(doctor)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    logs.setup()
    try:
        code = typer.main.get_command(app).main(args=argv, prog_name="convzoo", standalone_mode=False, obj=argv)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return 0  # the reader, such as head, has seen enough
    except (ConvzooError, KeyboardInterrupt, Exception) as error:
        message = getattr(error, "format_message", None)  # typer's own errors: wrong options and arguments
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message and message())
            return 0
        if message:
            return errors.report(UsageError(message()))
        return errors.report(error, hint(getattr(error, "options", ()), argv, app))


def run() -> None:
    """Run the process's command line; the console script."""
    keep_memory()  # before torch is imported; not forced on who imports the library
    sys.exit(main())
