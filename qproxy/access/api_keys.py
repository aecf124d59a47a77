"""API keys of clients: created here, shown once, stored as SHA-256.

`ApiKeyStore` is the source of the keys that a server accepts; `backends.local` has one in a file. A store
keeps a local copy, so that authenticating a request waits for nothing; a change applies within about a second
everywhere.

Once a key has been created keys are required, even when all of them are revoked: revoking every key does not
make the server open. The digest needs no salt and no slow hash: a key is 256 random bits, not a password.
"""

from __future__ import annotations

import calendar
import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

from qproxy.limits.token_bucket import REQUESTS, TOKENS, USD, Amounts
from qproxy.limits.windows import WINDOWS
from qproxy.telemetry.audit import AuditEntry
from qproxy.wire.errors import AuthenticationError, InvalidKeyError

PREFIX = "sk-qproxy-"
MAX_KEY = 1000
"""Characters; a longer key is not hashed whole."""
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


MAX_KEY_NAME = 60
"""Characters: the name stands in lists, log lines and metrics."""


class ApiKeyStoreError(Exception):
    """The keys cannot be read or changed; the message has the reason."""


class ApiKeyStoreBusy(ApiKeyStoreError):
    """A change was not completed in time; it may still happen."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The limit of a key within a window (`limits.windows`)."""

    window: str
    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None
    """US dollars, estimated (`ledger.prices`)."""

    @property
    def limits(self) -> Amounts:
        """The limits by unit."""
        limits = ((REQUESTS, self.requests), (TOKENS, self.tokens), (USD, self.usd))
        return {unit: limit for unit, limit in limits if limit is not None}

    def describe(self) -> str:
        """Return it for a table: `day: 100 requests`."""
        limits = (
            f"{self.requests} requests" if self.requests else "",
            f"{self.tokens} tokens" if self.tokens else "",
            f"{self.usd:g} US dollars" if self.usd else "",
        )
        return f"{self.window}: {' and '.join(filter(None, limits))}"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The record of one client's key; times are Unix seconds."""

    id: str
    digest: str
    name: str = ""
    created: int = 0
    expires: int | None = None
    revoked: int | None = None
    rpm: int | None = None
    """Requests per minute."""
    tpm: int | None = None
    """Tokens per minute, input and output."""
    models: tuple[str, ...] = ()
    """Patterns of the models that it may use; none means all."""
    budgets: tuple[Quota, ...] = ()

    @property
    def label(self) -> str:
        """Its name in logs, metrics and the ledger; a new key of the same name continues its budgets."""
        return self.name or self.id

    @property
    def rate_limits(self) -> Amounts:
        """The limits per minute, by unit."""
        return _limits(self.rpm, self.tpm)

    @property
    def is_limited(self) -> bool:
        """Return whether requests with it are counted."""
        return bool(self.rpm or self.tpm or self.budgets)

    @property
    def has_money_budget(self) -> bool:
        """Return whether it has a budget in money, which only models with a known price can keep."""
        return any(budget.usd is not None for budget in self.budgets)

    def allows(self, model: str) -> bool:
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def describe_limits(self) -> str:
        """Return its limits as text, for the audit log."""
        parts = [f"{name} {limit}" for name, limit in (("rpm", self.rpm), ("tpm", self.tpm)) if limit]
        parts += [f"models {','.join(self.models)}"] if self.models else []
        if self.expires is not None:
            parts.append(time.strftime("expires %Y-%m-%dT%H:%M:%SZ", time.gmtime(self.expires)))
        return "; ".join([*parts, *(f"budget {budget.describe()}" for budget in self.budgets)])

    def status(self, now: float) -> str:
        """Return active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


def _limits(requests: int | None, tokens: int | None) -> Amounts:
    limits = ((REQUESTS, requests), (TOKENS, tokens))
    return {unit: limit for unit, limit in limits if limit is not None}


class ApiKeyStore(Protocol):
    """The keys that a server accepts, and their administration."""

    @property
    def writable(self) -> bool:
        """Return whether keys can be created and revoked."""
        ...

    def list_keys(self) -> tuple[ApiKey, ...]:
        """Return all keys, expired and revoked ones included."""
        ...

    def required(self) -> bool:
        """Return whether clients must send a key."""
        ...

    def authenticate(self, secret: str) -> ApiKey:
        """Return the record of a key that is active. Raises AuthenticationError, InvalidKeyError for an
        unknown one."""
        ...

    async def create(self, **fields: Any) -> tuple[ApiKey, str]:
        """Create a key; return its record and its secret, which is stored nowhere. Raises
        ApiKeyStoreError."""
        ...

    async def revoke(self, id_or_name: str) -> ApiKey:
        """Revoke an active key. Raises ApiKeyStoreError if there is none."""
        ...


class StaticApiKeys:
    """The keys of the settings, which nothing changes; the local copy of other stores."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_digest = {
            key.digest: key for key in reversed(self._keys)
        }  # of two with one digest the first counts

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._keys)} keys>"

    @property
    def writable(self) -> bool:
        return False

    def list_keys(self) -> tuple[ApiKey, ...]:
        return self._keys

    def required(self) -> bool:
        return bool(self._keys)

    def authenticate(self, secret: str) -> ApiKey:
        return self.find(secret, time.time())

    async def create(self, **fields: Any) -> tuple[ApiKey, str]:
        raise ApiKeyStoreError("keys cannot be created here: set keys_file.")

    async def revoke(self, id_or_name: str) -> ApiKey:
        raise ApiKeyStoreError("keys cannot be revoked here: set keys_file.")

    def find(self, secret: str, now: float) -> ApiKey:
        """Return the key with this secret that is active at `now`. Raises AuthenticationError."""
        # The time of a dictionary lookup depends at most on the digest, which a client cannot choose.
        key = self._by_digest.get(hash_key(secret[:MAX_KEY]))
        if key is None:
            raise InvalidKeyError("Incorrect API key provided.")
        status = key.status(now)
        if status != "active":
            raise AuthenticationError(f"The API key provided is {status}.")
        return key


