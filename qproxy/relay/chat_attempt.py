"""One attempt of a turn with one account: adapt, send, decode, until the first event of the response.

Here `wire` meets Trio. `retry` chooses the account and decides whether another attempt follows an error.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import trio

from qproxy.access.rate_limits import output_limit
from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.relay.affinity import prompt_key
from qproxy.relay.event_stream import MAX_WHOLE_BODY, SLICE, UpstreamEventStream, apart
from qproxy.relay.flex import (
    DEFAULT,
    FLEX,
    can_serve_flex,
    is_client_fault,
    unavailable_error,
    wants_flex,
    without_tier,
)
from qproxy.relay.policy import RelayPolicy
from qproxy.relay.prompt_caching import apply_policy
from qproxy.relay.reasoning_store import ReasoningKeeper, ReasoningStore
from qproxy.relay.retry import Attempt
from qproxy.relay.rule_learning import RuleLearning
from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.transport import UpstreamResponse, UpstreamTransport
from qproxy.wire import json_codec, sse, tool_adapter, tool_calls
from qproxy.wire.context_overflow import ContextOverflow
from qproxy.wire.dialects import (
    DIALECTS,
    Dialect,
    UpstreamTarget,
    amendments,
    error_mapping,
    prompt_tools,
    rejections,
)
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import ExtraFields, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.pipeline import Pipeline
from qproxy.wire.prompt_cache import CachePlan, CachePlanner
from qproxy.wire.token_estimate import prompt_size
from qproxy.wire.token_ratios import TokenEstimate, TokenRatios

MAX_ERROR_BODY = 64 * 1024
STREAM_TYPES = ("text/event-stream", "application/x-ndjson", "application/stream+json")


class ChatAttempt(Attempt[UpstreamEventStream]):
    """The attempts of one conversation or prompt; `RetryLoop` starts each."""

    def __init__(
        self,
        turn: Turn,
        model: str,
        record: RelayRecord,
        transport: UpstreamTransport,
        policy: RelayPolicy,
        reasoning: ReasoningStore | None,
        token_ratios: TokenRatios,
        cache_planner: CachePlanner,
        *,
        counts_tokens: bool,
    ) -> None:
        """With `counts_tokens` an account limits them, and an attempt reserves what it may use."""
        self._names_tier = "service_tier" in turn.params
        self._wants_flex = self._names_tier and wants_flex(turn)
        self._turn = without_tier(turn) if self._wants_flex else turn
        self._token_ratios = token_ratios
        self._cache_planner = cache_planner
        self._cache_plan: CachePlan | None = None
        self._plans_cache = policy.prompt_cache is not None
        self._model = model
        self._record = record
        self._transport = transport
        self._policy = policy
        self._reasoning = reasoning if turn.store and turn.completion is None else None
        self._restored = False
        """Whether ciphertext was put back that the client did not send."""
        self._restores = True
        self._estimate = self._estimate_prompt() if counts_tokens else turn.token_estimate
        self.tokens = self._estimate.prompt + output_limit(turn) if counts_tokens else 0
        self._wants_sources = policy.search_sources and _wants_sources(turn)
        self._amended = False
        self._notes: tuple[str, ...] = ()
        """What was amended, for the client."""
        self._rules = RuleLearning(policy)
        self._used: ResponseTokens | None = None
        """The tokens of the response that has started, or of the request that was cancelled before it did."""

    def __repr__(self) -> str:
        return f"<ChatAttempt at {self._model}{'' if self._used is None else ', started'}>"

    async def start(
        self, account: Account, credential: Credential, stack: AsyncExitStack
    ) -> UpstreamEventStream:
        """Send the turn, and return its response once the first event is there."""
        tokens = ResponseTokens(self._estimate)
        try:
            start = self._start_tier if self._names_tier else self._start
            stream = await start(account, credential, stack, tokens)
        except trio.Cancelled:  # the upstream has the prompt, and may have generated most of its response
            self._note_tokens(tokens)
            raise
        except UpstreamError as error:
            if error.code == error_mapping.CONTEXT_EXCEEDED:
                spec = self._policy.catalog.get(self._model)
                error.overflow = (error.overflow or ContextOverflow()).completed(
                    limit=spec.context if spec.knows("context") else None,
                    prompt=self._estimate_prompt().prompt,
                )
            raise
        self._note_tokens(tokens)
        return stream

    async def _start_tier(
        self, account: Account, credential: Credential, stack: AsyncExitStack, tokens: ResponseTokens
    ) -> UpstreamEventStream:
        """Start the response in the tier that the client requests, or else in the usual one."""
        spec = self._policy.catalog.get(self._model)
        if not self._wants_flex or not can_serve_flex(account, spec, self._turn):
            stream = await self._start(account, credential, stack, tokens)
            if self._wants_flex or (self._names_tier and account.provider_family == "dashscope"):
                stream.prepend(ExtraFields({"service_tier": DEFAULT}, "chunk"))
            return stream
        policy, cause = self._policy.flex, "it took too long"
        opened = await stack.enter_async_context(AsyncExitStack())
        try:
            with trio.move_on_after(policy.promotion_after or math.inf):
                stream = await self._start(account, credential, opened, tokens, flex=True)
                self._record.service_tier = FLEX
                stream.prepend(ExtraFields({"service_tier": FLEX}, "chunk"))
                return stream
        except UpstreamError as error:
            if is_client_fault(error):
                raise
            cause = error.message
        await opened.aclose()
        if not policy.promotion_after:
            raise unavailable_error(cause)
        stream = await self._start(account, credential, stack, tokens)
        stream.prepend(ExtraFields({"service_tier": DEFAULT}, "chunk"))
        return stream

    def _note_tokens(self, tokens: ResponseTokens) -> None:
        self._used = tokens
        self._record.responses.append(tokens)

    def _estimate_prompt(self) -> TokenEstimate:
        return self._token_ratios.estimate(self._model, prompt_size(self._turn))

    async def _start(
        self,
        account: Account,
        credential: Credential,
        stack: AsyncExitStack,
        tokens: ResponseTokens,
        *,
        flex: bool = False,
    ) -> UpstreamEventStream:
        target = account.target(credential, self._model, self._record.trace_headers)
        if flex:
            target = replace(target, base_url=account.flex_url, native=False)
        elif self._wants_sources and target.has_native_api and target.spec.search != []:
            target = replace(target, native=True)
        name = "dashscope" if target.native else "compatible" if flex else account.dialect
        dialect = DIALECTS[name]
        keeper = self._keeper(account, target)
        turn = self._turn
        if keeper is not None and self._restores:
            turn = replace(turn, messages=await keeper.restore(turn.messages))
            self._restored = turn.messages is not self._turn.messages
        turn, restorer = tool_adapter.adapt_tools(turn, names=account.provider_family == "dashscope")
        turn = self._apply_rules(turn, target, account)
        if flex:  # the batch host answers at once, and has no cache
            turn = replace(turn, stream=False)
        elif self._plans_cache:
            turn = self._plan_cache(turn, target, account)
        rendered = (
            prompt_tools.render_tools(turn, account.render_tools, target.spec)
            if account.render_tools
            else turn
        )
        self._record.account, self._record.served_model = account.name, self._model
        request = dialect.request(rendered, target)
        if flex:
            request = replace(request, first_byte_timeout=(self._policy.flex.timeout, "flex_timeout"))
        response = await self._send(request, stack)
        await check_status(response, account, self._record)
        _check_content_encoding(response)
        normalizer = tool_calls.build_pipeline(
            turn.without_prompt() if turn.stream else turn,
            self._policy.profile(self._model),
            self._record.repairs,
        )
        if restorer is not None:
            normalizer = Pipeline(normalizer, restorer)
        recorder = None if keeper is None else keeper.recorder(self._turn)
        if recorder is not None:
            normalizer = Pipeline(normalizer, recorder)
        stream = await self._decode(response, dialect, target, normalizer, tokens, streamed=turn.stream)
        if recorder is not None:
            stream.on_finished = recorder.save
        if self._cache_plan is not None:
            stream.on_finished = partial(self._learn_cache, self._cache_plan, tokens, stream.on_finished)
        await stream.wait_started()
        self._rules.record_accepted(account, self._model)
        # The lease holds this object for as long as the response lasts, and a prompt may be megabytes.
        del self._turn
        return stream

    def amend(self, error: UpstreamError) -> bool:
        """Amend the turn, once, by the parameter that the error rejects, or apply rules that it suggests."""
        if self._wants_sources and error.status in (400, 404):  # the compatible API may take it
            self._wants_sources = False
            return True
        if rejections.FORCED_TOOL in rejections.rules_after(error) and self._rules.try_rules(
            error, self._turn
        ):
            return True  # this one is remembered for the account
        if error.status == 400 and self._cache_plan is not None and "cache" in error.message:
            self._plans_cache, self._cache_plan = False, None
            return True
        policy = self._policy
        keep_thinking = policy.forced_tools == "auto" or policy.catalog.get(self._model).thinking == "only"
        amended = amendments.amend_after_error(error, self._turn, keep_thinking=keep_thinking)
        if self._restored and error.status == 400 and "encrypted_content" in error.message:
            self._restores, amended = False, amended or self._turn
        if amended is None or self._amended:
            return self._rules.try_rules(error, self._turn)
        self._notes = amendments.changes(self._turn, amended)
        self._amended, self._turn = True, amended
        return True

    def tokens_used(self) -> int:
        """Return the tokens of the response so far, none if the upstream rejected the request."""
        return 0 if self._used is None else self._used.prompt + self._used.completion

    def _plan_cache(self, turn: Turn, target: UpstreamTarget, account: Account) -> Turn:
        """Return the turn with the breakpoints of the prompt cache that the settings want."""
        policy = self._policy.prompt_cache
        assert policy is not None
        ignored = turn.ignored
        turn, self._cache_plan = apply_policy(
            policy, self._cache_planner, self._token_ratios, turn, target, account
        )
        self._record.ignored = (*self._record.ignored, *turn.ignored[len(ignored) :])
        return turn

    async def _learn_cache(
        self, plan: CachePlan, tokens: ResponseTokens, then: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Learn what the caches did for a finished response."""
        if tokens.usage is not None:
            self._cache_planner.learn(plan, tokens.usage, trio.current_time())
        if then is not None:
            await then()

    def _keeper(self, account: Account, target: UpstreamTarget) -> ReasoningKeeper | None:
        """Return the keeper of the model's ciphertext, None for a model without one."""
        if self._reasoning is None or not target.spec.encrypted_thinking:
            return None
        conversation = prompt_key(self._turn)
        return ReasoningKeeper(self._reasoning, self._record.client, account.name, conversation)

    def _apply_rules(self, turn: Turn, target: UpstreamTarget, account: Account) -> Turn:
        """Return the turn as this account's server expects it."""
        applied = self._rules.apply(turn, target, account)
        self._record.rules = applied.applied
        self._record.rule_notes = (*self._record.model_notes, *applied.notes, *self._notes)
        self._record.ignored = (*turn.ignored, *applied.ignored)
        must_stream = self._policy.stream_upstream == "always" or target.spec.stream_only == "always"
        must_stream = must_stream or (target.native and bool(applied.turn.params.get("enable_search")))
        if must_stream and target.family == "dashscope":
            return replace(applied.turn, stream=True)
        return applied.turn

    async def _send(self, request: HTTPRequest, stack: AsyncExitStack) -> UpstreamResponse:
        before = trio.current_time()
        try:
            response = await self._transport.send(request)
        finally:
            self._record.upstream_seconds += trio.current_time() - before
        await stack.enter_async_context(response)
        return response

    async def _decode(
        self,
        response: UpstreamResponse,
        dialect: Dialect,
        target: UpstreamTarget,
        normalizer: Pipeline,
        tokens: ResponseTokens,
        *,
        streamed: bool,
    ) -> UpstreamEventStream:
        """Return the events of a response, decoded by its content type rather than by the request."""
        content_type = (response.header(b"content-type") or "").partition(";")[0].strip().lower()
        if content_type in STREAM_TYPES or (not content_type and streamed):
            decoder = Pipeline(sse.Decoder(), dialect.decoder(target))
            return UpstreamEventStream(self._record, tokens, source=response, front=decoder, back=normalizer)
        stream = UpstreamEventStream(self._record, tokens, source=None, front=Pipeline(), back=normalizer)
        body = await response.read(MAX_WHOLE_BODY)
        feed = partial(_feed_whole, stream, body, response.status, dialect, target)
        await apart(feed) if len(body) > SLICE else feed()
        return stream


