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
from qproxy.accounts import Account, Accounts
from qproxy.auth import Credential
from qproxy.relay.event_stream import MAX_WHOLE_BODY, SLICE, Answer, Pulled, apart
from qproxy.relay.multi_prompt import Series
from qproxy.relay.retry import Tries
from qproxy.telemetry import Story
from qproxy.transport import Response, Transport
from qproxy.wire import json_codec as jsontext
from qproxy.wire import sse
from qproxy.wire import tool_adapter as adaptation
from qproxy.wire import tool_calls as toolcalls
from qproxy.wire.dialects import (
    DIALECTS,
    Dialect,
    Target,
)
from qproxy.wire.dialects import (
    error_mapping as errors,
)
from qproxy.wire.dialects import (
    prompt_tools as prompt,
)
from qproxy.wire.dialects import (
    request_rules as rules,
)
from qproxy.wire.errors import Retry, UpstreamError
from qproxy.wire.events import JSON, Turn
from qproxy.wire.model_aliases import Aliases
from qproxy.wire.pipeline import Chain

AFFINITY_CHARACTERS = 2000
MAX_ERROR_BODY = 64 * 1024
STREAM_TYPES = ("text/event-stream", "application/x-ndjson", "application/stream+json")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided about how requests are relayed."""

    aliases: Aliases = Aliases()
    switches: Mapping[str, bool] = field(default_factory=dict)
    """Rules switched on or off by name."""
    strict_params: bool = False
    forced_tools: str = "thinking-off"
    stream_upstream: str = "always"
    embedding_requests: int = 8
    """The most batches that one request for embeddings has under way at once."""
    profile: Callable[[str], toolcalls.Profile] = lambda model: toolcalls.Profile()


class Relay:
    """Takes turns to accounts and brings back answers."""

    def __init__(self, accounts: Accounts, transport: Transport, policy: Policy = Policy()) -> None:
        self.accounts = accounts
        self.transport = transport
        self.policy = policy

    async def open(self, turn: Turn, story: Story, stack: AsyncExitStack) -> Pulled:
        """The answer to a turn, begun.  What it holds open is closed by `stack`.

        Raises QproxyError when no account could begin one.
        """
        if turn.completion is None or len(turn.completion.prompts) == 1:
            return await self._open(turn, story, stack)
        series = Series(turn, story, stack, self._open)
        await series.begin(stream=turn.stream)
        return series

    async def _open(self, turn: Turn, story: Story, stack: AsyncExitStack) -> Answer:
        """The answer to a turn of one conversation or prompt."""
        story.model = turn.model
        model = self.policy.aliases.resolve(turn.model)
        learned = False

        prompt_tokens, most = estimate(turn) if self.accounts.counts_tokens else (0, 0)
        begun: list[Answer] = []

        async def begin(account: Account, credential: Credential, attempt: AsyncExitStack) -> Answer:
            begun[:] = [await self._begin(turn, model, account, credential, story, attempt)]
            return begun[0]

        def used() -> int:
            return begun[0].tokens(prompt_tokens) if begun else 0

        def mend(error: UpstreamError) -> bool:
            nonlocal turn, learned
            mended = None if learned else rules.learn_from(error, turn)
            learned, turn = learned or mended is not None, mended or turn
            return mended is not None

        alone = len(self.accounts.accounts) == 1  # then there is nothing to choose
        tries = Tries(self.accounts, model, story, affinity="" if alone else conversation(turn))
        return await tries.until_begun(begin, stack, mend=mend, tokens=prompt_tokens + most, used=used)

    async def _begin(
        self,
        turn: Turn,
        model: str,
        account: Account,
        credential: Credential,
        story: Story,
        stack: AsyncExitStack,
    ) -> Answer:
        """One try with one account: its answer once the first event is there."""
        target = account.target(credential, model, story.carried)
        dialect = DIALECTS[account.dialect]
        turn, undo = adaptation.adapt(turn, names=account.family == "dashscope")
        sent = self._adapted(turn, target, account, story)
        written = prompt.written(sent, account.render_tools, model) if account.render_tools else sent
        story.account, story.served_model = account.name, model
        before = trio.current_time()
        try:
            response = await self.transport.send(dialect.request(written, target))
        finally:
            story.upstream_seconds += trio.current_time() - before
        await stack.enter_async_context(response)
        story.upstream_status = response.status
        story.upstream_request_id = response.header(b"x-request-id")
        if response.status != 200:
            body = await response.read(MAX_ERROR_BODY)
            raise errors.upstream_error(response.status, response.headers, body, plan=account.plan)
        _check_encoding(response)
        answered = sent.without_prompt() if sent.stream else sent
        back = toolcalls.open(answered, self.policy.profile(model), story.repairs)
        if undo is not None:
            back = Chain(back, undo)
        content_type = (response.header(b"content-type") or "").partition(";")[0].strip().lower()
        if content_type in STREAM_TYPES or (not content_type and sent.stream):
            front = Chain(sse.Decoder(), dialect.decoder(target))
            answer = Answer(story, source=response, front=front, back=back)
        else:
            answer = Answer(story, source=None, front=Chain(), back=back)
            body = await response.read(MAX_WHOLE_BODY)
            read = partial(_read_whole, answer, body, response.status, dialect, target)
            await apart(read) if len(body) > SLICE else read()
        await answer.started()
        return answer

    def _adapted(self, turn: Turn, target: Target, account: Account, story: Story) -> Turn:
        """The turn as this account's server wants it."""
        applied = rules.apply(
            turn,
            model=target.model,
            family=target.family,
            switches={**self.policy.switches, **account.rules},
            strict_params=self.policy.strict_params,
            forced_tools=self.policy.forced_tools,
        )
        story.rules, story.notes = applied.applied, applied.notes
        story.ignored = (*turn.ignored, *applied.ignored)
        if self.policy.stream_upstream == "always" and target.family == "dashscope":
            return replace(applied.turn, stream=True)
        return applied.turn


