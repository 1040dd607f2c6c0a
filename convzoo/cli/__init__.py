"""The command line: one verb a file. `main` here is the function, not the file."""

from convzoo.cli.main import app, main, run

__all__ = ["app", "main", "run"]
