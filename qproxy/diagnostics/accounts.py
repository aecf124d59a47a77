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

from qproxy.accounts import Account, AccountPool
from qproxy.accounts.report import format_time
from qproxy.auth import Credential, OAuthSource
from qproxy.auth.credential_store import StorageError
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, key_warnings
from qproxy.diagnostics import network, probes
from qproxy.diagnostics.http_probe import HttpReply, fetch
from qproxy.diagnostics.probes import PARSER
from qproxy.diagnostics.report import Finding, State, last_failed
from qproxy.relay import embeddings
from qproxy.relay.relay import Relay
from qproxy.telemetry import RelayRecord
from qproxy.wire.conformance import bodies, violations
from qproxy.wire.conformance.chat import check_calls
from qproxy.wire.dialects import error_mapping
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.errors import LimitKind, QproxyError, RetryHint, UpstreamError
from qproxy.wire.events import ChoiceFinished, Event, StreamFailed, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.model_aliases import is_pattern


@dataclass(slots=True)
class AccountCheck:
    """An account under examination."""

    entry: AccountConfig
    """Resolved."""
    account: Account
    relay: Relay
    default_model: str | None
    wall_clock: Callable[[], float] = time.time

    @property
    def area(self) -> str:
        return f"account {self.entry.name}"

    @property
    def login(self) -> str:
        """How to sign in to it."""
        return f"qproxy login --account {self.entry.name}"

    def finding(self, name: str, state: State, text: str, advice: str = "", tokens: int = 0) -> Finding:
        return Finding(self.area, name, state, text, advice, tokens)

    async def offline(self) -> list[Finding]:
        """What can be said without asking anybody."""
        return [*self._key(), *(await self._tokens())]

    async def online(self, found: list[Finding]) -> None:
        """What its server says to a few small questions, added to `found`."""
        found += self._key()
        async with trio.open_nursery() as nursery:
            if isinstance(self.account.source, OAuthSource):
                nursery.start_soon(self.account.source.run)
            await self._check_online(found)
            nursery.cancel_scope.cancel()

    async def _check_online(self, found: list[Finding]) -> None:
        try:
            credential = await self.account.source.credential()
        except QproxyError as error:
            found.append(self.finding("signed in", "failed", error.message, self.login))
            return
        found += self._login_finding()
        found += await network.check_route(
            credential.base_url, self.relay.transport, self.area, self.wall_clock()
        )
        if last_failed(found):
            return
        names = await self._models(credential, found)
        model = self._model(names)
        if model is None:
            found.append(self.finding("chat", "skipped", "no model to ask is known", "set default_model"))
        else:
            for stream in (False, True):
                found.append(await self._chat(model, stream))
                if last_failed(found):
                    break
            else:
                found.append(await self._tool_call(model, stream=False))
                found.append(await self._tool_call(model, stream=True))
        found.append(await self._embeddings(names))

    def _key(self) -> list[Finding]:
        warnings = key_warnings(self.entry)
        prefix = f"account {self.entry.name!r}: "
        name = "plan" if self.entry.kind == "oauth" else "key"
        found = [self.finding(name, "warning", warning.removeprefix(prefix)) for warning in warnings]
        if not found and self.entry.key:
            found = [self.finding("key", "ok", "looks like one for its server")]
        return found

    async def _tokens(self) -> list[Finding]:
        """What the file of a signed-in account says."""
        source = self.account.source
        if not isinstance(source, OAuthSource):
            return []
        try:
            tokens = await source.refresher.store.load()
        except StorageError as error:
            return [self.finding("signed in", "failed", str(error), self.login)]
        if tokens is None:
            return [self.finding("signed in", "failed", "nobody is signed in", self.login)]
        ended = tokens.seconds_left(self.wall_clock()) <= 0
        until = f"the token {'ended' if ended else 'is good until'} {format_time(tokens.expiry_date / 1000, self.wall_clock())}"
        if ended and not tokens.refresh_token:
            return [self.finding("signed in", "failed", until, self.login)]
        return [self.finding("signed in", "ok", f"{until}{', and will be renewed' if ended else ''}")]

    def _login_finding(self) -> list[Finding]:
        if not isinstance(self.account.source, OAuthSource):
            return []
        status = self.account.source.status()
        text = f"{status.message} The token is good until {format_time(status.expires_at or 0.0, self.wall_clock())}"
        return [self.finding("signed in", "ok" if status.state == "ready" else "warning", text)]

    async def _models(self, credential: Credential, found: list[Finding]) -> list[str]:
        """The names that its server lists."""
        try:
            got = await self._list(credential)
            if got.status == 401 and await self.account.source.report_rejected(credential):
                got = await self._list(await self.account.source.credential())
        except UpstreamError as error:
            found.append(self.finding("models", "warning", error.message))
            return []
        found.append(network.check_clock(got.header(b"date"), self.area, self.wall_clock()))
        if got.status != 200:
            refusal = error_mapping.error_from_response(
                got.status, got.headers, got.body, plan=self.account.plan
            )
            found.append(self._model_list_failed(refusal))
            return []
        names, wrong = bodies.check_models(got.json())
        offered = [name for name in names if self.account.supports(name)]
        text = wrong[0].message if wrong else f"{len(names)} are listed, {len(offered)} of them offered here"
        found.append(self.finding("models", "warning" if wrong else "ok", text))
        return names

    async def _list(self, credential: Credential) -> HttpReply:
        target = self.account.target(credential, "")
        request = HTTPRequest("GET", f"{target.base_url}/models", target.with_authorization())
        return await fetch(self.relay.transport, request)

    def _model_list_failed(self, error: UpstreamError) -> Finding:
        if error.retry is RetryHint.REFRESH_TOKEN:
            return self.finding("models", "failed", error.message, self.advice(error))
        advice = "some servers have no list: name models, or default_model"
        return self.finding("models", "warning", error.message, advice)

    def _model(self, names: Sequence[str]) -> str | None:
        """Whom to ask: the operator's default, else the cheapest that is offered."""
        default = self.relay.policy.aliases.resolve(self.default_model) if self.default_model else None
        if default and self.account.supports(default):
            return default
        own = [pattern for pattern in self.account.models if not is_pattern(pattern)]
        known = [*own, *names]
        if not known and self.account.provider_family == "dashscope":
            known = self.relay.policy.catalog.names("chat")
        return probes.chat_model(
            [name for name in known if self.account.supports(name)], self.relay.policy.catalog
        )

    async def _chat(self, model: str, stream: bool) -> Finding:
        name = f"chat, {'streamed' if stream else 'whole'}"
        turn = self._build_turn(model, probes.CHAT_PROMPT, probes.CHAT_PROMPT_TOKENS, stream)
        record, began = RelayRecord(), trio.current_time()
        events = await self._run_turn(turn, record)
        if (failure := self._failure(name, events, record)) is not None:
            return failure
        seconds = trio.current_time() - began
        return self.finding(name, "ok", f"{model} answered in {seconds:.1f} s", tokens=_cost(record))

    async def _tool_call(self, model: str, *, stream: bool) -> Finding:
        name = f"tool call, {'streamed' if stream else 'whole'}"
        turn = self._build_turn(model, probes.TOOL_PROMPT, probes.TOOL_PROMPT_TOKENS, stream, probes.TOOLS)
        record = RelayRecord()
        events = await self._run_turn(turn, record)
        if (failure := self._failure(name, events, record)) is not None:
            return failure
        made = check_calls(events)
        trouble = probes.tool_call_problem(made, [e.reason for e in events if isinstance(e, ChoiceFinished)])
        if trouble is not None:
            advice = "" if self.account.provider_family == "dashscope" or made else PARSER
            return self.finding(name, "warning", f"{model}: {trouble}", advice, _cost(record))
        repairs = ", ".join(sorted(record.repairs))
        mended = f" (mended: {repairs})" if repairs else ""
        return self.finding(name, "ok", f"{made[0][0]}({made[0][1]:.60}){mended}", tokens=_cost(record))

    async def _embeddings(self, names: Sequence[str]) -> Finding:
        """Vectors of two texts, where the account can embed."""
        catalog = self.relay.policy.catalog
        if not names and self.account.provider_family == "dashscope":
            names = catalog.names("embedding")
        model = probes.embedding_model(names, catalog)
        if self.account.embedding_batch < 1:
            return self.finding("embeddings", "skipped", "this plan cannot embed")
        if model is None or not self.account.supports(model, "embedding"):
            return self.finding("embeddings", "skipped", "no model that embeds is offered")
        record = RelayRecord()
        try:
            found = await embeddings.create_embeddings(
                self.relay, EmbeddingInput(model, probes.TEXTS), record
            )
        except QproxyError as error:
            return self.finding("embeddings", "failed", f"{model}: {error.message}", self.advice(error))
        return self.finding(
            "embeddings", "ok", f"{model} gave {len(found.vectors)} vectors", tokens=_cost(record)
        )

    def _build_turn(
        self, model: str, messages: object, tokens: int, stream: bool, tools: Sequence[object] = ()
    ) -> Turn:
        assert isinstance(messages, list)
        return Turn(
            "chatcmpl-check",
            int(self.wall_clock()),
            model,
            messages,
            tools=tools,
            params={"max_tokens": tokens},
            stream=stream,
        )

    async def _run_turn(self, turn: Turn, record: RelayRecord) -> list[Event]:
        """The events of an answer; a failure is the last of them."""
        async with AsyncExitStack() as stack:
            try:
                answer = await self.relay.open(turn, record, stack)
                events: list[Event] = []
                while piece := await answer.receive():
                    events += piece
            except QproxyError as error:
                return [StreamFailed(error)]
        return events

    def _failure(self, name: str, events: Sequence[Event], record: RelayRecord) -> Finding | None:
        last = events[-1] if events else None
        if isinstance(last, StreamFailed):
            text = f"{record.served_model or record.model}: {last.error.message}"
            return self.finding(name, "failed", text, self.advice(last.error), _cost(record))
        broken = next(violations(events), None)
        if broken is None:
            return None
        return self.finding(
            name, "failed", broken.message, "this is a mistake of qproxy: please report it", _cost(record)
        )

    def advice(self, error: QproxyError) -> str:
        """What to do about an error of this account's server."""
        limit = getattr(error, "limit", LimitKind.NONE)
        if error.retry is RetryHint.REFRESH_TOKEN and self.entry.kind == "oauth":
            return self.login
        if error.retry is RetryHint.REFRESH_TOKEN:
            return "see that the key is whole, not revoked, and of the server's region and plan"
        return {
            LimitKind.QUOTA: "pay for more, or wait until the quota is reset",
            LimitKind.FREE: "allow the model to cost money in Model Studio's console, or name another one",
            LimitKind.MINUTE: "wait a minute and check again",
            LimitKind.MODEL: "set default_model, or the account's models, to what this account may use",
            LimitKind.ACCESS: "see in the console what this key or account may be used for",
        }.get(limit, "")


def _cost(record: RelayRecord) -> int:
    return record.usage.total_tokens if record.usage is not None else 0


def account_check(entry: AccountConfig, account: Account, relay: Relay, config: Config) -> AccountCheck:
    """Return the check of one account: in a pool of its own, with the server's transport and policy."""
    pool = AccountPool([account], queue_timeout=config.queue_timeout, max_queue_size=config.max_queue_size)
    return AccountCheck(entry, account, Relay(pool, relay.transport, relay.policy), config.default_model)
