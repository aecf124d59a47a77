"""Counts the tokens of a prompt with the tokenizer of an own server, where the model has one.

Which form of request a server takes (`wire.dialects.tokenizers`) is probed once and remembered. A server
that takes none is probed again after an hour, one that failed after a minute: until then, as whenever the
time limit `tokenize_timeout` is reached, the caller has to estimate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial

import trio

from qproxy.accounts import Account
from qproxy.relay.event_stream import apart
from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec
from qproxy.wire.dialects.tokenizers import FORMS, TokenizerForm, TokenizerRequests
from qproxy.wire.errors import QproxyError, UpstreamError
from qproxy.wire.events import JSON, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.json_codec import LARGE

MAX_RESPONSE_BYTES = 32 * 1024 * 1024
"""Servers list the tokens that they count."""
ABSENT_SECONDS = 3600.0
"""Seconds until a server without a tokenizer is probed again; it may have been replaced."""
FAILURE_SECONDS = 60.0
UNSUPPORTED_STATUSES = range(400, 500)
"""The server does not know the form of request."""
PROBE = Turn("", 0, "", [{"role": "user", "content": "Hello"}])
log = logging.getLogger("qproxy.relay")


class Tokenizers:
    """The tokenizers of all own servers."""

    def __init__(self, accounts: Sequence[Account], transport: UpstreamTransport, *, timeout: float) -> None:
        """`timeout` is in seconds, for all requests of one count; 0 asks no server."""
        own = [account for account in accounts if account.provider_family == "open"]
        self._accounts = own if timeout else []
        self._transport = transport
        self._timeout = timeout
        self._forms: dict[Account, TokenizerForm] = {}
        self._retry_at: dict[Account, float] = {}
        """When servers may be asked again; Trio's clock."""
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<Tokenizers of {len(self._forms)} of {len(self._accounts)} servers>"

    async def count(self, turn: Turn, model: str) -> int | None:
        """Return the tokens of a turn's prompt for a model; None if no server counts them."""
        for account in self._accounts:
            lists = account.known_models is None or model in account.known_models
            if account.supports(model) and lists and not self._is_resting(account):
                return await self._count(account, turn, model)
        return None

    async def _count(self, account: Account, turn: Turn, model: str) -> int | None:
        """Return the count of one account's server, None if it has no tokenizer or fails."""
        try:
            with trio.fail_after(self._timeout):
                form = await self._form(account, model)
                if form is None:
                    return None
                count = await self._run(account, form(turn, model))
                if count is not None:
                    return count
                raise ValueError("it does not take this prompt")
        except (trio.TooSlowError, QproxyError, ValueError) as error:
            log.info("account %s does not count tokens (%s)", account.name, error)
            self._forms.pop(account, None)
            self._retry_at[account] = trio.current_time() + FAILURE_SECONDS
            return None

    async def _form(self, account: Account, model: str) -> TokenizerForm | None:
        """Return the form that a server takes, None for a server without a tokenizer.

        One request at a time probes, and the probe is no client's prompt, which could be at fault.
        """
        async with self._lock:
            if account in self._forms or self._is_resting(account):
                return self._forms.get(account)
            for form in FORMS:
                if await self._run(account, form(PROBE, model)):
                    self._forms[account] = form
                    return form
            log.info("account %s does not count tokens (it has no tokenizer)", account.name)
            self._retry_at[account] = trio.current_time() + ABSENT_SECONDS
            return None

    def _is_resting(self, account: Account) -> bool:
        """Return whether a server is not to be asked yet."""
        return trio.current_time() < self._retry_at.get(account, -math.inf)

    async def _run(self, account: Account, requests: TokenizerRequests) -> int | None:
        """Send the requests of a form, and return its result."""
        try:
            path, body = next(requests)
            while True:
                path, body = requests.send(await self._post(account, path, body))
        except StopIteration as done:
            count: int | None = done.value
            return count

    async def _post(self, account: Account, path: str, body: JSON) -> JSON:
        """Return a response's JSON, None if the server does not take the request.

        Raises QproxyError or ValueError for a server that fails.
        """
        credential = await account.source.credential()
        root = credential.base_url.removesuffix("/v1")
        headers = account.target(credential, "").with_authorization()
        request = HTTPRequest("POST", f"{root}{path}", headers, json_codec.dumps(body))
        async with await self._transport.send(request) as response:
            data = await response.read(MAX_RESPONSE_BYTES)
        if response.status in UNSUPPORTED_STATUSES:
            return None
        if response.status != 200:
            raise UpstreamError(f"The server answered {path} with the status {response.status}.")
        read = partial(json_codec.loads, data)
        return await apart(read) if len(data) > LARGE else read()
