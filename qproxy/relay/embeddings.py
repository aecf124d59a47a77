"""One request for embeddings, start to end: batches to accounts, side by side, and the vectors in order.

A model's server takes a few texts at once (DashScope: ten), a client may send 2,048.  The batches run `abreast`,
a bounded number at a time; each takes the same way as a chat (`trying`: lease, failover, refresh).

Writing the vectors down is work, not waiting: after each one others get their turn.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import trio

from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.relay.event_stream import MAX_WHOLE_BODY, apart
from qproxy.relay.fan_out import absorb, side_by_side
from qproxy.relay.relay import MAX_ERROR_BODY, Relay
from qproxy.relay.retry import Tries
from qproxy.telemetry import Story
from qproxy.wire import embeddings as vectors
from qproxy.wire.dialects import DIALECTS, embeddings
from qproxy.wire.dialects import error_mapping as errors
from qproxy.wire.embeddings import Texts, Vectors
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Usage
from qproxy.wire.json_codec import LARGE


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of the texts."""

    vectors: list[bytes]
    """In the order of the texts, each as the client wants it."""
    tokens: int


async def embed(relay: Relay, asked: Texts, story: Story) -> Embedded:
    """A vector for each text.  Raises QproxyError, the first one, when a batch could not be had."""
    story.model, story.ignored = asked.model, asked.ignored
    if asked.ignored and relay.policy.strict_params:
        message = f"Unsupported parameter: '{asked.ignored[0]}' has no meaning for this model's server."
        raise RequestError(message, param=asked.ignored[0], code="unsupported_parameter")
    model = relay.policy.aliases.resolve(asked.model)
    able = [account for account in relay.accounts.accounts if account.offers(model, "embedding")]
    size = min((account.embedding_batch for account in able), default=1)
    batches = list(asked.batches(size))
    places = sum(account.max_in_flight or len(batches) for account in able) or 1
    at_once = min(relay.policy.embedding_requests, places, len(batches))
    return await _Work(relay, model, batches, story).done(at_once)


class _Work:
    """The batches of one request."""

    def __init__(self, relay: Relay, model: str, batches: list[Texts], story: Story) -> None:
        self._relay = relay
        self._model = model
        self._batches = batches
        self._story = story
        self._written: list[list[bytes]] = [[] for _ in batches]
        self._tokens = 0
        self._began = trio.current_time()

    async def done(self, at_once: int) -> Embedded:
        await side_by_side(self._batch, len(self._batches), at_once)
        self._story.usage = Usage(self._tokens, 0, self._tokens)
        return Embedded([vector for batch in self._written for vector in batch], self._tokens)

    async def _batch(self, number: int) -> None:
        batch, story = self._batches[number], Story(served_model=self._model)
        tries = Tries(self._relay.accounts, self._model, story, task="embedding")
        try:
            async with AsyncExitStack() as stack:
                found = await tries.until_begun(partial(self._ask, batch, story), stack)
        finally:
            absorb(self._story, story)
            self._story.upstream_seconds = trio.current_time() - self._began
        self._tokens += found.tokens
        for row in found.rows:
            encode = partial(vectors.encode, row, base64=batch.base64)
            self._written[number].append(await apart(encode) if len(row) > LARGE else encode())
            await trio.lowlevel.checkpoint()

    async def _ask(
        self, batch: Texts, story: Story, account: Account, credential: Credential, stack: AsyncExitStack
    ) -> Vectors:
        """One try with one account."""
        target = account.target(credential, self._model, story.carried)
        story.account = account.name
        response = await self._relay.transport.send(DIALECTS[account.dialect].embed(batch, target))
        await stack.enter_async_context(response)
        story.upstream_status = response.status
        story.upstream_request_id = response.header(b"x-request-id")
        if response.status != 200:
            body = await response.read(MAX_ERROR_BODY)
            raise errors.upstream_error(response.status, response.headers, body, plan=account.plan)
        body = await response.read(MAX_WHOLE_BODY)
        read = partial(embeddings.read, body, batch, target)
        return await apart(read) if len(body) > LARGE else read()
