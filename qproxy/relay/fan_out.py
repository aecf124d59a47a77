"""Several upstream requests in parallel for one request of a client.

The first final failure cancels the others, and the client gets its error. Their nursery is within the
request's own and does not outlive the call, so a cancellation reaches all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from qproxy.telemetry import RelayRecord
from qproxy.wire.errors import QproxyError


async def run_bounded(work: Callable[[int], Awaitable[None]], count: int, limit: int) -> None:
    """Run `work(0)` to `work(count - 1)`, at most `limit` concurrently. Raises the first QproxyError."""
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
        for _ in range(min(count, limit)):
            nursery.start_soon(worker)
    if failures:
        raise failures[0]


def merge_records(record: RelayRecord, part: RelayRecord) -> None:
    """Merge the record of one upstream request into the client request's: its outcome, and the maximum of
    attempts."""
    record.account = part.account or record.account
    record.served_model = part.served_model or record.served_model
    record.upstream_status = part.upstream_status or record.upstream_status
    record.upstream_request_id = part.upstream_request_id or record.upstream_request_id
    record.attempts = max(record.attempts, part.attempts)
    record.failures += part.failures
    record.responses += part.responses
    record.rules, record.rule_notes = part.rules or record.rules, part.rule_notes or record.rule_notes
    record.ignored = part.ignored or record.ignored
    record.repairs.update(part.repairs)
    for unit, amount in part.units.items():
        record.units[unit] = record.units.get(unit, 0) + amount
