"""The table of settings: one frozen `Config`.

The fields are the table: name, type, default and help; `groups` has them by theme. The flags of
`qproxy serve`, the `QPROXY_*` variables, the keys of `qproxy.toml` and `docs/configuration.md` are all
derived from it (`parsing`). A field of the type `tuple[Record, ...]` is an array of tables in the file, such
as `[[accounts]]`; it has no flag and no variable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from qproxy.config import checks
from qproxy.config.accounts import (
    AccountConfig,
    ConfigError,
    key_warnings,
    resolve_accounts,
)
from qproxy.config.fallbacks import FallbackConfig
from qproxy.config.groups import (
    AccessSettings,
    LoginSettings,
    MediaSettings,
    NetworkSettings,
    ResponseSettings,
    SharedStateSettings,
    TelemetrySettings,
    ToolSettings,
    TranslationSettings,
)
from qproxy.config.ledger import check_ledger
from qproxy.config.prices import PriceConfig
from qproxy.config.secret_values import secret_values
from qproxy.config.setting import record_type, setting
from qproxy.config.tools import McpServerConfig, ToolConfig, ToolRuleConfig
from qproxy.system.exposure import exposed_without_keys_message, is_loopback
from qproxy.wire.models import ModelRow

SERVER_SETTINGS = ("host", "port", "workers", "certfile", "keyfile")
"""Settings that only `qproxy serve`, and `qproxy.serve` in a program, apply."""


@dataclass(frozen=True)
class Config(
    ToolSettings,
    SharedStateSettings,
    TelemetrySettings,
    MediaSettings,
    ResponseSettings,
    LoginSettings,
    TranslationSettings,
    AccessSettings,
    NetworkSettings,
):
    """All settings; times are in seconds. The fields of the last base come first."""

    accounts: tuple[AccountConfig, ...] = setting((), "upstream accounts")
    tools: tuple[ToolConfig, ...] = setting((), "commands that models may call")
    mcp_servers: tuple[McpServerConfig, ...] = setting((), "MCP servers whose tools models may call")
    tool_rules: tuple[ToolRuleConfig, ...] = setting((), "which API keys and models get which tools")
    prices: tuple[PriceConfig, ...] = setting((), "model prices that override the built-in list")
    fallbacks: tuple[FallbackConfig, ...] = setting((), "models that serve requests whose own model cannot")
    model_rows: tuple[ModelRow, ...] = setting((), "model data that overrides the built-in catalog")

    def all_accounts(self) -> tuple[AccountConfig, ...]:
        """Return the accounts, `upstream` first. Raises ConfigError if there are none."""
        accounts = self.accounts
        if self.upstream is not None:
            extra = AccountConfig(
                "upstream", "openai_compatible", base_url=self.upstream, key=self.upstream_key
            )
            accounts = (extra, *accounts)
        return resolve_accounts(accounts)

    def check(self, has_keys: Callable[[Config], bool]) -> None:
        """Raise ConfigError if the settings conflict; `has_keys` reads whether there are API keys."""
        checks.check_server(self.workers, self.port)
        checks.check_root_path(self.root_path)
        checks.check_certificate(self.certfile, self.keyfile)
        self.check_address(self.host, has_keys)
        checks.check_admin_key(self.admin_key)
        check_ledger(self.ledger)
        for name in ("oauth_device_url", "oauth_token_url"):
            checks.check_identity_server(name, getattr(self, name))
        self.all_accounts()

    def for_app(self) -> Config:
        """Return the settings with the server's own at their defaults, for an app under another server."""
        defaults: dict[str, Any] = {name: SETTINGS[name].default for name in SERVER_SETTINGS}
        return dataclasses.replace(self, **defaults)

    def check_address(self, host: str, has_keys: Callable[[Config], bool]) -> None:
        """Raise ConfigError if listening on this name or address requires API keys and there are none."""
        checks.check_host(host)
        if not is_loopback(host) and not self.insecure_no_auth and not has_keys(self):
            raise ConfigError(exposed_without_keys_message(host))

    def secrets(self) -> set[str]:
        """Return every value that no log may show: those of the fields that a repr hides."""
        return set(secret_values(self))

    def base_url_notices(self) -> list[str]:
        """Return a notice for each account whose base_url was completed with /v1."""
        given = {"upstream": self.upstream, **{account.name: account.base_url for account in self.accounts}}
        return checks.base_url_notices(given, self.all_accounts())

    def warnings(self) -> list[str]:
        """Return warnings to log at startup."""
        warnings = [warning for account in self.all_accounts() for warning in key_warnings(account)]
        warnings += self.base_url_notices()
        if self.log_bodies:
            warnings.append("log_bodies is on: the log contains everyone's conversations.")
        return warnings


TYPES: dict[str, Any] = get_type_hints(Config)
"""The type of each field."""


TABLES: dict[str, Any] = {name: record for name, kind in TYPES.items() if (record := record_type(kind))}
"""The arrays of tables, with the record type of each."""
TABLE_FIELDS = {"models" if name == "model_rows" else name: name for name in TABLES}
"""Fields of the arrays of tables, by their names in the file; `models` may also be a list of strings."""
SETTINGS = {item.name: item for item in dataclasses.fields(Config) if item.name not in TABLES}
