"""The key file that seals texts for clients: a secret a line, in URL-safe base64; the first one seals.

It is created on first use, whole and without replacing another process's: a new file is linked to the name,
which fails if the name is taken.
"""

from __future__ import annotations

import os
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

from qproxy.system.directories import make_private_directory

SECRET_BYTES = 32


def parse(text: str) -> list[bytes]:
    """Return the secrets of a key file. Raises ValueError."""
    found = [urlsafe_b64decode(line) for line in text.split()]
    if not found or any(len(secret) < SECRET_BYTES for secret in found):
        raise ValueError(f"expected a secret of {SECRET_BYTES} bytes in base64 on each line")
    return found


def generate() -> str:
    """Return a new secret as a line of a key file."""
    return urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")


def read_or_create(path: Path) -> list[bytes]:
    """Return the secrets of a file, which is created if there is none. Raises OSError and ValueError."""
    try:
        return parse(path.read_text("ascii"))
    except FileNotFoundError:
        pass
    make_private_directory(path.parent)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(generate() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
    except FileExistsError:  # another process was first
        pass
    finally:
        new.unlink(missing_ok=True)
    return parse(path.read_text("ascii"))
