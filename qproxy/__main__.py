"""The command `qproxy`, also as `python -m qproxy`."""

import sys

INTERRUPTED = 130
"""Exit code of a command that Ctrl+C ended: 128 + SIGINT."""


def main() -> int:
    """Run the command line and return its exit code; Ctrl+C prints one line, even while modules are
    imported."""
    try:
        from qproxy import cli

        return cli.main()
    except KeyboardInterrupt:
        interrupted = True
    except BaseExceptionGroup as group:  # a nursery wraps the KeyboardInterrupt
        interrupted = group.split(KeyboardInterrupt)[1] is None
        if not interrupted:
            raise
    sys.stderr.write("qproxy: interrupted.\n")
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
