"""One request, start to end: lease an account, send, decode, and try elsewhere when that can help.

Here `wire` meets Trio.  `Relay.open` returns once the first meaningful event of the answer is there (so that an early
error keeps its true status); from then on the answer is pulled (`answer`).  All that was opened is entered on the exit
stack of the request, which closes it whatever happens.

Which account is asked, and whether another try follows an error, is `trying`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from qproxy.access.rate_limits import estimate
from qproxy.accounts import Account, AccountPool
from qproxy.auth import Credential
from qproxy.relay.event_stream import MAX_WHOLE_BODY, SLICE, EventStream, UpstreamEventStream, apart
from qproxy.relay.multi_prompt import MultiPromptStream
from qproxy.relay.retry import RetryLoop
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse, UpstreamTransport
from qproxy.wire import json_codec, sse, tool_adapter, tool_calls
from qproxy.wire.dialects import (
    DIALECTS,
    Dialect,
    UpstreamTarget,
    error_mapping,
    prompt_tools,
    request_rules,
)
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import JSON, Turn
from qproxy.wire.model_aliases import Aliases
from qproxy.wire.pipeline import Pipeline

AFFINITY_CHARACTERS = 2000
MAX_ERROR_BODY = 64 * 1024
STREAM_TYPES = ("text/event-stream", "application/x-ndjson", "application/stream+json")


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """What the operator decided about how requests are relayed."""

    aliases: Aliases = Aliases()
    rule_switches: Mapping[str, bool] = field(default_factory=dict)
    """Rules switched on or off by name."""
    strict_params: bool = False
    forced_tools: str = "thinking-off"
    stream_upstream: str = "always"
    embedding_requests: int = 8
    """The most batches that one request for embeddings has under way at once."""
    profile: Callable[[str], tool_calls.ModelProfile] = lambda model: tool_calls.ModelProfile()


class Relay:
    """Takes turns to accounts and brings back answers."""

    def __init__(
        self, accounts: AccountPool, transport: UpstreamTransport, policy: RelayPolicy = RelayPolicy()
    ) -> None:
        self.accounts = accounts
        self.transport = transport
        self.policy = policy

    async def open(self, turn: Turn, record: RelayRecord, stack: AsyncExitStack) -> EventStream:
        """The answer to a turn, begun.  What it holds open is closed by `stack`.

        Raises QproxyError when no account could begin one.
        """
        if turn.completion is None or len(turn.completion.prompts) == 1:
            return await self._open(turn, record, stack)
        series = MultiPromptStream(turn, record, stack, self._open)
        await series.start(stream=turn.stream)
        return series

    async def _open(self, turn: Turn, record: RelayRecord, stack: AsyncExitStack) -> UpstreamEventStream:
        """The answer to a turn of one conversation or prompt."""
        record.model = turn.model
        model = self.policy.aliases.resolve(turn.model)
        learned = False

        prompt_tokens, limit = estimate(turn) if self.accounts.counts_tokens else (0, 0)
        started: list[UpstreamEventStream] = []

        async def begin(
            account: Account, credential: Credential, attempt: AsyncExitStack
        ) -> UpstreamEventStream:
            started[:] = [await self._send(turn, model, account, credential, record, attempt)]
            return started[0]

        def used() -> int:
            return started[0].tokens_used(prompt_tokens) if started else 0

        def mend(error: UpstreamError) -> bool:
            nonlocal turn, learned
            mended = None if learned else request_rules.amend_after_error(error, turn)
            learned, turn = learned or mended is not None, mended or turn
            return mended is not None

        alone = len(self.accounts.accounts) == 1  # then there is nothing to choose
        attempts = RetryLoop(self.accounts, model, record, affinity="" if alone else affinity_key(turn))
        return await attempts.run(begin, stack, mend=mend, tokens=prompt_tokens + limit, used=used)

    async def _send(
        self,
        turn: Turn,
        model: str,
        account: Account,
        credential: Credential,
        record: RelayRecord,
        stack: AsyncExitStack,
    ) -> UpstreamEventStream:
        """One try with one account: its answer once the first event is there."""
        target = account.target(credential, model, record.trace_headers)
        dialect = DIALECTS[account.dialect]
        turn, restorer = tool_adapter.adapt_tools(turn, names=account.provider_family == "dashscope")
        sent = self._adapt(turn, target, account, record)
        written = (
            prompt_tools.render_tools(sent, account.render_tools, model) if account.render_tools else sent
        )
        record.account, record.served_model = account.name, model
        before = trio.current_time()
        try:
            response = await self.transport.send(dialect.request(written, target))
        finally:
            record.upstream_seconds += trio.current_time() - before
        await stack.enter_async_context(response)
        record.upstream_status = response.status
        record.upstream_request_id = response.header(b"x-request-id")
        if response.status != 200:
            body = await response.read(MAX_ERROR_BODY)
            raise error_mapping.error_from_response(
                response.status, response.headers, body, plan=account.plan
            )
        _check_content_encoding(response)
        answered = sent.without_prompt() if sent.stream else sent
        back = tool_calls.open(answered, self.policy.profile(model), record.repairs)
        if restorer is not None:
            back = Pipeline(back, restorer)
        content_type = (response.header(b"content-type") or "").partition(";")[0].strip().lower()
        if content_type in STREAM_TYPES or (not content_type and sent.stream):
            front = Pipeline(sse.Decoder(), dialect.decoder(target))
            answer = UpstreamEventStream(record, source=response, front=front, back=back)
        else:
            answer = UpstreamEventStream(record, source=None, front=Pipeline(), back=back)
            body = await response.read(MAX_WHOLE_BODY)
            read = partial(_read_whole, answer, body, response.status, dialect, target)
            await apart(read) if len(body) > SLICE else read()
        await answer.wait_started()
        return answer

    def _adapt(self, turn: Turn, target: UpstreamTarget, account: Account, record: RelayRecord) -> Turn:
        """The turn as this account's server wants it."""
        applied = request_rules.apply_rules(
            turn,
            model=target.model,
            family=target.family,
            switches={**self.policy.rule_switches, **account.rules},
            strict_params=self.policy.strict_params,
            forced_tools=self.policy.forced_tools,
        )
        record.rules, record.rule_notes = applied.applied, applied.notes
        record.ignored = (*turn.ignored, *applied.ignored)
        if self.policy.stream_upstream == "always" and target.family == "dashscope":
            return replace(applied.turn, stream=True)
        return applied.turn