def _wants_sources(turn: Turn) -> bool:
    """Return whether a client requests a search whose sources it can be shown, and nothing else than text."""
    return turn.web_search is not None and "web_search_options" in turn.params and "audio" not in turn.params


async def check_status(response: UpstreamResponse, account: Account, record: RelayRecord) -> None:
    """Record a response's status and id. Raises the error that a status other than 200 means."""
    record.upstream_status = response.status
    record.upstream_request_id = response.header(b"x-request-id")
    if response.status != 200:
        body = await response.read(MAX_ERROR_BODY)
        raise error_mapping.error_from_response(response.status, response.headers, body, plan=account.plan)


def _feed_whole(
    stream: UpstreamEventStream, body: bytes, status: int, dialect: Dialect, target: UpstreamTarget
) -> None:
    """Feed a stream the events of a body that has arrived whole."""
    try:
        data = json_codec.loads(body)
    except ValueError:
        if not sse.looks_like_events(body):
            raise error_mapping.invalid_response_error(status, body) from None
        stages = Pipeline(sse.Decoder(), dialect.decoder(target))  # a stream with a wrong content type
        stream.feed([*stages.feed(body), *stages.close()], last=True)
    else:
        stream.feed(dialect.response(data, target), last=True)


def _check_content_encoding(response: UpstreamResponse) -> None:
    """Raise UpstreamError for a compressed response, which was not requested and cannot be read."""
    encoding = (response.header(b"content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", ""):
        message = f"The upstream compressed its response ({encoding[:20]}) despite accept-encoding: identity."
        raise UpstreamError(message, code="upstream_invalid_response", retry=RetryHint.OTHER_ACCOUNT)
