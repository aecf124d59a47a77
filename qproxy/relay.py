"""One request, start to end: lease an account, send, decode, and try elsewhere when that can help.

The only room where `wire` meets Trio.  The idea: an `Answer` is *pulled*.  `Relay.open` returns once the
first meaningful event is there (so that an early error keeps its true status), and each `Answer.receive`
reads once from the upstream and returns every event that became certain: no queue, no pump task, no nursery
and no cancel scope across a `yield`.  All that was opened is entered on the exit stack of the request, which
closes it whatever happens.

Which account is asked, and whether another try follows an error, is `trying`'s.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import trio

from qproxy.accounts import Account, Accounts
from qproxy.auth import Credential
from qproxy.meters import estimate
from qproxy.observe import Story
from qproxy.prompts import Pulled, Series
from qproxy.transport import Response, Transport
from qproxy.trying import Tries
from qproxy.wire import adaptation, jsontext, sse, toolcalls
from qproxy.wire.errors import Retry, UpstreamError
from qproxy.wire.events import JSON, Done, Event, Failed, Turn, Usage
from qproxy.wire.stages import Chain
from qproxy.wire.upstreams import DIALECTS, Dialect, Target, errors, prompt, rules

AFFINITY_CHARACTERS = 2000
MAX_ERROR_BODY = 64 * 1024
MAX_WHOLE_BODY = 64 * 1024 * 1024
STREAM_TYPES = ("text/event-stream", "application/x-ndjson", "application/stream+json")


def starts_answer(event: Event) -> bool:
    """Whether an event is part of an answer: after it has gone out, nothing is tried again."""
    return not isinstance(event, Usage | Done | Failed)


class Answer:
    """An answer under way: `receive()` until it returns nothing.

    A failure is the last event, a `Failed`; nothing is raised but cancellation.
    """

    def __init__(self, story: Story, *, source: Response | None, front: Chain, back: Chain) -> None:
        self._source = source
        self._front = front
        self._back = back
        self._story = story
        self._pending: list[Event] = []
        self._over = False
        self._bytes = 0
        self._usage: Usage | None = None
        self._pieces = 0

    def __repr__(self) -> str:
        return f"<Answer of {self._story.account} {'over' if self._over else 'under way'}>"

    def interrupt(self) -> None:
        """Make the `receive` that is waiting, if there is one, raise Quiet."""
        if self._source is not None:
            self._source.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Every event that became certain with one read of the upstream; empty at the end.

        Raises `transport.Quiet` at `until` (Trio's clock) when there is none yet: nothing is lost, ask again.
        """
        if self._pending:
            events, self._pending = self._pending, []
            return events
        while not self._over:
            events = await self._read(until)
            if events:
                return events
        return []

    def tokens(self, prompt: int) -> int:
        """How many it took: as the server says, else about so many as there are events, and the prompt's."""
        return self._usage.total_tokens if self._usage else prompt + self._pieces

    async def all(self) -> list[Event]:
        """The rest of the answer, up to a size that nobody's answer has."""
        events: list[Event] = []
        while piece := await self.receive():
            events.extend(piece)
            if self._bytes > MAX_WHOLE_BODY:
                message = f"The model's server sent an answer of more than {MAX_WHOLE_BODY} bytes."
                return [*events, Failed(UpstreamError(message, code="upstream_invalid_response"))]
        return events

    async def started(self) -> None:
        """Return when the first event of the answer is there; raise the error when it never comes."""
        events: list[Event] = []
        while not any(starts_answer(event) for event in events):
            piece = await self.receive()
            if not piece:
                raise self._empty()
            events += piece
            if isinstance(piece[-1], Failed) and not any(starts_answer(event) for event in events):
                error = piece[-1].error
                raise self._empty() if error.retry is Retry.ONCE else error  # once: the end is all that came
        self._pending = events

    def feed(self, events: Iterable[Event], *, last: bool = False) -> None:
        """Events that are there already: a whole answer."""
        self._pending = self._seen(self._back.feed_many(list(events)))
        if last and not self._over:
            self._pending += self._close()

    def _empty(self) -> UpstreamError:
        """An answer without an answer, and what it consisted of, for whoever looks for the cause."""
        came = f"{self._bytes} bytes without an event of an answer" if self._bytes else "an empty body"
        return UpstreamError(f"The model's server answered with status 200 and {came}.", retry=Retry.ONCE)

    async def _read(self, until: float) -> list[Event]:
        assert self._source is not None
        before = trio.current_time()
        try:
            data = await self._source.receive(until)
            self._bytes += len(data)
        except UpstreamError as error:
            last = [*self._front.close(), Failed(error)]
            self._over = True
            return self._seen(self._back.feed_many(last))
        finally:
            self._story.upstream_seconds += trio.current_time() - before
        if not data:
            return self._close()
        return self._seen(self._back.feed_many(self._front.feed(data)))

    def _close(self) -> list[Event]:
        self._over = True
        events = self._back.feed_many(self._front.close())
        return self._seen([*events, *self._back.close()])

    def _seen(self, events: Iterable[Event]) -> list[Event]:
        seen = []
        for event in events:
            seen.append(event)
            self._pieces += 1
            if isinstance(event, Usage):
                self._story.usage = self._usage = event
            elif isinstance(event, Failed):
                self._over = True
                break
        return seen


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided about how requests are relayed."""

    aliases: Mapping[str, str] = field(default_factory=dict)
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
        model = self.policy.aliases.get(turn.model, turn.model)
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

        tries = Tries(self.accounts, model, story, affinity=conversation(turn))
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
        back = toolcalls.open(sent, self.policy.profile(model), story.repairs)
        if undo is not None:
            back = Chain(back, undo)
        content_type = (response.header(b"content-type") or "").partition(";")[0].strip().lower()
        if content_type in STREAM_TYPES or (not content_type and sent.stream):
            front = Chain(sse.Decoder(), dialect.decoder(target))
            answer = Answer(story, source=response, front=front, back=back)
        else:
            answer = Answer(story, source=None, front=Chain(), back=back)
            answer.feed(await self._whole(response, dialect, target), last=True)
        await answer.started()
        return answer

    async def _whole(self, response: Response, dialect: Dialect, target: Target) -> list[Event]:
        body = await response.read(MAX_WHOLE_BODY)
        try:
            data = jsontext.loads(body)
        except ValueError:
            if not sse.looks_like_events(body):
                raise errors.unreadable(response.status, body) from None
            stages = Chain(sse.Decoder(), dialect.decoder(target))  # a stream under a wrong name
            return [*stages.feed(body), *stages.close()]
        return dialect.whole(data, target)

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
