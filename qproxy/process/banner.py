"""The text that `qproxy serve` prints once it accepts requests: its address, access and accounts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qproxy.accounts.condition import AccountCondition
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.system.exposure import is_loopback
from qproxy.version import VERSION

MAX_ACCOUNTS = 8
"""Number of accounts that are listed."""


def banner(
    config: Config, url: str, file: str | None, conditions: Mapping[str, AccountCondition], *, has_keys: bool
) -> str:
    """Return the lines for a server at `url` with the settings of `file`."""
    accounts = list(_accounts(config.all_accounts(), conditions))
    rows = [
        ("dashboard", f"{url}/dashboard"),
        ("settings", file or "no configuration file; flags, variables and defaults"),
        ("access", _access(config, has_keys=has_keys)),
        ("accounts", accounts[0]),
        *(("", account) for account in accounts[1:]),
        ("stop", "Ctrl+C"),
    ]
    lines = [f"qproxy {VERSION} listening on {url}/v1", *(f"  {name:<9}  {text}" for name, text in rows)]
    return "\n".join(lines)


def _access(config: Config, *, has_keys: bool) -> str:
    """Return who may send requests."""
    if has_keys:
        return "with an API key"
    if is_loopback(config.host):
        return "without an API key, from this machine only"
    return "without an API key, for everyone who reaches it (insecure_no_auth)"


def _accounts(accounts: Sequence[AccountConfig], conditions: Mapping[str, AccountCondition]) -> Iterator[str]:
    """Yield the name, the address and the state of the accounts."""
    for account in accounts[:MAX_ACCOUNTS]:
        address = "logged in" if account.kind == "oauth" else account.base_url
        condition = conditions.get(account.name)
        yield f"{account.name} → {address} ({condition.state if condition else 'unknown'})"
    if len(accounts) > MAX_ACCOUNTS:
        yield f"and {len(accounts) - MAX_ACCOUNTS} more (qproxy accounts)"
