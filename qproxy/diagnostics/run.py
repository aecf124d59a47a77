"""The whole examination: which checks there are, side by side, each within its time.

`run_checks` looks at this machine, the settings and every account; `check_url` at one server that need not be ours.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from qproxy.backends.api_keys import has_api_keys
from qproxy.bootstrap import transport as transport_setup
from qproxy.bootstrap.models import build_catalog, retirement_notices
from qproxy.bootstrap.state import build_state
from qproxy.config import Config
from qproxy.config.settings import NO_LEDGER
from qproxy.diagnostics import system
from qproxy.diagnostics import tools as tool_checks
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
    config.check(has_api_keys)
    untouched = replace(
        short_timeouts(config),
        account_state_file=None,
        rate_limits_file=None,
        ledger=NO_LEDGER,
        store_responses=False,
        tracing=False,
    )
    state = build_state(untouched, sandbox=sandbox)
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
        found += [
            Finding(CONFIGURATION, "models", "warning", notice)
            for notice in retirement_notices(config, state.relay.policy.catalog)
        ]
        found += await trio.to_thread.run_sync(system.check_files, config, home, file)
        found += [system.check_limits(config), await system.check_port(config, home)]
        accounts = zip(entries, state.relay.accounts.accounts, strict=True)
        patients = [account_check(entry, one, state.relay, config) for entry, one in accounts]
        if offline:
            return [*found, *[finding for one in patients for finding in await one.offline()]]
        fenced = any(entry.sandbox != "none" for entry in (*config.tools, *config.mcp_servers))
        return found + await _run_concurrently(
            patients, partial(tool_checks.check_tools, state.tool_runtime, sandbox, fenced)
        )
    finally:
        with trio.CancelScope(shield=True):  # closing idle sockets cannot block
            await state.relay.transport.aclose()


async def _run_concurrently(
    patients: list[AccountCheck], tools: Callable[[], Awaitable[list[Finding]]]
) -> list[Finding]:
    """The findings of all accounts and of the tools, in order."""
    reports: list[list[Finding]] = [[] for _ in range(len(patients) + 1)]

    async def check_tools(found: list[Finding]) -> None:
        found += await tools()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(with_timeout, tool_checks.AREA, check_tools, reports[0])
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
    transport, found = transport_setup.build_transport(short_timeouts(config)), list[Finding]()
    one = ConformanceCheck(url, transport, time.time, key, model, build_catalog(config.model_rows))
    try:
        await with_timeout(url, partial(one.all, costs=costs), found)
    finally:
        with trio.CancelScope(shield=True):
            await transport.aclose()
    return found


def short_timeouts(config: Config) -> Config:
    """The settings with limits that suit somebody who waits for a report."""
    first, idle = (
        config.upstream_first_byte_timeout or RESPONSE_SECONDS,
        config.upstream_read_timeout or RESPONSE_SECONDS,
    )
    return replace(
        config,
        upstream_first_byte_timeout=min(first, RESPONSE_SECONDS),
        upstream_read_timeout=min(idle, RESPONSE_SECONDS),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
