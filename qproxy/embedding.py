"""One request for embeddings, start to end: batches to accounts, side by side, and the vectors in order.

A model's server takes a few texts at once (DashScope: ten), a client may send 2,048.  The batches run in a nursery of
the request, a bounded number at a time; each takes the same way as a chat (`trying`: lease, failover, refresh).  The
first that fails for good ends its siblings, and theirs is the one error that the client sees.  When the client leaves,
the nursery is cancelled and every connection closed.

Writing the vectors down is work, not waiting: after each one others get their turn.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import trio

from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.observe import Story
from qproxy.relay import MAX_ERROR_BODY, MAX_WHOLE_BODY, Relay
from qproxy.trying import Tries
from qproxy.wire import vectors
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import Usage
from qproxy.wire.upstreams import DIALECTS, embeddings, errors
from qproxy.wire.vectors import Texts, Vectors


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
    model = relay.policy.aliases.get(asked.model, asked.model)
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
        self._next = iter(range(len(batches)))
        self._written: list[list[bytes]] = [[] for _ in batches]
        self._tokens = 0
        self._failure: QproxyError | None = None
        self._began = trio.current_time()

    async def done(self, at_once: int) -> Embedded:
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(self._work, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure
        self._story.usage = Usage(self._tokens, 0, self._tokens)
        return Embedded([vector for batch in self._written for vector in batch], self._tokens)

    async def _work(self, siblings: trio.CancelScope) -> None:
        """Take the next batch while there is one."""
        for number in self._next:
            try:
                await self._batch(number)
            except QproxyError as error:
                self._failure = self._failure or error
                siblings.cancel()
                return

    async def _batch(self, number: int) -> None:
        batch, story = self._batches[number], Story()
        tries = Tries(self._relay.accounts, self._model, story, task="embedding")
        try:
            async with AsyncExitStack() as stack:
                found = await tries.until_begun(partial(self._ask, batch, story), stack)
        finally:
            self._tell(story)
        self._tokens += found.tokens
        for row in found.rows:
            self._written[number].append(vectors.encode(row, base64=batch.base64))
            await trio.lowlevel.checkpoint()

    async def _ask(
        self, batch: Texts, story: Story, account: Account, credential: Credential, stack: AsyncExitStack
    ) -> Vectors:
        """One try with one account."""
        target = account.target(credential, self._model)
        story.account = account.name
        response = await self._relay.transport.send(DIALECTS[account.dialect].embed(batch, target))
        await stack.enter_async_context(response)
        story.upstream_status = response.status
        story.upstream_request_id = response.header(b"x-request-id")
        if response.status != 200:
            body = await response.read(MAX_ERROR_BODY)
            raise errors.upstream_error(response.status, response.headers, body, plan=account.plan)
        return embeddings.read(await response.read(MAX_WHOLE_BODY), batch, target)

    def _tell(self, batch: Story) -> None:
        """Let the request's story know of a batch: that of the last one, and the most tries that one took."""
        story = self._story
        story.served_model = self._model
        story.account = batch.account or story.account
        story.upstream_status = batch.upstream_status or story.upstream_status
        story.upstream_request_id = batch.upstream_request_id or story.upstream_request_id
        story.tries = max(story.tries, batch.tries)
        story.upstream_seconds = trio.current_time() - self._began
