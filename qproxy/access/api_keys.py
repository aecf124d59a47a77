"""The keys of our clients: made here, shown once, kept as SHA-256.

A key file (`keys.json` in the data directory) holds what may be known: an id, a name, a digest, limits, an end.  It
is written whole, to a new file that takes the old one's place, under a lock, for the owner's eyes only; a running
server sees the change with the next request.  A file that cannot be read changes nothing: the keys read before stay.

Once a key has been made, keys are demanded, also when all of them are revoked: a door does not open by locking
someone out.  The digest needs no salt and no slow hash: a key is 256 random bits, not a password.
"""

from __future__ import annotations

import calendar
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qproxy.limits.windows import WINDOWS
from qproxy.system.directories import make_private_directory
from qproxy.wire.errors import AuthenticationError, WrongKey

PREFIX = "sk-qproxy-"
MAX_KEY = 1000
"""Characters; a longer one is not hashed."""
log = logging.getLogger("qproxy.keys")
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


class KeyFileError(Exception):
    """The key file cannot be used as it is; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a key may use within a window (`qproxy.windows`)."""

    window: str
    requests: int | None = None
    tokens: int | None = None

    def label_text(self) -> str:
        """For a table: `day:100 requests`."""
        limits = (
            f"{self.requests} requests" if self.requests else "",
            f"{self.tokens} tokens" if self.tokens else "",
        )
        return f"{self.window}: {' and '.join(filter(None, limits))}"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of one client's key; times are Unix seconds."""

    id: str
    digest: str
    name: str = ""
    created: int = 0
    expires: int | None = None
    revoked: int | None = None
    rpm: int | None = None
    """Requests a minute."""
    tpm: int | None = None
    """Tokens a minute, in and out."""
    models: tuple[str, ...] = ()
    """Patterns of the models that it may ask for; none means all."""
    budgets: tuple[Quota, ...] = ()

    @property
    def label(self) -> str:
        """What logs, metrics and the ledger call it; a new key of the same name goes on with its budgets."""
        return self.name or self.id

    def allows(self, model: str) -> bool:
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def status(self, now: float) -> str:
        """One word for people: active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


def hash_key(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def keys_from_settings(keys: Iterable[str]) -> list[ApiKey]:
    """The keys of the setting `api_keys`, written as they are or as their digests."""
    digests = [key.lower() if re.fullmatch("[0-9a-fA-F]{64}", key) else hash_key(key) for key in keys]
    return [ApiKey(f"api_keys[{number}]", digest) for number, digest in enumerate(digests)]


def parse_expiry(text: str, now: float) -> int:
    """When a key ends: a span (30d, 12h) from now, or a date (2027-01-31), in UTC.  ValueError for other words."""
    span = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    if span:
        return int(now) + int(span[1]) * _UNITS[span[2]]
    return calendar.timegm(time.strptime(text, "%Y-%m-%d"))


def read(path: Path) -> list[ApiKey]:
    """The keys of a file; none when there is no file.  KeyFileError when it is not a key file."""
    try:
        entries = json.loads(path.read_bytes())["keys"]
        return [new_key(entry) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise KeyFileError(f"{path}: not a file of keys ({type(error).__name__}: {error}).") from None


def new_key(entry: dict[str, Any]) -> ApiKey:
    known = {name: value for name, value in entry.items() if name in ApiKey.__dataclass_fields__}
    known["models"] = tuple(known.get("models", ()))
    known["budgets"] = tuple(Quota(**budget) for budget in known.get("budgets", ()))
    key = ApiKey(**known)
    if any(budget.window not in WINDOWS for budget in key.budgets):
        raise ValueError(f"key {key.id}: a budget for no window that there is")
    if not re.fullmatch("[0-9a-f]{64}", key.digest):
        raise ValueError(f"key {key.id}: no digest")
    return key


@contextmanager
def locked_for_change(path: Path) -> Iterator[list[ApiKey]]:
    """The keys of the file, to be changed in the block; nobody else changes them meanwhile."""
    make_private_directory(path.parent)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read(path)
        yield keys
        new = path.with_suffix(f".{os.getpid()}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def create(path: Path, **fields: Any) -> tuple[ApiKey, str]:
    """A new key: its record, and the key itself, which is kept nowhere."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey("key_" + secrets.token_hex(4), hash_key(secret), created=int(time.time()), **fields)
    with locked_for_change(path) as keys:
        if key.name and any(other.name == key.name and other.revoked is None for other in keys):
            raise KeyFileError(
                f"There is a key named {key.name!r} already: revoke it, or choose another name."
            )
        keys.append(key)
    return key, secret


def revoke(path: Path, wanted: str) -> ApiKey:
    """Revoke the key with this id or name.  KeyFileError when there is none."""
    with locked_for_change(path) as keys:
        for number, key in enumerate(keys):
            if wanted in (key.id, key.name) and key.revoked is None:
                keys[number] = replace(key, revoked=int(time.time()))
                return keys[number]
        raise KeyFileError(f"There is no key {wanted!r} in use; `qproxy keys list` shows them.")


class ApiKeyStore:
    """The keys that a running server accepts."""

    def __init__(
        self,
        fixed: Sequence[ApiKey] = (),
        path: Path | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._configured = tuple(fixed)
        self._path = path
        self._wall_clock = wall_clock
        self._version = self._file_version()
        self._take((*self._configured, *(read(path) if path is not None else ())))

    def __repr__(self) -> str:
        return f"<Keyring {len(self._keys)} keys>"

    @property
    def path(self) -> Path | None:
        """The file of keys, where there is one."""
        return self._path

    def has_file_keys(self) -> tuple[ApiKey, ...]:
        """All keys, those that are over too."""
        self._refresh()
        return self._keys

    def required(self) -> bool:
        """Whether a client must show a key."""
        self._refresh()
        return bool(self._keys)

    def authenticate(self, secret: str) -> ApiKey:
        """The record of a key that may be used now.  NotAuthenticated for any other."""
        # How far a look-up in a dictionary gets tells at most of the digest, and nobody can aim at one of those.
        key = self._by_digest.get(hash_key(secret[:MAX_KEY]))
        if key is None:
            raise WrongKey("Incorrect API key provided: this server does not know it.")
        state = key.status(self._wall_clock())
        if state != "active":
            raise AuthenticationError(f"The API key provided is {state}.")
        return key

    def _take(self, keys: tuple[ApiKey, ...]) -> None:
        """Use these keys; of several with one digest the first counts."""
        self._keys = keys
        self._by_digest = {key.digest: key for key in reversed(keys)}

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._path) if self._path is not None else None
        except OSError:
            return None
        return stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _refresh(self) -> None:
        """Read the file again if it is another one than last time; a look at it costs a microsecond."""
        stamp = self._file_version()
        if self._path is None or stamp == self._version:
            return
        self._version = stamp
        try:
            if stamp is None:
                raise KeyFileError(f"{self._path}: it is gone.")
            self._take((*self._configured, *read(self._path)))
        except KeyFileError as error:
            log.warning("the keys read before stay in use: %s", error)
