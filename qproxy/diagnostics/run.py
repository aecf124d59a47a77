"""All checks, run concurrently, each with a timeout.

`run_checks` checks this machine, the settings and every account; `check_url` any single server.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from qproxy.accounts.shared_state import AccountState, StateStoreError
from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.credentials import OpenCredentials
from qproxy.backends.factory import open_backends
from qproxy.backends.shared_commands import with_account_states, with_shared_accounts
from qproxy.bootstrap import transport as transport_setup
from qproxy.bootstrap.models import build_catalog, retirement_notices
from qproxy.bootstrap.state import build_state
from qproxy.bootstrap.telemetry import build_pricing
from qproxy.config import Config
from qproxy.config.ledger import NO_LEDGER
from qproxy.diagnostics import system
from qproxy.diagnostics import tools as tool_checks
from qproxy.diagnostics.accounts import AccountCheck, account_check
from qproxy.diagnostics.conformance import ConformanceCheck
from qproxy.diagnostics.databases import check_databases
from qproxy.diagnostics.report import CONFIGURATION, Finding
from qproxy.diagnostics.shared_state import check_shared_state
from qproxy.sandbox import SystemSandbox

AREA_SECONDS = 120.0
"""Seconds for all checks of one account, one server, or the tools."""
RESPONSE_SECONDS = 30.0
"""Seconds until a response starts, and between two reads of it."""


async def run_checks(config: Config, home: Path, file: str | None, *, offline: bool = False) -> list[Finding]:
    """Check a configuration; `offline` makes no connections. Raises ConfigError if it is invalid."""
    config.check(has_api_keys)
    if config.shared_state is None:
        return await _run_checks(config, home, file, offline, None)
    return await with_shared_accounts(
        config, partial(_run_checks, config, home, file, offline), connect=not offline
    )


async def _run_checks(
    config: Config,
    home: Path,
    file: str | None,
    offline: bool,
    open_credentials: OpenCredentials | None,
) -> list[Finding]:
    sandbox = SystemSandbox()
    isolated = replace(
        short_timeouts(config),
        account_state_file=None,
        rate_limits_file=None,
        shared_state=None,
        ledger=NO_LEDGER,
        store_responses=False,
        tracing=False,
    )
    backends = open_backends(isolated, build_pricing(isolated, build_catalog(isolated.model_rows)))
    if open_credentials is not None:
        backends = replace(backends, credentials=open_credentials)
    state = build_state(isolated, sandbox=sandbox, backends=backends)
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
        found += [
            Finding(CONFIGURATION, "base URL", "warning", notice) for notice in config.base_url_notices()
        ]
        found += await trio.to_thread.run_sync(system.check_files, config, home, file)
        found += [system.check_limits(config), await system.check_port(config, home)]
        found += [] if offline else await check_databases(config)
        found += await check_shared_state(config, offline=offline)
        states = {} if offline and config.shared_state else await _load_states(config)
        for account in state.relay.accounts.accounts:
            if account.identity in states:
                account.learned_rules.replace(states[account.identity].learned_rules)
        accounts = zip(entries, state.relay.accounts.accounts, strict=True)
        checks = [
            account_check(entry, account, state.relay, config, states.get(account.identity))
            for entry, account in accounts
        ]
        needs_sandbox = any(entry.sandbox != "none" for entry in (*config.tools, *config.mcp_servers))
        if offline:
            found += await tool_checks.check_sandbox(state.tool_runtime, sandbox, needs_sandbox)
            return [*found, *[finding for check in checks for finding in await check.offline()]]
        return found + await _run_concurrently(
            checks, partial(tool_checks.check_tools, state.tool_runtime, sandbox, needs_sandbox)
        )
    finally:
        with trio.CancelScope(shield=True):  # closing idle sockets cannot block
            await state.relay.transport.aclose()


async def _load_states(config: Config) -> Mapping[str, AccountState]:
    """Return the states of accounts that the servers have stored."""
    identities = [account.identity for account in config.all_accounts()]
    try:
        return await with_account_states(config, lambda store: store.load(identities)) or {}
    except StateStoreError:  # reported with the other files
        return {}


async def _run_concurrently(
    checks: list[AccountCheck], tools: Callable[[], Awaitable[list[Finding]]]
) -> list[Finding]:
    """Return the findings of the tools and of all accounts, in order."""
    reports: list[list[Finding]] = [[] for _ in range(len(checks) + 1)]

    async def check_tools(found: list[Finding]) -> None:
        found += await tools()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(with_timeout, tool_checks.AREA, check_tools, reports[0])
        for account, report in zip(checks, reports[1:], strict=True):
            nursery.start_soon(with_timeout, account.area, account.online, report)
    return [finding for report in reports for finding in report]


async def with_timeout(
    area: str, check: Callable[[list[Finding]], Awaitable[None]], found: list[Finding]
) -> None:
    """Run a check with a timeout of AREA_SECONDS; its findings until then are kept."""
    with trio.move_on_after(AREA_SECONDS) as scope:
        await check(found)
    if scope.cancelled_caught:
        text = f"not finished within {AREA_SECONDS:g} s"
        found.append(
            Finding(area, "time", "failed", text, "check whether the server is busy, and run the check again")
        )


async def check_url(
    config: Config, url: str, *, key: str | None, model: str | None, costs: bool = True
) -> list[Finding]:
    """Check one server; the settings give the proxy, the CA certificates and the timeouts."""
    transport, found = transport_setup.build_transport(short_timeouts(config)), list[Finding]()
    check = ConformanceCheck(url, transport, time.time, key, model, build_catalog(config.model_rows))
    try:
        await with_timeout(url, partial(check.all, costs=costs), found)
    finally:
        with trio.CancelScope(shield=True):
            await transport.aclose()
    return found


def short_timeouts(config: Config) -> Config:
    """Return the settings with upstream timeouts of at most RESPONSE_SECONDS."""
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
