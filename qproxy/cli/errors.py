"""Errors of a command: one line on standard error and an exit code.

What the surroundings cause (settings, files, addresses, upstreams, a full disk, a closed pipe) is described
in one line. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from qproxy.access.api_keys import ApiKeyStoreError
from qproxy.cli.output import print_error
from qproxy.config.accounts import ConfigError

FAILURE, WRONG_USAGE = 1, 2
BROKEN_PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else FAILURE
"""Exit code of a program whose reader, such as `head`, has closed the pipe."""


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
    """Return the file and the reason of an operating system's error, without its number."""
    if error.strerror is None:
        return str(error)
    reason = error.strerror.rstrip(".")
    return (
        f"{os.fsdecode(error.filename)}: {reason}."
        if isinstance(error.filename, str | bytes)
        else f"{reason}."
    )


def _discard_output() -> None:
    """Send what standard output still buffers to the null device if it cannot be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
