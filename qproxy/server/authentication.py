"""Authentication of requests: a client by its API key, or the operator by the admin key.

Every route declares its `Access`; a route that declares none requires a key.
"""

from __future__ import annotations

import enum
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qproxy.access.api_keys import ApiKey, ApiKeyStore
from qproxy.server.host_policy import HostPolicy, ReadableHeaders, require_local
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import AuthenticationError, InvalidKeyError, RequestError
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.realtime import client_secret
from qproxy.wire.realtime.client_secret import ClientSecret
from qproxy.wire.sealing import Sealer

KEY_SUBPROTOCOL = "openai-insecure-api-key."


class Access(enum.Enum):
    """The access that a route requires."""

    OPEN = "open"
    """Anyone: health, and the description of the server."""
    KEY = "key"
    """Clients with an API key, if keys are required."""
    ADMIN = "admin"
    """The operator: by `admin_key` or, if none is set, from the same machine."""
    SESSION = "session"
    """The operator in a browser.  The page checks that itself (`dashboard.auth`), because it answers with a
    form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """Checks the keys of requests."""

    api_keys: ApiKeyStore
    client_secrets: Sealer
    """Seals the secrets that open realtime sessions in place of an API key."""
    admin_key: str | None = field(repr=False)
    hosts: HostPolicy
    aliases: ModelAliases

    def authenticate(
        self,
        headers: ReadableHeaders,
        scope: Mapping[str, Any],
        key_headers: Sequence[str] = OPENAI.api_key_headers,
    ) -> ApiKey | None:
        """Return the client's key, or None on a server without keys.  Raises RequestError for a rejected
        request."""
        if not self.api_keys.required():
            self.hosts.check(headers, scope)
            return None
        key = api_key_from(headers, key_headers)
        if not key:
            raise AuthenticationError(
                "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer "
                "KEY'."
            )
        secret = self.client_secret(headers, scope)
        return self.api_keys.authenticate(key) if secret is None else self._key_of(secret)

    def client_secret(self, headers: ReadableHeaders, scope: Mapping[str, Any]) -> ClientSecret | None:
        """Return the client secret of a realtime session, None for a request without one. Raises
        AuthenticationError for one that has ended."""
        if scope.get("type") != "websocket" or not scope["path"].endswith("/realtime"):
            return None
        key = api_key_from(headers)
        if not key.startswith(client_secret.PREFIX):
            return None
        return client_secret.unseal(key, self.client_secrets, time.time())

    def _key_of(self, secret: ClientSecret) -> ApiKey:
        """Return the API key that made a client secret. Raises AuthenticationError unless it is active."""
        now = time.time()
        for key in self.api_keys.list_keys():
            if key.digest == secret.digest and key.status(now) == "active":
                return key
        raise AuthenticationError("The API key that created this client secret is not active anymore.")

    def key_of(self, digest: str) -> ApiKey | None:
        """Return the active key with a digest, None for "" on a server without keys. Raises RequestError."""
        if not digest and not self.api_keys.required():
            return None
        now = time.time()
        for key in self.api_keys.list_keys():
            if key.digest == digest and key.status(now) == "active":
                return key
        raise AuthenticationError("The API key of this request was revoked or has expired.")

    def require_admin(self, headers: ReadableHeaders, scope: Mapping[str, Any]) -> None:
        """Raise RequestError unless the operator sends the request."""
        if self.admin_key is not None:
            self.check_admin_key(api_key_from(headers))
            return
        require_local(headers, scope)

    def check_admin_key(self, key: str) -> None:
        """Raise AuthenticationError without a key, and InvalidKeyError for any but the admin key."""
        if not key:
            raise AuthenticationError("This route requires the admin key (setting admin_key).")
        expected = self.admin_key
        if expected is None or not hmac.compare_digest(_bytes(key), _bytes(expected)):
            raise InvalidKeyError("The key is not the server's admin_key.")

    def allows(self, key: ApiKey | None, model: str) -> bool:
        """Return whether the key may use the model with this name or alias; an alias is allowed with its
        model."""
        return key is None or key.allows(self.aliases.resolve(model))

    def authorize_model(self, key: ApiKey | None, model: str) -> None:
        """Raise RequestError unless the key may use the model, which is no alias."""
        if key is not None and not key.allows(model):
            raise RequestError(
                f"API key {key.name or key.id!r} may not use the model {model[:200]!r}.",
                status=403,
                type="permission_error",
                param="model",
                code="model_access_denied",
            )


def _bytes(key: str) -> bytes:
    """Encode a key for comparison; a setting may hold lone surrogates."""
    return key.encode("utf-8", "surrogatepass")


def api_key_from(headers: ReadableHeaders, names: Sequence[str] = OPENAI.api_key_headers) -> str:
    """Return the key: a bearer token, or in one of these headers, or in a subprotocol; "" without one.

    An empty one counts as none, since clients send their unset variables too (`Authorization: Bearer `).
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (key := token.strip()):
        return str(key)
    keys = (headers.get(name, "").strip() for name in names)
    return next(filter(None, keys), "") or _key_from_subprotocol(headers)


def _key_from_subprotocol(headers: ReadableHeaders) -> str:
    """Return the key in OpenAI's WebSocket subprotocol: scripts in pages cannot set other headers."""
    offered = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
    return next(
        (name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)), ""
    )
