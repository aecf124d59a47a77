"""The identity server, asked over HTTP: requests and answers are `wire.oauth`'s, the way is `transport`'s.

Nothing is raised but cancellation: what fails on the way is a `Transient` answer like any other.
"""

from __future__ import annotations

import uuid

import trio

from qproxy.transport import Transport
from qproxy.wire import oauth
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.oauth import Begun, Device, Polled, Proof, Provider, Refreshed, Transient

LARGEST_ANSWER = 64 * 1024


class Identity:
    """One identity server."""

    def __init__(self, transport: Transport, provider: Provider, *, timeout: float = 30.0) -> None:
        self._transport = transport
        self._provider = provider
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<Identity {self._provider.token_url}>"

    async def begin(self, proof: Proof) -> Begun:
        """A new device flow."""
        answer = await self._ask(oauth.begin(self._provider, proof.challenge, str(uuid.uuid4())))
        return answer if isinstance(answer, Transient) else oauth.read_begun(*answer)

    async def poll(self, device: Device, proof: Proof) -> Polled:
        """Whether a flow has been decided."""
        answer = await self._ask(oauth.poll(self._provider, device.device_code, proof.verifier))
        secrets = (device.device_code, proof.verifier)
        return answer if isinstance(answer, Transient) else oauth.read_polled(*answer, secrets=secrets)

    async def refresh(self, refresh_token: str) -> Refreshed:
        """New tokens for a refresh token, which is spent by asking."""
        answer = await self._ask(oauth.refresh(self._provider, refresh_token))
        if isinstance(answer, Transient):
            return answer
        return oauth.read_refreshed(*answer, secrets=(refresh_token,))

    async def _ask(self, request: HTTPRequest) -> tuple[int, bytes] | Transient:
        with trio.move_on_after(self._timeout):
            try:
                async with await self._transport.send(request) as response:
                    return response.status, await response.read(LARGEST_ANSWER)
            except UpstreamError as error:
                return Transient(error.message)
        return Transient(f"The identity server did not answer within {self._timeout:g} s.")
