"""Errors of a command: one line on standard error and an exit code.

What the surroundings cause (settings, files, addresses, upstreams, a full disk, a closed pipe) is described
in one line. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from qproxy import config as configuration
from qproxy.access.api_keys import ApiKeyStoreError
from qproxy.cli.output import print_error
from qproxy.config.accounts import ConfigError

FAILURE, WRONG_USAGE = 1, 2
BROKEN_PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else FAILURE
"""Exit code of a program whose reader, such as `head`, has closed the pipe."""
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
UNUSABLE_ADVICE = " Set QPROXY_HOME to a directory that this user can write."


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; print one line for a failure that is no bug."""
    try:
        return _run_and_flush(command)
    except BaseException as error:
        failure = describe_failure(error)
        if failure is None:
            raise
        code, message = failure
    if message:
        print_error(message)
    _discard_output()
    return code


def _run_and_flush(command: Callable[[], int]) -> int:
    """Run a command; raise here what the interpreter would print at exit as ignored."""
    ended: SystemExit | None = None
    code = 0
    try:
        code = command()
    except SystemExit as error:  # of argparse
        ended = error
    if sys.stdout is not None:
        sys.stdout.flush()
    if ended is not None:
        raise ended
    return code


def describe_failure(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the message for an error, "" if none is needed; None for a bug."""
    described = [_describe(leaf) for leaf in _leaves(error)]
    return None if None in described else described[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group, which nurseries raise, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _describe(error: BaseException) -> tuple[int, str] | None:
    if isinstance(error, ConfigError | ApiKeyStoreError):
        return WRONG_USAGE, str(error)
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE, ""
    if isinstance(error, OSError):
        return FAILURE, describe_os_error(error)
    if isinstance(error, _store_errors()):
        return FAILURE, getattr(error, "message", "") or str(error)
    return None


def _store_errors() -> tuple[type[Exception], ...]:
    """Return the errors of stores and upstreams; imported late, since most commands need none of them."""
    from qproxy.accounts.shared_state import StateStoreError
    from qproxy.auth.credential_store import StorageError
    from qproxy.backends.factory import DATABASE_ERROR
    from qproxy.ledger import LedgerError
    from qproxy.wire.errors import QproxyError

    return StateStoreError, StorageError, LedgerError, QproxyError, DATABASE_ERROR


def describe_os_error(error: OSError) -> str:
    """Return the file and the reason of an operating system's error, without its number, and what to do."""
    if error.strerror is None:
        return str(error)
    reason = error.strerror.rstrip(".")
    if not isinstance(error.filename, str | bytes):
        return f"{reason}."
    path = os.fsdecode(error.filename)
    is_unusable = error.errno in UNUSABLE and _is_of_data_directory(Path(path))
    return f"{path}: {reason}.{UNUSABLE_ADVICE if is_unusable else ''}"


def _is_of_data_directory(path: Path) -> bool:
    """Return whether a path is the data directory, a file in it, or a directory above it."""
    try:
        home, path = configuration.data_dir().absolute(), path.absolute()
    except (ConfigError, OSError):  # no home directory, or no working directory
        return False
    return path.is_relative_to(home) or home.is_relative_to(path)


def _discard_output() -> None:
    """Send what standard output still buffers to the null device if it cannot be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