def _read_whole(
    answer: UpstreamEventStream, body: bytes, status: int, dialect: Dialect, target: UpstreamTarget
) -> None:
    """Give an answer the events of a body that is there."""
    try:
        data = json_codec.loads(body)
    except ValueError:
        if not sse.looks_like_events(body):
            raise error_mapping.invalid_response_error(status, body) from None
        stages = Pipeline(sse.Decoder(), dialect.decoder(target))  # a stream under a wrong name
        answer.feed([*stages.feed(body), *stages.close()], last=True)
    else:
        answer.feed(dialect.response(data, target), last=True)


def _check_content_encoding(response: UpstreamResponse) -> None:
    """A compressed answer, though none was asked for, cannot be read; say so rather than find nothing in it."""
    encoding = (response.header(b"content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", ""):
        message = f"The model's server compressed its answer ({encoding[:20]}) although it was asked not to."
        raise UpstreamError(message, code="upstream_invalid_response", retry=RetryHint.OTHER_ACCOUNT)


def affinity_key(turn: Turn) -> str:
    """A key that all turns of one conversation share: its first messages, up to the first of the user; "" for none."""
    if not turn.messages:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for message in turn.messages[:4]:
        digest.update(_first_messages(message.get("content")).encode("utf-8", "surrogatepass"))
        if message.get("role") == "user":
            break
    return digest.hexdigest()


def _first_messages(content: JSON) -> str:
    """The first characters of a message, of each of its parts; pictures in it may be megabytes."""
    if isinstance(content, list):
        return "".join(
            _first_messages(value)
            for part in content[:4]
            if isinstance(part, dict)
            for value in part.values()
        )
    if isinstance(content, dict):
        return "".join(map(_first_messages, content.values()))
    return content[:AFFINITY_CHARACTERS] if isinstance(content, str) else str(content)[:AFFINITY_CHARACTERS]
