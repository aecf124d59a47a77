"""Rate limits and budgets of the client's API key.

The amounts are reserved before a request is relayed, and settled when it is finished. What is reserved is an
estimate by the prompt's length (`wire.token_ratios`). What the upstream reports in the end is settled, and
improves the estimates of later requests to the same model.
"""

from __future__ import annotations

from qproxy.access.api_keys import ApiKey
from qproxy.ledger.rows import charge_of
from qproxy.limits.token_bucket import REQUESTS, TOKENS, USD, Amounts
from qproxy.server import request_context
from qproxy.server.state import ServerState
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Usage
from qproxy.wire.token_ratios import PromptSize, TokenEstimate


async def reserve_usage(
    state: ServerState, model: str, size: PromptSize, max_tokens: int = 0
) -> TokenEstimate:
    """Reserve the estimated usage of a request for `model`, and return the estimate of its prompt.

    Raises RequestError when the client's key does not allow it.
    """
    key, record, stack = request_context.api_key(), request_context.record(), request_context.stack()
    record.relay.model = model
    served = await authorize_model(state, key, model)
    refuses_unpriced = key is not None and key.has_money_budget and state.unpriced_models == "refuse"
    if refuses_unpriced and not _is_priced(state, served):
        raise _unpriced_error(served)
    if state.relay.policy.fallbacks:
        record.relay.permits_model = lambda name: (
            key is None or (key.allows(name) and (not refuses_unpriced or _is_priced(state, name)))
        )
    ratios = state.relay.token_ratios
    estimate = ratios.estimate(served, size)

    def improve_estimate() -> None:
        """Learn from the reported tokens of the prompt."""
        usage = record.relay.usage
        if usage is not None and record.relay.rounds == 1:  # the prompts of further rounds are longer
            ratios.learn(served, size, usage.prompt_tokens)

    if key is not None and key.is_limited:
        amounts: dict[str, float] = {REQUESTS: 1, TOKENS: estimate.prompt + max_tokens}
        if key.has_money_budget:
            amounts[USD] = _estimate_cost(state, served, Usage(estimate.prompt, max_tokens))
        await _reserve(state, key, amounts)
    stack.callback(improve_estimate)
    return estimate


async def authorize_model(state: ServerState, key: ApiKey | None, model: str) -> str:
    """Return the model that serves a request.

    Raises RequestError unless the key may use every model that the request may lead to, successors included.
    """
    names = state.relay.names
    if names.is_retired(model) and any(a.known_models is None for a in state.relay.accounts.accounts):
        await state.model_directory.models()  # a server that still lists it knows better than the catalog
    route = names.route(model)
    for name in route.models:
        state.authentication.authorize_model(key, name)
    return route.served


async def reserve_request(state: ServerState, model: str) -> str:
    """Count a request that calls no model against the rate limit. Raises RequestError when its key does not
    allow it."""
    key, context = request_context.api_key(), request_context.current()
    served = await authorize_model(state, key, model)
    if key is None or not key.is_limited:
        return served
    context.limited_key = key  # a rejection has the headers too
    reservation = await state.usage_limiter.reserve(key, {REQUESTS: 1})
    reservation.settle({}, attempted=True, answered=False)
    return served


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


async def _reserve(state: ServerState, key: ApiKey, amounts: Amounts) -> None:
    context = request_context.current()
    context.limited_key = key  # a rejection has the headers too
    context.reservation = reservation = await state.usage_limiter.reserve(key, amounts)
    record = context.record

    def settle() -> None:
        used: dict[str, float] = {TOKENS: sum(record.tokens())}
        if USD in amounts:
            charge = charge_of(record, state.pricing)
            used[USD] = 0.0 if charge is None else charge.cost or 0.0
        reservation.settle(
            used,
            attempted=record.relay.attempts > 0,
            answered=record.relay.account is not None,
        )

    context.stack.callback(settle)


def _accounts_of(state: ServerState, model: str) -> list[str]:
    """Return the accounts that may serve a model, in chat or otherwise."""
    return [account.name for account in state.relay.accounts.accounts if account.supports(model)]


def _is_priced(state: ServerState, model: str) -> bool:
    """Return whether the cost of a model is known at every account that may serve it."""
    return all(state.pricing.is_priced(account, model) for account in _accounts_of(state, model))


def _estimate_cost(state: ServerState, model: str, usage: Usage) -> float:
    """Return the cost of a request in US dollars at the dearest account, 0 where none is known."""
    costs = (state.pricing.cost(account, model, usage) for account in _accounts_of(state, model))
    return max((cost for cost in costs if cost is not None), default=0.0)


def _unpriced_error(model: str) -> RequestError:
    return RequestError(
        f"The price of the model {model[:200]!r} is not known, and the API key has a budget in money. Add a"
        " [[prices]] table for it (and exchange_rates for its currency), or set unpriced_models to allow.",
        status=403,
        type="permission_error",
        param="model",
        code="model_price_unknown",
    )
