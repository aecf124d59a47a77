"""An HTTP client for the identity server: `wire.oauth`'s requests and responses over `transport`.

Nothing is raised but cancellation: a network failure is returned as a `TransientError`.
"""

from __future__ import annotations

import uuid

import trio

from qproxy.transport import UpstreamTransport
from qproxy.wire import oauth
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.oauth import (
    PKCE,
    AuthorizationResult,
    DeviceAuthorization,
    IdentityProvider,
    PollResult,
    RefreshResult,
    TransientError,
)

MAX_RESPONSE_BYTES = 64 * 1024


class IdentityClient:
    """A client of one identity server."""

    def __init__(self, transport: UpstreamTransport, provider: IdentityProvider, *, timeout: float) -> None:
        self._transport = transport
        self._provider = provider
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<IdentityClient {self._provider.token_url}>"

    async def authorize_device(self, proof: PKCE) -> AuthorizationResult:
        """Start a device flow."""
        answer = await self._send(
            oauth.device_authorization_request(self._provider, proof.challenge, str(uuid.uuid4()))
        )
        return answer if isinstance(answer, TransientError) else oauth.parse_authorization(*answer)

    async def poll_token(self, device: DeviceAuthorization, proof: PKCE) -> PollResult:
        """Poll for the decision of a device flow."""
        answer = await self._send(
            oauth.device_token_request(self._provider, device.device_code, proof.verifier)
        )
        secrets = (device.device_code, proof.verifier)
        return answer if isinstance(answer, TransientError) else oauth.parse_poll(*answer, secrets=secrets)

    async def refresh(self, refresh_token: str) -> RefreshResult:
        """Exchange a refresh token, which can be used once, for new tokens."""
        answer = await self._send(oauth.refresh_request(self._provider, refresh_token))
        if isinstance(answer, TransientError):
            return answer
        return oauth.parse_refresh(*answer, secrets=(refresh_token,))

    async def _send(self, request: HTTPRequest) -> tuple[int, bytes] | TransientError:
        with trio.move_on_after(self._timeout):
            try:
                async with await self._transport.send(request) as response:
                    return response.status, await response.read(MAX_RESPONSE_BYTES)
            except UpstreamError as error:
                return TransientError(error.message)
        return TransientError(f"The identity server sent no response within {self._timeout:g} s.")
