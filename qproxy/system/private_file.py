"""Files that only their owner can read, replaced whole."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from qproxy.system.directories import make_private_directory


def replace_private_file(path: Path, data: bytes) -> None:
    """Write a new file that replaces the old one; a crash leaves either of them. Raises OSError."""
    make_private_directory(path.parent)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