def audit_entry(actor: str, action: str, key: ApiKey) -> AuditEntry:
    """Return the audit entry of a key that was changed."""
    subject = f"{key.id} {key.name}".strip()
    return AuditEntry(actor, action, subject, key.describe_limits() if action == "key.create" else "")


def hash_key(key: str) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def keys_from_settings(keys: Iterable[str]) -> list[ApiKey]:
    """Return the keys of the setting `api_keys`, which has them in clear or as digests."""
    digests = [key.lower() if re.fullmatch("[0-9a-fA-F]{64}", key) else hash_key(key) for key in keys]
    return [ApiKey(f"api_keys[{number}]", digest) for number, digest in enumerate(digests)]


def generate(**fields: Any) -> tuple[ApiKey, str]:
    """Generate a key; return its record and its secret."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return ApiKey("key_" + secrets.token_hex(4), hash_key(secret), created=int(time.time()), **fields), secret


def check_key_name(name: str) -> None:
    """Raise ValueError unless a name is one line of text."""
    if len(name) > MAX_KEY_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"A key's name is one line of at most {MAX_KEY_NAME} printable characters, not {name[:80]!a}."
        )


def with_key(keys: Sequence[ApiKey], key: ApiKey) -> list[ApiKey]:
    """Return the keys with a new one. Raises ApiKeyStoreError if its name is in use or no line of text."""
    try:
        check_key_name(key.name)
    except ValueError as error:
        raise ApiKeyStoreError(str(error)) from None
    if key.name and any(other.name == key.name and other.revoked is None for other in keys):
        raise ApiKeyStoreError(f"a key named {key.name!r} already exists: revoke it or choose another name.")
    return [*keys, key]


def select_new(present: Sequence[ApiKey], keys: Sequence[ApiKey]) -> list[ApiKey]:
    """Return the keys that are not present, or not revoked yet. Raises ApiKeyStoreError for a name of two."""
    known = {key.id: key for key in present}
    names = {key.name for key in present if key.revoked is None}
    new = []
    for key in keys:
        other = known.get(key.id)
        if other is None and key.revoked is None and key.name and key.name in names:
            raise ApiKeyStoreError(
                f"a key named {key.name!r} with another secret exists: revoke one of them."
            )
        if other is None or (key.revoked is not None and other.revoked is None):
            new.append(key)
    return new


def with_revoked(keys: Sequence[ApiKey], id_or_name: str) -> tuple[list[ApiKey], ApiKey]:
    """Return the keys with an active one revoked, and that one. Raises ApiKeyStoreError if there is none."""
    for number, key in enumerate(keys):
        if id_or_name in (key.id, key.name) and key.revoked is None:
            revoked = replace(key, revoked=int(time.time()))
            return [*keys[:number], revoked, *keys[number + 1 :]], revoked
    raise ApiKeyStoreError(f"no active key {id_or_name!r}; `qproxy keys list` shows them.")


def parse_expiry(text: str, now: float) -> int:
    """Parse when a key expires: a time from now (30d, 12h) or a date in UTC (2027-01-31). Raises
    ValueError."""
    period = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    if period:
        return int(now) + int(period[1]) * _UNITS[period[2]]
    return calendar.timegm(time.strptime(text, "%Y-%m-%d"))


def to_json(key: ApiKey) -> dict[str, Any]:
    """Return the record for a store."""
    return asdict(key)


def from_json(entry: dict[str, Any]) -> ApiKey:
    """Read the record of a key. Raises TypeError or ValueError for one that is not valid."""
    known = {name: value for name, value in entry.items() if name in ApiKey.__dataclass_fields__}
    known["models"] = tuple(known.get("models", ()))
    known["budgets"] = tuple(Quota(**budget) for budget in known.get("budgets", ()))
    key = ApiKey(**known)
    if any(budget.window not in WINDOWS for budget in key.budgets):
        raise ValueError(f"key {key.id}: a budget for an unknown window")
    if not re.fullmatch("[0-9a-f]{64}", key.digest):
        raise ValueError(f"key {key.id}: no digest")
    return key
