"""Client secrets: keys that a program gives to a browser, for realtime sessions with given settings.

A secret contains what it stands for, sealed (`wire.sealing`): the digest of the API key that made it, its
end, and the session's settings. So every process with the server's seal key accepts it, nothing is stored,
and it ends with its API key. A secret is a token of RFC 9110 5.6.2, for it may be sent in a subprotocol.
Source: openai-python 3.57, `realtime/client_secret_create_params.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import object_schema
from qproxy.wire.errors import AuthenticationError
from qproxy.wire.events import JSON
from qproxy.wire.sealing import Sealer

PREFIX = "ek_"
DEFAULT_SECONDS = 600
MAX_SESSION_BYTES = 4096
"""Of the settings as JSON: a secret is sent in the head of a request."""
_ANCHOR, _SECONDS = validation.one_of(("created_at",)), validation.integer(10, 7200)
FIELDS = {"expires_after": validation.object_, "session": validation.object_}
SCHEMA: JSON = object_schema([], validation.properties(FIELDS))


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """The meaning of a secret."""

    digest: str
    """Of the API key that made it; "" on a server without keys."""
    ends: int
    """Unix time after which it opens no session."""
    session: dict[str, JSON]
    """The client's settings, in OpenAI's shape."""


def decode(body: JSON) -> tuple[int, dict[str, JSON]]:
    """Return the seconds until the end, and the session's settings. Raises RequestError."""
    fields = validation.check_fields(validation.body(body), FIELDS)
    after = {"seconds": DEFAULT_SECONDS, "anchor": "created_at", **fields.get("expires_after", {})}
    _ANCHOR(after["anchor"], "expires_after.anchor")
    seconds = _SECONDS(after["seconds"], "expires_after.seconds")
    session = fields.get("session", {})
    size = len(json_codec.dumps(session))
    if size > MAX_SESSION_BYTES:
        validation.wrong_value(
            "session",
            f"it has {size:,} bytes, but a secret can hold {MAX_SESSION_BYTES:,}; send long settings in the "
            "session itself.",
        )
    return seconds, session


def seal(secret: ClientSecret, sealer: Sealer, nonce: bytes) -> str:
    """Return the text of a secret; the nonce is random bytes, never used twice."""
    text = json_codec.dumps([secret.digest, secret.ends, secret.session]).decode()
    return sealer.seal(text, nonce).rstrip("=")


def unseal(value: str, sealer: Sealer, now: float) -> ClientSecret | None:
    """Return what a text stands for, None if it is no secret of this server. Raises AuthenticationError for
    one that has ended."""
    text = sealer.unseal(value + "=" * (-len(value.removeprefix(PREFIX)) % 4))
    if text is None:
        return None
    digest, ends, session = json_codec.loads(text)
    if now >= ends:
        raise AuthenticationError("The client secret has expired; create another one.")
    return ClientSecret(digest, ends, session)


def response(value: str, secret: ClientSecret, id: str) -> JSON:
    """Return the body that hands out a secret."""
    session = {
        "audio": {},
        "output_modalities": ["audio"],
        "tools": [],
        "tool_choice": "auto",
        "instructions": "",
        **secret.session,
    }
    fixed = {"type": "realtime", "object": "realtime.session", "id": id, "expires_at": secret.ends}
    return {"value": value, "expires_at": secret.ends, "session": {**session, **fixed}}
