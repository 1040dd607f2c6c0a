"""One exception class per exit code, and the only place that turns errors into exit codes and messages."""

import errno
import os
import signal
import sys
import traceback


class ConvzooError(Exception):
    """A run failed, or a model file cannot be read or does not match. Exit code 1, and the base of the others.

    Attributes:
        options: names of the parameters that are wrong or would help; the command line adds the flags (`cli.hints`).
    """

    exit_code = 1

    def __init__(self, message: str = "", options: tuple[str, ...] = ()):
        super().__init__(message)
        self.options = options


class UsageError(ConvzooError):
    """The command line, the recipe or a path is wrong. Exit code 2."""

    exit_code = 2


class DataError(ConvzooError):
    """The data is missing, damaged or does not fit the model. Exit code 3."""

    exit_code = 3


class ToleranceError(ConvzooError):
    """A comparison came out beyond its tolerance. Exit code 4."""

    exit_code = 4


class MissingPackageError(ConvzooError):
    """An optional package is needed and not installed. Exit code 5."""

    exit_code = 5


class InterruptedRun(ConvzooError):
    """A run was stopped by a signal and has saved its state: the same command continues it. Exit code 75."""

    exit_code = 75


def exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one-line message of any error that reached the top."""
    if isinstance(error, ConvzooError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        lost = f"no space left while writing {error.filename or 'a file'}; nothing already saved was lost"
        return 1, f"{lost}. Free some space and run the same command again"
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return 2, f"{error.filename}: {(error.strerror or 'cannot be opened').lower()}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return 2, f"{error.filename}: a read-only file system"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return 1, "out of memory; lower train.batch_size, or keep it and raise --accumulate"
    text = " ".join(str(error).split()) or "no message"
    return 1, f"{type(error).__name__}: {text} (CONVZOO_DEBUG=1 shows where)"


def report(error: BaseException, hint: str = "") -> int:
    """Print message and hint on stderr, with a traceback when CONVZOO_DEBUG is set, and return the exit code."""
    if os.environ.get("CONVZOO_DEBUG"):
        traceback.print_exception(error)
    code, message = exit_code_and_message(error)
    print(f"convzoo: {message}{hint}", file=sys.stderr)
    return code
