"""One verb on many files: a file that fails does not stop the others."""

from collections.abc import Callable
from pathlib import Path

from convzoo import errors, logs
from convzoo.errors import ConvzooError


def _each(files: list[Path], work: Callable[[Path], None], where: Path | str, stop: bool = False) -> None:
    """Do the work for every file; one that fails is named, and the others go on.

    Args:
        stop: at the first failure, because other ranks wait.
    Raises:
        ConvzooError: the failure itself where it is the only file or all failed, else how many failed.
    """
    failures = []
    for file in files:
        try:
            work(file)
        except errors.InterruptedRun:
            raise
        except ConvzooError as error:
            if stop or len(files) == 1:
                raise
            failures.append((file, error))
            if len(failures) < len(files):
                logs.log.warning(f"failed: {error}")
    if len(failures) == len(files):
        raise failures[-1][1]
    if failures:
        names = ", ".join(file.name for file, _ in failures)
        raise ConvzooError(f"{where}: {len(failures)} of {len(files)} files failed: {names}")
