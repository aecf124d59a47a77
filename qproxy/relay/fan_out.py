"""Several upstream requests for one request of a client: side by side, as one.

The first that fails for good ends the others, and its error is the one that the client sees.  Cancelled, all are: their
nursery is within the request's own, and does not outlive the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from qproxy.telemetry import RelayRecord
from qproxy.wire.errors import QproxyError


async def run_bounded(work: Callable[[int], Awaitable[None]], count: int, at_once: int) -> None:
    """Do `work(0)` to `work(count - 1)`, at most so many at once.  Raises the first QproxyError of any."""
    numbers = iter(range(count))
    failures: list[QproxyError] = []

    async def worker() -> None:
        for number in numbers:
            try:
                await work(number)
            except QproxyError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(count, at_once)):
            nursery.start_soon(worker)
    if failures:
        raise failures[0]


def merge_records(record: RelayRecord, part: RelayRecord) -> None:
    """Let a request's story know of one of its parts: what the last one met, and the most tries that one took."""
    record.account = part.account or record.account
    record.served_model = part.served_model or record.served_model
    record.upstream_status = part.upstream_status or record.upstream_status
    record.upstream_request_id = part.upstream_request_id or record.upstream_request_id
    record.attempts = max(record.attempts, part.attempts)
    record.failures += part.failures
    record.rules, record.rule_notes = part.rules or record.rules, part.rule_notes or record.rule_notes
    record.ignored = part.ignored or record.ignored
    record.repairs.update(part.repairs)
