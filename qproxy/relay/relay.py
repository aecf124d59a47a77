"""Requests to accounts and back: `Relay.open` returns a response once its first event is there.

So an early error keeps its true status; from then on the response is pulled (`event_stream`). Everything
opened is entered on the exit stack of the request, which closes it in any case. `chat_attempt` is one
attempt, `retry` decides whether another one follows.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from qproxy.accounts import AccountPool
from qproxy.relay.affinity import affinity_key, prefix_keys
from qproxy.relay.chat_attempt import ChatAttempt
from qproxy.relay.event_stream import EventStream, UpstreamEventStream
from qproxy.relay.fallback_search import FallbackSearch
from qproxy.relay.fallbacks import RETIRED
from qproxy.relay.model_names import ModelNames
from qproxy.relay.multi_prompt import MultiPromptStream
from qproxy.relay.policy import RelayPolicy
from qproxy.relay.reasoning_store import ReasoningStore
from qproxy.relay.retry import RetryLoop
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamTransport
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Turn
from qproxy.wire.prompt_cache import CachePlanner
from qproxy.wire.token_ratios import TokenRatios


class Relay:
    """Sends turns to accounts and returns their responses."""

    def __init__(
        self,
        accounts: AccountPool,
        transport: UpstreamTransport,
        policy: RelayPolicy,
        reasoning: ReasoningStore | None,
        token_ratios: TokenRatios,
        cache_planner: CachePlanner,
    ) -> None:
        """`reasoning` keeps ciphertext of reasoning for clients that do not send it back."""
        self.accounts = accounts
        self.transport = transport
        self.policy = policy
        self.reasoning = reasoning
        self.token_ratios = token_ratios
        self.cache_planner = cache_planner
        self.names = ModelNames(
            accounts,
            aliases=policy.aliases,
            catalog=policy.catalog,
            use_successor=policy.retired_models == "successor",
            fallbacks=policy.fallbacks,
        )

    def can_search(self, model: str) -> bool:
        """Return whether an account's server can search the web for a model, as far as is known."""
        return self.policy.catalog.get(model).search != [] and any(
            account.provider_family == "dashscope" and account.supports(model)
            for account in self.accounts.accounts
        )

    async def open(self, turn: Turn, record: RelayRecord, stack: AsyncExitStack) -> EventStream:
        """Return the response to a turn, started. What it holds open is closed by `stack`.

        Raises QproxyError when no account could start one.
        """
        if turn.completion is None or len(turn.completion.prompts) == 1:
            return await self._open(turn, record, stack)
        series = MultiPromptStream(turn, record, stack, self._open)
        await series.start(stream=turn.stream)
        return series

    async def _open(self, turn: Turn, record: RelayRecord, stack: AsyncExitStack) -> UpstreamEventStream:
        """Return the response to a turn of one conversation or prompt, of a fallback model if need be."""
        record.model = turn.model
        route = self.names.route(turn.model)
        model, record.model_notes = route.served, route.notes
        if route.replaced:
            record.fallback = record.fallback or RETIRED
        elif record.fallback:  # an earlier round of the same response
            model = record.served_model
        search: FallbackSearch | None = None
        while True:
            attempt = ChatAttempt(
                turn,
                model,
                record,
                self.transport,
                self.policy,
                self.reasoning,
                self.token_ratios,
                self.cache_planner,
                counts_tokens=self.accounts.counts_tokens,
            )
            try:
                if len(self.accounts.accounts) == 1:  # there is no choice
                    return await RetryLoop(self.accounts, model, record).run(attempt, stack)
                return await self._run(attempt, turn, model, record, stack)
            except QproxyError as error:
                if not self.policy.fallbacks or record.permits_model is None:
                    raise
                search = search or FallbackSearch(turn, route.names, error, self.names, self.policy.fallbacks)
                found = search.next(model, error, record.permits_model, self.token_ratios)
                if found is None:
                    raise search.first_error from None
                model, record.fallback = found, record.fallback or search.cause

    async def _run(
        self, attempt: ChatAttempt, turn: Turn, model: str, record: RelayRecord, stack: AsyncExitStack
    ) -> UpstreamEventStream:
        """Return the started response, if possible of the account that has the beginning of the prompt."""
        homes, keys = self.accounts.prompt_homes, prefix_keys(turn)
        home = homes.find(keys, trio.current_time())
        loop = RetryLoop(self.accounts, model, record, affinity=affinity_key(turn), preferred=home)
        stream = await loop.run(attempt, stack)
        if record.account is not None:
            record.cache_moves += home not in ("", record.account)
            homes.remember(keys, record.account, trio.current_time())
        return stream
