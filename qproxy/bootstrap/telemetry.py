"""Who looks on while a server runs, put together from a `Config`: metrics, traces, the ledger.

Beside `serving`, and like it the only one that knows both the settings and the parts.  All of them are fed from one
place, the finished record (`observe.Counts`).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from qproxy.access.budgets import BudgetTracker
from qproxy.config import Config, data_dir
from qproxy.config.accounts import ConfigError
from qproxy.dashboard import DashboardRoutes
from qproxy.ledger import Pricing, UsageLedger
from qproxy.ledger.prices import ModelPrice, PriceTier
from qproxy.server import Server
from qproxy.server.request_policy import Access
from qproxy.server.routes.metrics import METRICS_QUERY, MetricsRoutes
from qproxy.telemetry.body_log import BodyLogger
from qproxy.telemetry.peers import Peers, find_peer_directory
from qproxy.telemetry.redaction import Redactor

NO_LEDGER = "none"
SINGAPORE = ("dashscope-intl.aliyuncs.com", ".ap-southeast-1.maas.aliyuncs.com")
"""The hosts that the prices of the package are about."""


def add_telemetry(server: Server, config: Config, workers_directory: Path | None = None) -> None:
    """Have everybody who looks on hear of the server's requests.  `meeting`: where its siblings are, if it is a worker."""
    dashboard = DashboardRoutes(server)
    server.route_groups.append(dashboard)
    server.background.append(dashboard.forget_other_keys)
    peers = Peers(workers_directory or find_peer_directory(data_dir()))
    monitoring = MetricsRoutes(server, peers, Access(config.metrics_access))
    peers.handlers[METRICS_QUERY] = monitoring.answer
    server.route_groups.append(monitoring)
    server.counters.listeners.append(monitoring.metrics.record)
    server.background.append(peers.listen)
    if config.ledger not in (None, NO_LEDGER):
        _build_ledger(server, Path(config.ledger), config.ledger_days)
    if config.tracing:
        _add_tracer(server)


def _build_ledger(server: Server, path: Path, days: int) -> None:
    """Keep a ledger, and hold budgets against it."""
    server.ledger = ledger = UsageLedger(path, server.pricing, keep_days=days)
    server.budgets = BudgetTracker(ledger)
    server.counters.listeners.append(ledger.record)
    server.background.append(ledger.run)


def build_pricing(config: Config) -> Pricing:
    """The operator's prices, and the accounts for which the package's list holds: those of its region and plan."""
    own = {
        price.model: ModelPrice((PriceTier(price.input, price.output, price.cached),))
        for price in config.prices
    }
    listed_for = [
        account.name
        for account in config.all_accounts()
        if account.kind == "key"
        and account.plan in (None, "payg")
        and (urlsplit(account.base_url or "").hostname or "").endswith(SINGAPORE)
    ]
    return Pricing(own, listed_for)


def _add_tracer(server: Server) -> None:
    try:
        from qproxy.telemetry import tracing

        tracer = tracing.exporting()
    except ImportError:
        raise ConfigError("tracing needs OpenTelemetry: pip install 'qproxy[otel]'") from None
    server.middleware.tracer = tracer
    server.counters.listeners.append(tracing.end_span)
    server.background.append(tracer.run)


def build_body_logger(config: Config) -> BodyLogger | None:
    """Where requests and answers are logged; nowhere unless the operator asks for it."""
    return BodyLogger(Redactor(config.secrets())) if config.log_bodies else None
