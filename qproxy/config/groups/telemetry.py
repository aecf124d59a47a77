"""Logs, metrics, traces and the usage ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qproxy.config.setting import setting


@dataclass(frozen=True)
class TelemetrySettings:
    """Logs, metrics, traces and the usage ledger."""

    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "minimum level to log")
    log_format: Literal["auto", "json", "text"] = setting(
        "auto", "format of log lines; auto is text on a terminal, JSON otherwise"
    )
    log_bodies: bool = setting(
        False,
        "log request and response texts, without secrets and images: this includes everyone's conversations",
    )
    metrics_access: Literal["admin", "key", "open"] = setting(
        "admin", "who may read /metrics: the admin (see admin_key), any API key, or anyone"
    )
    ledger: str | None = setting(
        None,
        "file of the usage ledger, or the postgresql:// URL of one for several machines; default "
        "ledger.sqlite3 in the data directory, `none` disables it",
        secret="url",
    )
    ledger_password_file: str | None = setting(
        None, "file with the password for the ledger's database, instead of a password in the URL"
    )
    ledger_spool_file: str | None = setting(
        None,
        "file of the requests that the ledger's database has not taken yet; default ledger-spool.sqlite3 in "
        "the data directory",
    )
    exchange_rates: dict[str, float] = setting(
        {}, "US dollars for one unit of other currencies of prices, such as `CNY=0.14`"
    )
    unpriced_models: Literal["refuse", "allow"] = setting(
        "refuse", "requests for models without a known price by keys with a budget in money"
    )
    ledger_timeout: float = setting(
        3.0, "maximum seconds to connect to the ledger's database, and for a statement there"
    )
    ledger_retention_days: int = setting(
        90, "days to keep requests in the usage ledger; 0 keeps them forever"
    )
    tracing: bool = setting(
        False, "export OpenTelemetry traces as the OTEL_* variables say; requires the extra `otel`"
    )
