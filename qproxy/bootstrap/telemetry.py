"""Who looks on while a server runs, put together from a `Config`: metrics, traces, the ledger.

Beside `serving`, and like it the only one that knows both the settings and the parts.  All of them are fed from one
place, the finished record (`observe.Counts`).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from qproxy.access.budgets import Budgets
from qproxy.config import Config, home
from qproxy.config.accounts import ConfigError
from qproxy.dashboard import Dashboard
from qproxy.ledger import Ledger, Pricing
from qproxy.ledger.prices import Price, Tier
from qproxy.server import Server
from qproxy.server.request_policy import Access
from qproxy.server.routes.metrics import QUESTION, Monitoring
from qproxy.telemetry.body_log import Bodies
from qproxy.telemetry.peers import Siblings, family
from qproxy.telemetry.redaction import Redactor

NO_LEDGER = "none"
SINGAPORE = ("dashscope-intl.aliyuncs.com", ".ap-southeast-1.maas.aliyuncs.com")
"""The hosts that the prices of the package are about."""


def watch(server: Server, config: Config, meeting: Path | None = None) -> None:
    """Have everybody who looks on hear of the server's requests.  `meeting`: where its siblings are, if it is a worker."""
    dashboard = Dashboard(server)
    server.families.append(dashboard)
    server.background.append(dashboard.forget_other_keys)
    siblings = Siblings(meeting or family(home()))
    monitoring = Monitoring(server, siblings, Access(config.metrics_access))
    siblings.answers[QUESTION] = monitoring.answer
    server.families.append(monitoring)
    server.counts.listeners.append(monitoring.metrics.finished)
    server.background.append(siblings.listen)
    if config.ledger not in (None, NO_LEDGER):
        _keep(server, Path(config.ledger), config.ledger_days)
    if config.tracing:
        _trace(server)


def _keep(server: Server, path: Path, days: int) -> None:
    """Keep a ledger, and hold budgets against it."""
    server.ledger = ledger = Ledger(path, server.pricing, keep_days=days)
    server.budgets = Budgets(ledger)
    server.counts.listeners.append(ledger.finished)
    server.background.append(ledger.until_cancelled)


def pricing(config: Config) -> Pricing:
    """The operator's prices, and the accounts for which the package's list holds: those of its region and plan."""
    own = {price.model: Price((Tier(price.input, price.output, price.cached),)) for price in config.prices}
    listed_for = [
        account.name
        for account in config.all_accounts()
        if account.kind == "key"
        and account.plan in (None, "payg")
        and (urlsplit(account.base_url or "").hostname or "").endswith(SINGAPORE)
    ]
    return Pricing(own, listed_for)


def _trace(server: Server) -> None:
    try:
        from qproxy.telemetry import tracing

        tracer = tracing.exporting()
    except ImportError:
        raise ConfigError("tracing needs OpenTelemetry: pip install 'qproxy[otel]'") from None
    server.around.tracer = tracer
    server.counts.listeners.append(tracing.ended)
    server.background.append(tracer.until_cancelled)


def bodies(config: Config) -> Bodies | None:
    """Where requests and answers are logged; nowhere unless the operator asks for it."""
    return Bodies(Redactor(config.secrets())) if config.log_bodies else None
