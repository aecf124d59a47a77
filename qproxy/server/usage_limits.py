"""What a request costs its key: a place in the minute's limits, a share of the budgets, and what it used in the end.

Reserved before the request goes to a model, settled with its last byte, whatever happened to it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from qproxy.access.api_keys import Key
from qproxy.server import request_context as current
from qproxy.server.state import Parts


async def charge(parts: Parts, model: str, estimate: Callable[[], tuple[int, int]]) -> None:
    """Reserve what a request for `model` will use; RequestError when its key may not have it.

    `estimate` gives about how many tokens the prompt is, and at most how many the answer was asked to be.
    """
    key, record, stack = current.client(), current.record(), current.stack()
    record.story.model = model
    parts.door.check_model(key, model)

    def guess() -> None:
        """About how long the prompt was, where the upstream did not say."""
        if record.story.usage is None and record.first_byte is not None:
            record.prompt_estimate = estimate()[0]

    if key is not None:
        await _reserve(parts, key, estimate)
    stack.callback(guess)  # the last one in runs first: what is settled is what was guessed


async def charge_more(parts: Parts, tokens: int, minutes: int) -> None:
    """Charge a request that goes on for its tokens so far, and perhaps for a minute; RequestError when its key has no more.

    A minute is another request to `rpm`; a budget counts the request once.
    """
    scope = current.scope()
    key, more = current.client(), tokens - scope.get("qproxy.charged", 0)
    scope["qproxy.charged"] = tokens
    if "qproxy.meter" in scope:
        scope["qproxy.meter"].take_more(more, minutes, trio.current_time())
    if key is not None and "qproxy.claim" in scope:
        scope["qproxy.claim"].add(more)
        await parts.budgets.going_on(key)


async def _reserve(parts: Parts, key: Key, estimate: Callable[[], tuple[int, int]]) -> None:
    record, stack = current.record(), current.stack()
    meter = parts.meters.of(key, trio.current_time())
    tokens = sum(estimate()) if meter or key.budgets else 0
    if key.budgets:
        claim = current.scope()["qproxy.claim"] = await parts.budgets.claim(key, tokens)
        stack.callback(lambda: claim.settle(sum(record.tokens()), counts=record.story.account is not None))
    if meter is not None:
        current.scope()["qproxy.meter"] = meter
        reservation = meter.reserve(tokens, trio.current_time())

        scope = current.scope()

        def charged() -> int:
            return int(scope.get("qproxy.charged", 0))

        def settle() -> None:
            used, counts = sum(record.tokens()) - charged(), record.story.tries > 0
            reservation.settle(used, trio.current_time(), counts=counts)

        stack.callback(settle)
