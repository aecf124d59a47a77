"""Check of the server of the setting `shared_state`."""

from __future__ import annotations

from qproxy.backends.factory import SharedStateFailure, probe_shared_state
from qproxy.config import Config
from qproxy.diagnostics.report import Finding

AREA = "shared state"


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
    count = f"{report.processes} {'process' if report.processes == 1 else 'processes'} of qproxy connected"
    found = [Finding(AREA, "server", "ok", f"version {report.version}, {report.role}, {count}")]
    if report.eviction == "noeviction":
        found.append(Finding(AREA, "eviction", "ok", "maxmemory-policy is noeviction"))
    else:
        advice = "set it to noeviction: any other one drops limits and budgets when memory is full"
        found.append(Finding(AREA, "eviction", "warning", f"maxmemory-policy is {report.eviction}", advice))
    if report.persistent:
        found.append(Finding(AREA, "persistence", "ok", "the append-only file is on"))
    else:
        advice = "set appendonly to yes: without it a restart leaves budgets to what the ledgers know"
        found.append(Finding(AREA, "persistence", "warning", "the append-only file is off", advice))
    return found
