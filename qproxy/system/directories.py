"""qproxy's directories, readable by their owner only."""

from __future__ import annotations

from pathlib import Path


def make_private_directory(directory: Path) -> None:
    """Create a directory and its missing parents with mode 0700; existing ones keep their mode. Raises
    OSError.

    `Path.mkdir(mode=..., parents=True)` would create the parents with the mode of the umask.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def peer_directory(home: Path, parent: int) -> Path:
    """Return the directory of the sockets of one supervisor's workers (`peers`)."""
    return home / "workers" / str(parent)
