"""The whole examination: which checks there are, side by side, each within its time.

`examine` looks at this machine, the settings and every account; `probe` at one server that need not be ours.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from qproxy.bootstrap import transport as outbound
from qproxy.bootstrap.app import build_server
from qproxy.bootstrap.telemetry import NO_LEDGER
from qproxy.config import Config
from qproxy.diagnostics import system
from qproxy.diagnostics import tools as workshop
from qproxy.diagnostics.accounts import AccountCheck, account_check
from qproxy.diagnostics.conformance import ConformanceCheck
from qproxy.diagnostics.report import CONFIGURATION, Finding
from qproxy.sandbox import SystemSandbox

AREA_SECONDS = 120.0
"""For all that concerns one account, one server, or the tools."""
RESPONSE_SECONDS = 30.0
"""For one answer to begin, and for each silence within it."""


async def run_checks(config: Config, home: Path, file: str | None, *, offline: bool = False) -> list[Finding]:
    """Everything about a configuration.  ConfigError when it cannot be served; `offline` makes no connections."""
    sandbox = SystemSandbox()
    config.check()
    untouched = replace(
        short_timeouts(config),
        accounts_file=None,
        meters_file=None,
        ledger=NO_LEDGER,
        store_responses=False,
        tracing=False,
    )
    server = build_server(untouched, sandbox=sandbox)
    try:
        entries = config.all_accounts()
        source = file or "no configuration file"
        found = [
            Finding(
                CONFIGURATION,
                "settings",
                "ok",
                f"{source}, variables and defaults: {_count(len(entries), 'account')}",
            )
        ]
        found += await trio.to_thread.run_sync(system.check_files, config, home, file)
        found += [system.check_limits(config), await system.check_port(config, home)]
        accounts = zip(entries, server.relay.accounts.accounts, strict=True)
        patients = [account_check(entry, one, server.relay, config.default_model) for entry, one in accounts]
        if offline:
            return [*found, *[finding for one in patients for finding in await one.offline()]]
        fenced = any(entry.sandbox != "none" for entry in (*config.tools, *config.mcp_servers))
        assert server.workshop is not None
        return found + await _run_concurrently(
            patients, partial(workshop.check_tools, server.workshop, sandbox, fenced)
        )
    finally:
        with trio.CancelScope(shield=True):  # closing idle sockets cannot block
            await server.relay.transport.aclose()


async def _run_concurrently(
    patients: list[AccountCheck], tools: Callable[[], Awaitable[list[Finding]]]
) -> list[Finding]:
    """The findings of all accounts and of the tools, in order."""
    reports: list[list[Finding]] = [[] for _ in range(len(patients) + 1)]

    async def check_tools(found: list[Finding]) -> None:
        found += await tools()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(with_timeout, workshop.AREA, check_tools, reports[0])
        for one, report in zip(patients, reports[1:], strict=True):
            nursery.start_soon(with_timeout, one.area, one.online, report)
    return [finding for report in reports for finding in report]


async def with_timeout(
    area: str, check: Callable[[list[Finding]], Awaitable[None]], found: list[Finding]
) -> None:
    """A check within its time; what it found until then stays."""
    with trio.move_on_after(AREA_SECONDS) as scope:
        await check(found)
    if scope.cancelled_caught:
        text = f"not everything was answered within {AREA_SECONDS:g} s"
        found.append(Finding(area, "time", "failed", text, "see whether the server is busy, and check again"))


async def check_url(
    config: Config, url: str, *, key: str | None, model: str | None, costs: bool = True
) -> list[Finding]:
    """Everything about one server; the settings give the proxy, the certificates and the time limits."""
    transport, found = outbound.build_transport(short_timeouts(config)), list[Finding]()
    one = ConformanceCheck(url, transport, time.time, key, model)
    try:
        await with_timeout(url, partial(one.all, costs=costs), found)
    finally:
        with trio.CancelScope(shield=True):
            await transport.aclose()
    return found


def short_timeouts(config: Config) -> Config:
    """The settings with limits that suit somebody who waits for a report."""
    first, idle = config.first_byte_timeout or RESPONSE_SECONDS, config.idle_timeout or RESPONSE_SECONDS
    return replace(
        config,
        first_byte_timeout=min(first, RESPONSE_SECONDS),
        idle_timeout=min(idle, RESPONSE_SECONDS),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
