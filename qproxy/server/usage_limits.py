"""Rate limits and budgets of the client's API key.

The amounts are reserved before a request is relayed, and settled when it is finished.
"""

from __future__ import annotations

from collections.abc import Callable

from qproxy.access.api_keys import ApiKey
from qproxy.limits.token_bucket import REQUESTS, TOKENS
from qproxy.server import request_context
from qproxy.server.state import ServerState


async def reserve_usage(state: ServerState, model: str, estimate: Callable[[], tuple[int, int]]) -> None:
    """Reserve the estimated usage of a request for `model`. Raises RequestError when its key does not allow
    it.

    `estimate` returns the approximate tokens of the prompt, and the maximum tokens of the response.
    """
    key, record, stack = request_context.api_key(), request_context.record(), request_context.stack()
    record.relay.model = model
    await authorize_model(state, key, model)

    def record_estimate() -> None:
        """Keep the estimate if the upstream reported no usage."""
        if record.relay.usage is None and record.first_byte is not None:
            record.prompt_estimate = estimate()[0]

    if key is not None and key.is_limited:
        await _reserve(state, key, sum(estimate()))
    stack.callback(record_estimate)  # runs before the callback of _reserve, which settles the recorded tokens


async def authorize_model(state: ServerState, key: ApiKey | None, model: str) -> None:
    """Raise RequestError unless the key may use every model that the request may lead to, successors
    included."""
    names = state.relay.names
    if names.is_retired(model) and any(a.known_models is None for a in state.relay.accounts.accounts):
        await state.model_directory.models()  # a server that still lists it knows better than the catalog
    for name in names.route(model).models:
        state.authentication.authorize_model(key, name)


async def reserve_request(state: ServerState, model: str) -> None:
    """Count a request that calls no model against the rate limit. Raises RequestError when its key does not
    allow it."""
    key, context = request_context.api_key(), request_context.current()
    await authorize_model(state, key, model)
    if key is None or not key.is_limited:
        return
    context.limited_key = key  # a rejection has the headers too
    reservation = await state.usage_limiter.reserve(key, {REQUESTS: 1})
    reservation.settle({}, attempted=True, answered=False)


async def extend_usage(tokens: int, minutes: int) -> None:
    """Charge a session for its tokens so far and for further minutes. Raises RequestError when its key is
    exhausted.

    A minute counts as another request against `rpm`; a budget counts the session once.
    """
    context = request_context.current()
    more = tokens - context.charged_tokens
    context.charged_tokens = tokens
    if context.reservation is not None:
        await context.reservation.extend({REQUESTS: minutes, TOKENS: more})


async def _reserve(state: ServerState, key: ApiKey, tokens: int) -> None:
    context = request_context.current()
    context.limited_key = key  # a rejection has the headers too
    context.reservation = reservation = await state.usage_limiter.reserve(key, {REQUESTS: 1, TOKENS: tokens})
    record = context.record

    def settle() -> None:
        reservation.settle(
            {TOKENS: sum(record.tokens())},
            attempted=record.relay.attempts > 0,
            answered=record.relay.account is not None,
        )

    context.stack.callback(settle)
