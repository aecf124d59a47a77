"""Check of the server of the setting `shared_state`.

It reports whether the server can be used, what it keeps, the encryption, the user's rights and the clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qproxy.backends.factory import SharedStateFailure, probe_shared_state
from qproxy.config import Config
from qproxy.diagnostics.report import Finding

if TYPE_CHECKING:
    from qproxy.backends.redis.report import ServerReport

AREA = "shared state"
MAX_CLOCK_DIFFERENCE = 5.0
"""Seconds."""


async def check_shared_state(config: Config, *, offline: bool) -> list[Finding]:
    """Return what can be found out about the server; nothing without the setting."""
    if config.shared_state is None:
        return []
    if offline:
        return [Finding(AREA, "server", "skipped", "not contacted (--offline)")]
    try:
        report = await probe_shared_state(config)
    except SharedStateFailure as error:
        advice = f"the server runs without it as shared_state_policy ({config.shared_state_policy}) demands"
        return [Finding(AREA, "server", "failed", str(error), advice)]
    return [
        _server(report),
        _eviction(report),
        _persistence(report),
        *_access(report),
        _clock(report),
        *_sealed(config),
    ]


def _server(report: ServerReport) -> Finding:
    versions, roles = ", ".join(sorted(set(report.versions))), Counter(report.roles)
    kinds = [role if count == 1 else f"{count} {role}s" for role, count in roles.items()]
    count = f"{report.processes} {'process' if report.processes == 1 else 'processes'} of qproxy connected"
    others = sorted({(each.machine, each.version) for each in report.replicas})
    seen = "".join(f"; {machine}: {version}" for machine, version in others)
    return Finding(AREA, "server", "ok", f"version {versions}, {', '.join(kinds)}, {count}{seen}")


def _eviction(report: ServerReport) -> Finding:
    wrong = sorted({policy for policy in report.evictions if policy != "noeviction"})
    if not wrong:
        return Finding(AREA, "eviction", "ok", "maxmemory-policy is noeviction")
    advice = "set it to noeviction: any other one drops limits and budgets when memory is full"
    return Finding(AREA, "eviction", "warning", f"maxmemory-policy is {', '.join(wrong)}", advice)


def _persistence(report: ServerReport) -> Finding:
    if report.persistent:
        return Finding(AREA, "persistence", "ok", "the append-only file is on")
    advice = "set appendonly to yes: without it a restart leaves budgets to what the ledgers know"
    return Finding(AREA, "persistence", "warning", "the append-only file is off", advice)


def _access(report: ServerReport) -> Iterator[Finding]:
    """Yield what the network and the server's user allow."""
    if report.encrypted:
        yield Finding(AREA, "encryption", "ok", "TLS, or a connection within this machine")
    else:
        advice = "use rediss:// unless the network is trusted: the password is sent in the clear"
        yield Finding(AREA, "encryption", "warning", "the connection is not encrypted", advice)
    if report.missing_commands:
        names = ", ".join(report.missing_commands)
        advice = (
            "allow them, for all keys and channels of shared_state_prefix; docs/scaling.md has such a user"
        )
        yield Finding(AREA, "rights", "failed", f"the user may not use: {names}", advice)
    else:
        yield Finding(AREA, "rights", "ok", "the user may use all commands that are needed")


def _sealed(config: Config) -> Iterator[Finding]:
    """Yield what is not shared because it cannot be encrypted."""
    if config.store_responses and config.shared_state_key_file is None:
        message = "each machine has its own: another one cannot continue them"
        advice = "set shared_state_key_file, the same on every machine, or store_responses = false"
        yield Finding(AREA, "responses", "warning", message, advice)


def _clock(report: ServerReport) -> Finding:
    seconds, direction = abs(report.clock_difference), "ahead" if report.clock_difference > 0 else "behind"
    text = f"the server's clock is {seconds:.1f} s {direction}"
    if seconds < MAX_CLOCK_DIFFERENCE:
        return Finding(AREA, "clock", "ok", text)
    advice = (
        "limits are not affected, but tokens and API keys expire by this machine's clock: run NTP on both"
    )
    return Finding(AREA, "clock", "warning", text, advice)
