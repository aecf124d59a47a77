"""One rerank: its documents in batches that the model accepts, to accounts in parallel, in one order.

A score does not depend on the other documents of its request, so the scores of batches can be compared.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from qproxy.accounts import Account
from qproxy.relay.exchange import exchange, read_json, reject_ignored
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.relay.relay import Relay
from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.transport import UpstreamResponse
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.events import Usage
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.rerank import RankedDocument, RerankInput, RerankOutput
from qproxy.wire.rerank.upstream import parse_response, upstream_request
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import PromptSize

PARALLEL_BATCHES = 8
DOCUMENTS = 500
"""Documents of one request to a model whose limit is not known."""


def size_of(request: RerankInput) -> PromptSize:
    """Return the size of a rerank: the query is read with every document."""
    documents = [document.value for document in request.documents if document.kind == "text"]
    query = text_bytes(request.query.value) * len(request.documents)
    return PromptSize(query + sum(map(text_bytes, documents)))


async def rerank(relay: Relay, request: RerankInput, record: RelayRecord) -> tuple[list[RankedDocument], int]:
    """Return every document's rank, and the tokens used. Raises the first QproxyError of a batch."""
    spec = relay.policy.catalog.get(relay.names.route(request.model).served)
    reject_ignored(relay, record, tuple(sorted(request.params)) if spec.vendor == "qwen" else ())
    size = (spec.limits or {}).get("documents", DOCUMENTS)
    batches = request.batches(size)
    ranked: list[RankedDocument] = []
    tokens = 0

    async def send(number: int) -> None:
        nonlocal tokens
        batch, part = batches[number], RelayRecord()
        try:
            output = await _send(relay, batch, part)
        finally:
            merge_records(record, part)
        tokens += output.tokens
        ranked.extend(RankedDocument(item.index + number * size, item.score) for item in output.ranked)

    record.model = request.model
    await run_bounded(send, len(batches), PARALLEL_BATCHES)
    record.usage = Usage(tokens, 0, tokens) if tokens else None
    return ranked, tokens


async def _send(relay: Relay, batch: RerankInput, record: RelayRecord) -> RerankOutput:
    """Return the ranks of one batch."""
    estimate = relay.token_ratios.estimate(relay.names.route(batch.model).served, size_of(batch))

    def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
        return upstream_request(batch, target)

    async def read(response: UpstreamResponse, account: Account) -> RerankOutput:
        return parse_response(await read_json(response, account), len(batch.documents))

    async with AsyncExitStack() as stack:
        output = await exchange(
            relay, record, stack, model=batch.model, task="rerank", build=build, read=read
        )
    usage = Usage(output.tokens, 0, output.tokens) if output.tokens else None
    record.responses.append(ResponseTokens(estimate, usage=usage))
    record.units["documents"] = len(batch.documents)
    return output
