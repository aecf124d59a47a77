"""What a request costs its key: a place in the minute's limits, a share of the budgets, and what it used in the end.

Reserved before the request goes to a model, settled with its last byte, whatever happened to it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.server import request_context
from qproxy.server.state import ServerState


async def reserve_usage(state: ServerState, model: str, estimate: Callable[[], tuple[int, int]]) -> None:
    """Reserve what a request for `model` will use; RequestError when its key may not have it.

    `estimate` gives about how many tokens the prompt is, and at most how many the answer was asked to be.
    """
    key, record, stack = request_context.api_key(), request_context.record(), request_context.stack()
    record.relay.model = model
    state.policy.authorize_model(key, model)

    def record_estimate() -> None:
        """About how long the prompt was, where the upstream did not say."""
        if record.relay.usage is None and record.first_byte is not None:
            record.prompt_estimate = estimate()[0]

    if key is not None:
        await _reserve(state, key, estimate)
    stack.callback(record_estimate)  # the last one in runs first: what is settled is what was guessed


async def extend_usage(state: ServerState, tokens: int, minutes: int) -> None:
    """Charge a request that goes on for its tokens so far, and perhaps for a minute; RequestError when its key has no more.

    A minute is another request to `rpm`; a budget counts the request once.
    """
    scope = request_context.scope()
    key, more = request_context.api_key(), tokens - scope.get("qproxy.charged", 0)
    scope["qproxy.charged"] = tokens
    if "qproxy.meter" in scope:
        scope["qproxy.meter"].take_more(more, minutes, trio.current_time())
    if key is not None and "qproxy.claim" in scope:
        scope["qproxy.claim"].add(more)
        await state.budgets.check_running(key)


async def _reserve(state: ServerState, key: ApiKey, estimate: Callable[[], tuple[int, int]]) -> None:
    record, stack = request_context.record(), request_context.stack()
    limiter = state.rate_limits.for_key(key, trio.current_time())
    tokens = sum(estimate()) if limiter or key.budgets else 0
    if key.budgets:
        claim = request_context.scope()["qproxy.claim"] = await state.budgets.reserve(key, tokens)
        stack.callback(lambda: claim.settle(sum(record.tokens()), counts=record.relay.account is not None))
    if limiter is not None:
        request_context.scope()["qproxy.meter"] = limiter
        reservation = limiter.reserve(tokens, trio.current_time())

        scope = request_context.scope()

        def reserved() -> int:
            return int(scope.get("qproxy.charged", 0))

        def settle() -> None:
            used, counts = sum(record.tokens()) - reserved(), record.relay.attempts > 0
            reservation.settle(used, trio.current_time(), counts=counts)

        stack.callback(settle)
