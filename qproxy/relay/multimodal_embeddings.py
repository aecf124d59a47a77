"""One request for embeddings of pictures, videos and texts: requests within the model's limits in parallel,
and the vectors in order.

Own servers get the request whole, for their limits are their own.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import trio

from qproxy.access.rate_limits import size_of_contents
from qproxy.accounts import Account, Capability
from qproxy.relay.embedding_vectors import EmbeddingResult, encode_rows
from qproxy.relay.event_stream import MAX_WHOLE_BODY, apart
from qproxy.relay.exchange import exchange, reject_ignored
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.relay.relay import Relay
from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.transport import UpstreamResponse
from qproxy.wire.dialects import UpstreamTarget, embeddings
from qproxy.wire.dialects.multimodal_embeddings import ignored_fields, own_request, studio_request
from qproxy.wire.embeddings import EmbeddingOutput
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Usage
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.json_codec import LARGE
from qproxy.wire.models import ModelSpec
from qproxy.wire.multimodal_embeddings import MultimodalInput, check_dimensions

TASK: Capability = "multimodal_embedding"


def uses_model_studio(relay: Relay, model: str) -> bool:
    """Return whether an account of Model Studio may serve the model."""
    return any(
        account.provider_family == "dashscope" and account.supports(model, TASK)
        for account in relay.accounts.accounts
    )


async def embed_contents(
    relay: Relay, request: MultimodalInput, model: str, record: RelayRecord
) -> EmbeddingResult:
    """Return a vector for each content from the served model. Raises the first QproxyError of a batch."""
    spec = relay.policy.catalog.get(model)
    batches = [request]
    if uses_model_studio(relay, model):
        _check_task(request, spec)
        check_dimensions(request, spec)
        reject_ignored(relay, record, ignored_fields(request))
        batches = list(request.split(spec))
    job = _MultimodalJob(relay, model, spec, batches, record)
    return await job.run(min(relay.policy.embedding_requests, len(batches)))


def _check_task(request: MultimodalInput, spec: ModelSpec) -> None:
    """Raise RequestError for a model of Model Studio that is known for something else."""
    if spec.tasks and not spec.is_for(TASK):
        message = (
            f"The model {request.model[:200]!r} makes no embeddings of pictures and videos: send texts as"
            " strings, or use a model for multimodal embeddings."
        )
        raise RequestError(message, param="input", code="unsupported_value")


class _MultimodalJob:
    """The batches of one request."""

    def __init__(
        self,
        relay: Relay,
        model: str,
        spec: ModelSpec,
        batches: list[MultimodalInput],
        record: RelayRecord,
    ) -> None:
        self._relay = relay
        self._model = model
        self._spec = spec
        self._batches = batches
        self._record = record
        self._written: list[list[bytes]] = [[] for _ in batches]
        self._tokens = 0

    async def run(self, at_once: int) -> EmbeddingResult:
        started_at = trio.current_time()
        try:
            await run_bounded(self._batch, len(self._batches), at_once)
        finally:
            self._record.upstream_seconds = trio.current_time() - started_at
        return EmbeddingResult([vector for batch in self._written for vector in batch], self._tokens)

    async def _batch(self, number: int) -> None:
        batch, record = self._batches[number], RelayRecord(served_model=self._model)
        estimate = self._relay.token_ratios.estimate(self._model, size_of_contents(batch))
        try:
            output = await self._send(batch, record)
        except trio.Cancelled:
            if record.account is not None:  # an upstream has the contents
                self._record.responses.append(ResponseTokens(estimate))
            raise
        finally:
            merge_records(self._record, record)
        usage = Usage(output.tokens, 0, output.tokens) if output.tokens else None
        self._record.responses.append(ResponseTokens(estimate, usage=usage))
        if batch.images:
            self._record.units["images"] = self._record.units.get("images", 0) + batch.images
        self._tokens += output.tokens
        self._record.usage = Usage(self._tokens, 0, self._tokens) if self._tokens else None
        await encode_rows(output.rows, self._written[number], base64=batch.base64)

    async def _send(self, batch: MultimodalInput, record: RelayRecord) -> EmbeddingOutput:
        """Return the vectors of one batch."""

        def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
            if account.provider_family == "dashscope":
                return studio_request(batch, self._spec, target)
            return own_request(batch, target)

        async def read(response: UpstreamResponse, account: Account) -> EmbeddingOutput:
            body = await response.read(MAX_WHOLE_BODY)
            parse = partial(embeddings.parse_response, body, len(batch.contents), account.plan)
            return await apart(parse) if len(body) > LARGE else parse()

        async with AsyncExitStack() as stack:
            return await exchange(
                self._relay, record, stack, model=batch.model, task=TASK, build=build, read=read
            )
