"""Checks of one account: its login, its upstream, chat, tool calls and embeddings.

Requests go through the server's own relay, with its rules and repairs, so the results are what a client would
get. The account is alone in its pool, so that no other one can serve the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from qproxy.accounts import Account, AccountPool
from qproxy.accounts.condition import SEVERITIES, format_time
from qproxy.accounts.report import account_rows, rules_by_model
from qproxy.accounts.shared_state import AccountState
from qproxy.auth import Credential, OAuthSource
from qproxy.auth.credential_store import StorageError
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, key_warnings
from qproxy.diagnostics import network, probes
from qproxy.diagnostics.http_probe import WEB_PAGE_ADVICE, HttpReply, fetch, versioned_base_url
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
    """The checks of one account."""

    entry: AccountConfig
    """The resolved entry of the configuration."""
    account: Account
    relay: Relay
    default_model: str | None
    stored: AccountState | None = None
    """The state that the servers of this data directory have stored."""
    wall_clock: Callable[[], float] = time.time

    @property
    def area(self) -> str:
        return f"account {self.entry.name}"

    @property
    def login(self) -> str:
        """Return the command that logs in to the account."""
        return f"qproxy login --account {self.entry.name}"

    def finding(self, name: str, state: State, text: str, advice: str = "", tokens: int = 0) -> Finding:
        return Finding(self.area, name, state, text, advice, tokens)

    async def offline(self) -> list[Finding]:
        """Run the checks that need no connection."""
        return [*self._key(), *self._state(), *self._rules(), *(await self._tokens())]

    async def online(self, found: list[Finding]) -> None:
        """Run all checks and add the findings to `found`."""
        found += [*self._key(), *self._state(), *self._rules()]
        async with trio.open_nursery() as nursery:
            if isinstance(self.account.source, OAuthSource):
                nursery.start_soon(self.account.source.run)
            await self._check_online(found)
            nursery.cancel_scope.cancel()

    async def _check_online(self, found: list[Finding]) -> None:
        try:
            credential = await self.account.source.credential()
        except QproxyError as error:
            found.append(self.finding("login", "failed", error.message, self.login))
            return
        found += self._login_finding()
        found += await network.check_route(
            credential.base_url, self.relay.transport, self.area, self.wall_clock()
        )
        if last_failed(found):
            return
        names = await self._models(credential, found)
        if last_failed(found):
            return
        model = self._model(names)
        if model is None and found[-1].state == "warning":  # the list is the cause
            found.append(self.finding("chat", "failed", "no model to test"))
        elif model is None:
            found.append(self.finding("chat", "skipped", "no model to test", "set default_model"))
        else:
            for stream in (False, True):
                found.append(await self._chat(model, stream))
                if last_failed(found):
                    break
            else:
                found.append(await self._tool_call(model, stream=False))
                found.append(await self._tool_call(model, stream=True))
        if last_failed(found):
            found.append(self.finding("embeddings", "skipped", "not tested, because chat failed"))
        else:
            found.append(await self._embeddings(names))

    def _state(self) -> list[Finding]:
        """Return the state that `qproxy accounts` shows, if a server has used the account."""
        if self.stored is None:
            return []
        (row,) = account_rows([self.entry], {self.entry.identity: self.stored}, self.wall_clock())
        text = row.message if row.message == row.state else f"{row.state.replace('_', ' ')}: {row.message}"
        levels: dict[str, State] = {"ok": "ok", "unknown": "skipped"}
        return [self.finding("state", levels.get(SEVERITIES.get(row.state, "error"), "warning"), text)]

    def _key(self) -> list[Finding]:
        warnings = key_warnings(self.entry)
        prefix = f"account {self.entry.name!r}: "
        name = "plan" if self.entry.kind == "oauth" else "key"
        found = [self.finding(name, "warning", warning.removeprefix(prefix)) for warning in warnings]
        if not found and self.entry.key:
            found = [self.finding("key", "ok", "format matches this server")]
        return found

    def _rules(self) -> list[Finding]:
        """Show the rules that the upstream's rejections have taught."""
        advice = f"after an update of the server: qproxy accounts forget-rules {self.entry.name}"
        return [
            self.finding("learned rules", "ok", f"{model}: {', '.join(rules)}", advice)
            for model, rules in rules_by_model(self.account.learned_rules).items()
        ]

    async def _tokens(self) -> list[Finding]:
        """Check the stored tokens of an oauth account."""
        source = self.account.source
        if not isinstance(source, OAuthSource):
            return []
        try:
            tokens = await source.refresher.store.load()
        except StorageError as error:
            return [self.finding("login", "failed", str(error), self.login)]
        if tokens is None:
            return [self.finding("login", "failed", "not logged in", self.login)]
        expired = tokens.seconds_left(self.wall_clock()) <= 0
        when = format_time(tokens.expiry_date / 1000, self.wall_clock())
        text = f"the token {'expired' if expired else 'is valid until'} {when}"
        if expired and not tokens.refresh_token:
            return [self.finding("login", "failed", text, self.login)]
        return [self.finding("login", "ok", f"{text}{'; it will be refreshed' if expired else ''}")]

    def _login_finding(self) -> list[Finding]:
        if not isinstance(self.account.source, OAuthSource):
            return []
        status = self.account.source.status()
        expiry = format_time(status.expires_at or 0.0, self.wall_clock())
        text = f"{status.message} The token is valid until {expiry}"
        return [self.finding("login", "ok" if status.state == "ready" else "warning", text)]

    async def _models(self, credential: Credential, found: list[Finding]) -> list[str]:
        """Return the models that the upstream lists; [] if the list is unavailable."""
        try:
            reply = await self._list(credential)
            if reply.status == 401 and await self.account.source.report_rejected(credential):
                reply = await self._list(await self.account.source.credential())
        except UpstreamError as error:
            found.append(self.finding("models", "warning", error.message))
            return []
        found.append(network.check_clock(reply.header(b"date"), self.area, self.wall_clock()))
        names, violations_found = bodies.check_models(reply.json())
        if (reply.status != 200 or violations_found) and (finding := await self._missing_version(credential)):
            found.append(finding)
            return []
        if reply.is_web_page:
            text = f"a web page (status {reply.status})"
            found.append(self.finding("models", "failed", text, WEB_PAGE_ADVICE))
            return []
        if reply.status != 200:
            failure = error_mapping.error_from_response(
                reply.status, reply.headers, reply.body, plan=self.account.plan
            )
            found.append(self._model_list_failed(failure))
            return []
        offered = [name for name in names if self.account.supports(name)]
        text = f"{len(names)} listed, {len(offered)} enabled for this account"
        if violations_found:
            found.append(self.finding("models", "warning", violations_found[0].message))
        else:
            found.append(self.finding("models", "ok", text))
        return names

    async def _missing_version(self, credential: Credential) -> Finding | None:
        """Return a failed finding if the base URL lacks /v1."""
        target = self.account.target(credential, "")
        url = await versioned_base_url(self.relay.transport, target.base_url, target.with_authorization())
        if url is None:
            return None
        text = f"{target.base_url} has no model list, {url} has one"
        return self.finding("models", "failed", text, f"set base_url to {url}")

    async def _list(self, credential: Credential) -> HttpReply:
        target = self.account.target(credential, "")
        request = HTTPRequest("GET", f"{target.base_url}/models", target.with_authorization())
        return await fetch(self.relay.transport, request)

    def _model_list_failed(self, error: UpstreamError) -> Finding:
        if error.retry is RetryHint.REFRESH_TOKEN:
            return self.finding("models", "failed", error.message, self.advice(error))
        advice = "some servers have no model list: set models or default_model"
        return self.finding("models", "warning", error.message, advice)

    def _model(self, names: Sequence[str]) -> str | None:
        """Return the model to test: default_model if the account has it, otherwise the cheapest, or None."""
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
        name = f"chat, {'streamed' if stream else 'non-streamed'}"
        turn = self._build_turn(model, probes.CHAT_PROMPT, probes.CHAT_PROMPT_TOKENS, stream)
        record, start = RelayRecord(), trio.current_time()
        events = await self._run_turn(turn, record)
        if (failure := self._failure(name, events, record)) is not None:
            return failure
        seconds = trio.current_time() - start
        return self.finding(name, "ok", f"{model} responded in {seconds:.1f} s", tokens=_cost(record))

    async def _tool_call(self, model: str, *, stream: bool) -> Finding:
        name = f"tool call, {'streamed' if stream else 'non-streamed'}"
        turn = self._build_turn(model, probes.TOOL_PROMPT, probes.TOOL_PROMPT_TOKENS, stream, probes.TOOLS)
        record = RelayRecord()
        events = await self._run_turn(turn, record)
        if (failure := self._failure(name, events, record)) is not None:
            return failure
        calls = check_calls(events)
        problem = probes.tool_call_problem(calls, [e.reason for e in events if isinstance(e, ChoiceFinished)])
        if problem is not None:
            advice = "" if self.account.provider_family == "dashscope" or calls else PARSER
            return self.finding(name, "warning", f"{model}: {problem}", advice, _cost(record))
        repairs = ", ".join(sorted(record.repairs))
        repaired = f" (repaired: {repairs})" if repairs else ""
        return self.finding(name, "ok", f"{calls[0][0]}({calls[0][1]:.60}){repaired}", tokens=_cost(record))

    async def _embeddings(self, names: Sequence[str]) -> Finding:
        """Request the embeddings of two texts, if the account has embeddings."""
        catalog = self.relay.policy.catalog
        if not names and self.account.provider_family == "dashscope":
            names = catalog.names("embedding")
        model = probes.embedding_model(names, catalog)
        if self.account.embedding_batch < 1:
            return self.finding("embeddings", "skipped", "not available with this plan")
        if model is None or not self.account.supports(model, "embedding"):
            return self.finding("embeddings", "skipped", "no embedding model available")
        record = RelayRecord()
        try:
            result = await embeddings.create_embeddings(
                self.relay, EmbeddingInput(model, probes.TEXTS), record
            )
        except QproxyError as error:
            return self.finding("embeddings", "failed", f"{model}: {error.message}", self.advice(error))
        return self.finding(
            "embeddings", "ok", f"{model} returned {len(result.vectors)} vectors", tokens=_cost(record)
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
        """Return the events of a response; a failure is the last of them."""
        async with AsyncExitStack() as stack:
            try:
                response = await self.relay.open(turn, record, stack)
                events: list[Event] = []
                while batch := await response.receive():
                    events += batch
            except QproxyError as error:
                return [StreamFailed(error)]
        return events

    def _failure(self, name: str, events: Sequence[Event], record: RelayRecord) -> Finding | None:
        last = events[-1] if events else None
        if isinstance(last, StreamFailed):
            text = f"{record.served_model or record.model}: {last.error.message}"
            return self.finding(name, "failed", text, self.advice(last.error), _cost(record))
        violation = next(violations(events), None)
        if violation is None:
            return None
        return self.finding(
            name, "failed", violation.message, "this is a bug in qproxy; please report it", _cost(record)
        )

    def advice(self, error: QproxyError) -> str:
        """Return the advice for an error of the upstream, or ""."""
        limit = getattr(error, "limit", LimitKind.NONE)
        if error.retry is RetryHint.REFRESH_TOKEN and self.entry.kind == "oauth":
            return self.login
        if error.retry is RetryHint.REFRESH_TOKEN:
            return "check that the key is complete, not revoked, and matches the region and plan"
        return {
            LimitKind.QUOTA: "buy more quota, or wait until it resets",
            LimitKind.FREE: "allow paid use of the model in the Model Studio console, or use another model",
            LimitKind.MINUTE: "wait a minute and run the check again",
            LimitKind.MODEL: "set default_model, or the account's models, to models that the account may use",
            LimitKind.ACCESS: "check the permissions of this key or account in the console",
        }.get(limit, "")


def _cost(record: RelayRecord) -> int:
    return record.usage.total_tokens if record.usage is not None else 0


def account_check(
    entry: AccountConfig, account: Account, relay: Relay, config: Config, stored: AccountState | None = None
) -> AccountCheck:
    """Return the checks of one account, alone in a pool, with the server's transport and policy."""
    pool = AccountPool([account], queue_timeout=config.queue_timeout, max_queue_size=config.max_queue_size)
    return AccountCheck(
        entry,
        account,
        Relay(pool, relay.transport, relay.policy, None, relay.token_ratios, relay.cache_planner),
        config.default_model,
        stored,
    )
