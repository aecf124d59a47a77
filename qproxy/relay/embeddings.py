"""One request for embeddings: batches to accounts in parallel, and the vectors in order.

An upstream accepts a few texts per request (DashScope: ten), a client may send 2,048. A bounded number of
batches is in flight at a time (`fan_out`); each is an `Attempt` of its own, retried like a chat (`retry`).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import trio

from qproxy.access.rate_limits import size_of_texts
from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.relay.chat_attempt import check_status
from qproxy.relay.embedding_vectors import EmbeddingResult, encode_rows
from qproxy.relay.event_stream import MAX_WHOLE_BODY, apart
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.relay.multimodal_embeddings import TASK, embed_contents, uses_model_studio
from qproxy.relay.relay import Relay
from qproxy.relay.retry import Attempt, RetryLoop
from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.transport import UpstreamTransport
from qproxy.wire.dialects import DIALECTS, embeddings
from qproxy.wire.embeddings import EmbeddingInput, EmbeddingOutput
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Usage
from qproxy.wire.json_codec import LARGE
from qproxy.wire.multimodal_embeddings import MultimodalInput, as_multimodal


async def create_embeddings(relay: Relay, request: EmbeddingInput, record: RelayRecord) -> EmbeddingResult:
    """Return a vector for each text or content. Raises the first QproxyError of a batch."""
    record.model, record.ignored = request.model, request.ignored
    if request.ignored and relay.policy.strict_params:
        message = f"Unsupported parameter '{request.ignored[0]}' for this model."
        raise RequestError(message, param=request.ignored[0], code="unsupported_parameter")
    route = relay.names.route(request.model)
    model, record.rule_notes = route.served, route.notes
    if isinstance(request, MultimodalInput):
        return await embed_contents(relay, request, model, record)
    if TASK in (relay.policy.catalog.get(model).tasks or ()) and uses_model_studio(relay, model):
        return await embed_contents(relay, as_multimodal(request), model, record)
    able = [account for account in relay.accounts.accounts if account.supports(model, "embedding")]
    size = min((account.embedding_batch_for(model) for account in able), default=1)
    batches = list(request.batches(size))
    places = sum(account.max_in_flight or len(batches) for account in able) or 1
    at_once = min(relay.policy.embedding_requests, places, len(batches))
    return await _EmbeddingJob(relay, model, batches, record).done(at_once)


class _EmbeddingJob:
    """The batches of one request."""

    def __init__(self, relay: Relay, model: str, batches: list[EmbeddingInput], record: RelayRecord) -> None:
        self._relay = relay
        self._model = model
        self._batches = batches
        self._record = record
        self._written: list[list[bytes]] = [[] for _ in batches]
        self._tokens = 0
        self._started_at = trio.current_time()

    async def done(self, at_once: int) -> EmbeddingResult:
        await run_bounded(self._batch, len(self._batches), at_once)
        return EmbeddingResult([vector for batch in self._written for vector in batch], self._tokens)

    async def _batch(self, number: int) -> None:
        batch, record = self._batches[number], RelayRecord(served_model=self._model)
        estimate = self._relay.token_ratios.estimate(self._model, size_of_texts(batch))
        attempt = EmbeddingAttempt(self._relay.transport, self._model, batch, record)
        loop = RetryLoop(self._relay.accounts, self._model, record, task="embedding")
        try:
            async with AsyncExitStack() as stack:
                found = await loop.run(attempt, stack)
        except trio.Cancelled:
            if record.account is not None:  # an upstream has the texts
                self._record.responses.append(ResponseTokens(estimate))
            raise
        finally:
            merge_records(self._record, record)
            self._record.upstream_seconds = trio.current_time() - self._started_at
        usage = Usage(found.tokens, 0, found.tokens) if found.tokens else None
        self._record.responses.append(ResponseTokens(estimate, usage=usage))
        self._tokens += found.tokens
        self._record.usage = Usage(self._tokens, 0, self._tokens) if self._tokens else None
        await encode_rows(found.rows, self._written[number], base64=batch.base64)


class EmbeddingAttempt(Attempt[EmbeddingOutput]):
    """The attempts of one batch."""

    def __init__(
        self, transport: UpstreamTransport, model: str, batch: EmbeddingInput, record: RelayRecord
    ) -> None:
        self._transport = transport
        self._model = model
        self._batch = batch
        self._record = record

    async def start(self, account: Account, credential: Credential, stack: AsyncExitStack) -> EmbeddingOutput:
        """Send the batch, and return its vectors."""
        target = account.target(credential, self._model, self._record.trace_headers)
        self._record.account = account.name
        request = DIALECTS[account.dialect].embeddings_request(self._batch, target)
        response = await self._transport.send(request)
        await stack.enter_async_context(response)
        await check_status(response, account, self._record)
        body = await response.read(MAX_WHOLE_BODY)
        read = partial(embeddings.parse_response, body, len(self._batch.texts), target.plan)
        return await apart(read) if len(body) > LARGE else read()
