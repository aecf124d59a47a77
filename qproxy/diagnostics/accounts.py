"""One account: whether it is signed in, whether its server is there, and whether chat, tools and embeddings work.

It is asked through the server's own relay, with its rules and repairs, so what is found is what a client would get; but
as the only account, so that no other one can answer for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from qproxy.accounts import Account, Accounts
from qproxy.accounts.report import moment
from qproxy.auth import Credential, OAuthSource
from qproxy.auth.blocking import Run, off_loop
from qproxy.auth.credential_file import StorageError
from qproxy.config.accounts import AccountConfig, key_warnings
from qproxy.diagnostics import network as way
from qproxy.diagnostics import probes as questions
from qproxy.diagnostics.http_probe import Got, asked
from qproxy.diagnostics.probes import PARSER
from qproxy.diagnostics.report import Finding, State, stuck
from qproxy.relay import embeddings as embedding
from qproxy.relay.relay import Relay
from qproxy.telemetry import Story
from qproxy.wire.conformance import bodies as plain
from qproxy.wire.conformance import breaches
from qproxy.wire.conformance.chat import calls
from qproxy.wire.dialects import error_mapping as errors
from qproxy.wire.dialects import model_catalog as catalogue
from qproxy.wire.embeddings import Texts
from qproxy.wire.errors import Limit, QproxyError, Retry, UpstreamError
from qproxy.wire.events import Event, Failed, Finish, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.model_aliases import is_pattern


@dataclass(slots=True)
class Patient:
    """An account under examination."""

    entry: AccountConfig
    """Resolved."""
    account: Account
    relay: Relay
    default_model: str | None = None
    wall: Callable[[], float] = time.time
    run: Run = off_loop
    """Reads files."""

    @property
    def area(self) -> str:
        return f"account {self.entry.name}"

    @property
    def login(self) -> str:
        """How to sign in to it."""
        return f"qproxy login --account {self.entry.name}"

    def finding(self, name: str, state: State, words: str, advice: str = "", tokens: int = 0) -> Finding:
        return Finding(self.area, name, state, words, advice, tokens)

    async def offline(self) -> list[Finding]:
        """What can be said without asking anybody."""
        return [*self._key(), *(await self._tokens())]

    async def online(self, found: list[Finding]) -> None:
        """What its server says to a few small questions, added to `found`."""
        found += self._key()
        async with trio.open_nursery() as nursery:
            if isinstance(self.account.source, OAuthSource):
                nursery.start_soon(self.account.source.keep)
            await self._examine(found)
            nursery.cancel_scope.cancel()

    async def _examine(self, found: list[Finding]) -> None:
        try:
            credential = await self.account.source.credential()
        except QproxyError as error:
            found.append(self.finding("signed in", "failed", error.message, self.login))
            return
        found += self._signed_in()
        found += await way.to(credential.base_url, self.relay.transport, self.area, self.wall())
        if stuck(found):
            return
        names = await self._models(credential, found)
        model = self._model(names)
        if model is None:
            found.append(self.finding("chat", "skipped", "no model to ask is known", "set default_model"))
        else:
            for stream in (False, True):
                found.append(await self._chat(model, stream))
                if stuck(found):
                    break
            else:
                found.append(await self._errand(model, stream=False))
                found.append(await self._errand(model, stream=True))
        found.append(await self._embeddings(names))

    def _key(self) -> list[Finding]:
        warnings = key_warnings(self.entry)
        prefix = f"account {self.entry.name!r}: "
        name = "plan" if self.entry.kind == "oauth" else "key"
        found = [self.finding(name, "warning", words.removeprefix(prefix)) for words in warnings]
        if not found and self.entry.key:
            found = [self.finding("key", "ok", "looks like one for its server")]
        return found

    async def _tokens(self) -> list[Finding]:
        """What the file of a signed-in account says."""
        source = self.account.source
        if not isinstance(source, OAuthSource):
            return []
        try:
            tokens = await self.run(source.keeper.file.read)
        except StorageError as error:
            return [self.finding("signed in", "failed", str(error), self.login)]
        if tokens is None:
            return [self.finding("signed in", "failed", "nobody is signed in", self.login)]
        ended = tokens.left(self.wall()) <= 0
        until = f"the token {'ended' if ended else 'is good until'} {moment(tokens.expiry_date / 1000, self.wall())}"
        if ended and not tokens.refresh_token:
            return [self.finding("signed in", "failed", until, self.login)]
        return [self.finding("signed in", "ok", f"{until}{', and will be renewed' if ended else ''}")]

    def _signed_in(self) -> list[Finding]:
        if not isinstance(self.account.source, OAuthSource):
            return []
        status = self.account.source.status()
        words = f"{status.words} The token is good until {moment(status.expires_at or 0.0, self.wall())}"
        return [self.finding("signed in", "ok" if status.state == "ready" else "warning", words)]

    async def _models(self, credential: Credential, found: list[Finding]) -> list[str]:
        """The names that its server lists."""
        try:
            got = await self._list(credential)
            if got.status == 401 and await self.account.source.refused(credential):
                got = await self._list(await self.account.source.credential())
        except UpstreamError as error:
            found.append(self.finding("models", "warning", error.message))
            return []
        found.append(way.clock(got.header(b"date"), self.area, self.wall()))
        if got.status != 200:
            refusal = errors.upstream_error(got.status, got.headers, got.body, plan=self.account.plan)
            found.append(self._no_list(refusal))
            return []
        names, wrong = plain.models(got.json())
        offered = [name for name in names if self.account.offers(name)]
        words = wrong[0].words if wrong else f"{len(names)} are listed, {len(offered)} of them offered here"
        found.append(self.finding("models", "warning" if wrong else "ok", words))
        return names

    async def _list(self, credential: Credential) -> Got:
        target = self.account.target(credential, "")
        request = HTTPRequest("GET", f"{target.base_url}/models", target.authorised())
        return await asked(self.relay.transport, request)

    def _no_list(self, error: UpstreamError) -> Finding:
        if error.retry is Retry.REFRESH:
            return self.finding("models", "failed", error.message, self.advice(error))
        advice = "some servers have no list: name models, or default_model"
        return self.finding("models", "warning", error.message, advice)

    def _model(self, names: Sequence[str]) -> str | None:
        """Whom to ask: the operator's default, else the cheapest that is offered."""
        default = self.relay.policy.aliases.resolve(self.default_model) if self.default_model else None
        if default and self.account.offers(default):
            return default
        own = [pattern for pattern in self.account.models if not is_pattern(pattern)]
        known = [*own, *names]
        if not known and self.account.family == "dashscope":
            known = list(catalogue.names())
        return questions.chat_model(name for name in known if self.account.offers(name))

    async def _chat(self, model: str, stream: bool) -> Finding:
        name = f"chat, {'streamed' if stream else 'whole'}"
        turn = self._turn(model, questions.GREETING, questions.GREETING_TOKENS, stream)
        story, began = Story(), trio.current_time()
        events = await self._ask(turn, story)
        if (failure := self._failure(name, events, story)) is not None:
            return failure
        seconds = trio.current_time() - began
        return self.finding(name, "ok", f"{model} answered in {seconds:.1f} s", tokens=_cost(story))

    async def _errand(self, model: str, *, stream: bool) -> Finding:
        name = f"tool call, {'streamed' if stream else 'whole'}"
        turn = self._turn(model, questions.ERRAND, questions.ERRAND_TOKENS, stream, questions.TOOLS)
        story = Story()
        events = await self._ask(turn, story)
        if (failure := self._failure(name, events, story)) is not None:
            return failure
        made = calls(events)
        trouble = questions.errand_trouble(made, [e.reason for e in events if isinstance(e, Finish)])
        if trouble is not None:
            advice = "" if self.account.family == "dashscope" or made else PARSER
            return self.finding(name, "warning", f"{model}: {trouble}", advice, _cost(story))
        repairs = ", ".join(sorted(story.repairs))
        mended = f" (mended: {repairs})" if repairs else ""
        return self.finding(name, "ok", f"{made[0][0]}({made[0][1]:.60}){mended}", tokens=_cost(story))

    async def _embeddings(self, names: Sequence[str]) -> Finding:
        """Vectors of two texts, where the account can embed."""
        fallback = catalogue.EMBEDDING[0] if self.account.family == "dashscope" and not names else None
        model = questions.embedding_model(names) or fallback
        if self.account.embedding_batch < 1:
            return self.finding("embeddings", "skipped", "this plan cannot embed")
        if model is None or not self.account.offers(model, "embedding"):
            return self.finding("embeddings", "skipped", "no model that embeds is offered")
        story = Story()
        try:
            found = await embedding.embed(self.relay, Texts(model, questions.TEXTS), story)
        except QproxyError as error:
            return self.finding("embeddings", "failed", f"{model}: {error.message}", self.advice(error))
        return self.finding(
            "embeddings", "ok", f"{model} gave {len(found.vectors)} vectors", tokens=_cost(story)
        )

    def _turn(
        self, model: str, messages: object, tokens: int, stream: bool, tools: Sequence[object] = ()
    ) -> Turn:
        assert isinstance(messages, list)
        return Turn(
            "chatcmpl-check",
            int(self.wall()),
            model,
            messages,
            tools=tools,
            params={"max_tokens": tokens},
            stream=stream,
        )

    async def _ask(self, turn: Turn, story: Story) -> list[Event]:
        """The events of an answer; a failure is the last of them."""
        async with AsyncExitStack() as stack:
            try:
                answer = await self.relay.open(turn, story, stack)
                events: list[Event] = []
                while piece := await answer.receive():
                    events += piece
            except QproxyError as error:
                return [Failed(error)]
        return events

    def _failure(self, name: str, events: Sequence[Event], story: Story) -> Finding | None:
        last = events[-1] if events else None
        if isinstance(last, Failed):
            words = f"{story.served_model or story.model}: {last.error.message}"
            return self.finding(name, "failed", words, self.advice(last.error), _cost(story))
        broken = next(breaches(events), None)
        if broken is None:
            return None
        return self.finding(
            name, "failed", broken.words, "this is a mistake of qproxy: please report it", _cost(story)
        )

    def advice(self, error: QproxyError) -> str:
        """What to do about an error of this account's server."""
        limit = getattr(error, "limit", Limit.NONE)
        if error.retry is Retry.REFRESH and self.entry.kind == "oauth":
            return self.login
        if error.retry is Retry.REFRESH:
            return "see that the key is whole, not revoked, and of the server's region and plan"
        return {
            Limit.QUOTA: "pay for more, or wait until the quota is reset",
            Limit.FREE: "allow the model to cost money in Model Studio's console, or name another one",
            Limit.MINUTE: "wait a minute and check again",
            Limit.MODEL: "set default_model, or the account's models, to what this account may use",
            Limit.ACCESS: "see in the console what this key or account may be used for",
        }.get(limit, "")


def _cost(story: Story) -> int:
    return story.usage.total_tokens if story.usage is not None else 0


def patient(entry: AccountConfig, account: Account, relay: Relay, default_model: str | None) -> Patient:
    """An account by itself: its own line, the server's transport and policy."""
    alone = Relay(Accounts([account]), relay.transport, relay.policy)
    return Patient(entry, account, alone, default_model)
