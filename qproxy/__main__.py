"""The command `qproxy`, also as `python -m qproxy`."""

import sys

INTERRUPTED = 130
"""Exit code of a command that Ctrl+C ended: 128 + SIGINT."""
WINDOWS = "qproxy: Windows is not supported; run qproxy in WSL (wsl --install) or in Docker.\n"


def main() -> int:
    """Run the command line and return its exit code; Ctrl+C prints one line, even while modules are
    imported."""
    if sys.platform == "win32":
        sys.stderr.write(WINDOWS)
        return 1
    try:
        from qproxy import cli

        return cli.main()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
    sys.stderr.write("qproxy: interrupted.\n")
    return INTERRUPTED


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl+C caused an error: a nursery wraps the KeyboardInterrupt, and so may an import."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_interrupt, error.exceptions))
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


if __name__ == "__main__":
    sys.exit(main())
