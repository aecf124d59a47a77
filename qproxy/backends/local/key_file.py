"""The key file (`keys.json` in the data directory): blocking calls of the operating system, and no Trio.

The file holds what may be known: an id, a name, a digest, limits, an end. It is written whole, to a new file
that replaces the old one, under a lock, readable by its owner only.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, ApiKeyStoreError
from qproxy.system.directories import make_private_directory


def read(path: Path) -> list[ApiKey]:
    """Return the keys of a file, none if it does not exist. Raises ApiKeyStoreError."""
    try:
        return [api_keys.from_json(entry) for entry in json.loads(path.read_bytes())["keys"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ApiKeyStoreError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ApiKeyStoreError(f"{path}: not a key file ({error}); restore it from a backup.") from None


def create(path: Path, **fields: Any) -> tuple[ApiKey, str]:
    """Create a key in the file; return its record and its secret."""
    key, secret = api_keys.generate(**fields)
    with _locked(path) as keys:
        keys[:] = api_keys.with_key(keys, key)
    return key, secret


def merge(path: Path, found: Iterable[ApiKey]) -> int:
    """Add keys as they are, and revoke those that are; return how many the file did not have so.

    Raises ApiKeyStoreError if an active key of the file has the name of another one.
    """
    with _locked(path) as keys:
        new = api_keys.select_new(keys, [*found])
        changed = {key.id: key for key in new}
        keys[:] = [changed.pop(key.id, key) for key in keys]
        keys += changed.values()
    return len(new)


def revoke(path: Path, id_or_name: str) -> ApiKey:
    """Revoke a key of the file. Raises ApiKeyStoreError if no active one has this id or name."""
    with _locked(path) as keys:
        keys[:], revoked = api_keys.with_revoked(keys, id_or_name)
    return revoked


@contextmanager
def _locked(path: Path) -> Iterator[list[ApiKey]]:
    """Hold the lock; the block changes the list of keys, which then replaces the file."""
    make_private_directory(path.parent)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read(path)
        yield keys
        new = path.with_suffix(f".{os.getpid()}.new")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"keys": [api_keys.to_json(key) for key in keys]}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:  # a full disk; the old file stays
            new.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None
