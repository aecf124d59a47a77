"""The route that makes client secrets: keys for realtime sessions in browsers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.state import Route, StateHolder
from qproxy.server.usage_limits import reserve_request
from qproxy.wire.endpoints import OPENAI, validation
from qproxy.wire.realtime import client_secret
from qproxy.wire.realtime.client_secret import ClientSecret
from qproxy.wire.realtime.session_config import to_upstream_session
from qproxy.wire.sealing import NONCE_BYTES


class ClientSecretRoutes:
    """Make client secrets."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route(
            "/realtime/client_secrets",
            ("POST",),
            self._view,
            api=OPENAI,
            schema=client_secret.SCHEMA,
            fast_path=True,
        )

    async def _view(self) -> HTTPResponse:
        state, record, key = self._server.state, request_context.record(), request_context.api_key()
        seconds, session = client_secret.decode(await read_json(state.request_limits, state.body_logger))
        to_upstream_session(session, state.realtime.voices, state.realtime.transcriber)
        model = session.get("model") or state.default_model
        if model is None:
            validation.missing("session.model")
        await reserve_request(state, validation.identifier(model, "session.model"))
        digest = "" if key is None else key.digest
        secret = ClientSecret(digest, int(time.time()) + seconds, {**session, "model": model})
        value = client_secret.seal(
            secret, state.authentication.client_secrets, secrets.token_bytes(NONCE_BYTES)
        )
        return json_response(client_secret.response(value, secret, f"sess_{record.id}"))