def _read_whole(answer: Answer, body: bytes, status: int, dialect: Dialect, target: Target) -> None:
    """Give an answer the events of a body that is there."""
    try:
        data = jsontext.loads(body)
    except ValueError:
        if not sse.looks_like_events(body):
            raise errors.unreadable(status, body) from None
        stages = Chain(sse.Decoder(), dialect.decoder(target))  # a stream under a wrong name
        answer.feed([*stages.feed(body), *stages.close()], last=True)
    else:
        answer.feed(dialect.whole(data, target), last=True)


def _check_encoding(response: Response) -> None:
    """A compressed answer, though none was asked for, cannot be read; say so rather than find nothing in it."""
    encoding = (response.header(b"content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", ""):
        message = f"The model's server compressed its answer ({encoding[:20]}) although it was asked not to."
        raise UpstreamError(message, code="upstream_invalid_response", retry=Retry.ELSEWHERE)


def conversation(turn: Turn) -> str:
    """A key that all turns of one conversation share: its first messages, up to the first of the user; "" for none."""
    if not turn.messages:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for message in turn.messages[:4]:
        digest.update(_beginning(message.get("content")).encode("utf-8", "surrogatepass"))
        if message.get("role") == "user":
            break
    return digest.hexdigest()


def _beginning(content: JSON) -> str:
    """The first characters of a message, of each of its parts; pictures in it may be megabytes."""
    if isinstance(content, list):
        return "".join(
            _beginning(value) for part in content[:4] if isinstance(part, dict) for value in part.values()
        )
    if isinstance(content, dict):
        return "".join(map(_beginning, content.values()))
    return content[:AFFINITY_CHARACTERS] if isinstance(content, str) else str(content)[:AFFINITY_CHARACTERS]
