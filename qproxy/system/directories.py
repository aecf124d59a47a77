"""Folders of ours, which nobody but their owner may look into."""

from __future__ import annotations

from pathlib import Path


def make_private_directory(folder: Path) -> None:
    """Make a folder, and those above it that are missing, each for its owner only; one that is there stays as it is.

    `Path.mkdir(mode=..., parents=True)` gives the parents the mode of the umask.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def peer_directory(home: Path, parent: int) -> Path:
    """Where the workers of one parent find each other (`peers`)."""
    return home / "workers" / str(parent)
