"""Observers of a server's requests, from a `Config`: the usage ledger, traces, the body log.

Prices are the operator's before the package's, which apply to the accounts of their region and plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.prices import PriceConfig
from qproxy.ledger import Pricing, UsageLedger
from qproxy.ledger.prices import ModelPrice, PriceTier, list_price
from qproxy.ledger.units import UNITS
from qproxy.system.extras import install_command
from qproxy.telemetry.body_log import BodyLogger
from qproxy.telemetry.counters import Listener
from qproxy.telemetry.redaction import Redactor
from qproxy.wire.models import ModelCatalog

if TYPE_CHECKING:
    from qproxy.telemetry.tracing import OtelTracer

SINGAPORE = ("dashscope-intl.aliyuncs.com", ".ap-southeast-1.maas.aliyuncs.com")
"""The hosts that the package's price list applies to."""


def build_pricing(config: Config, catalog: ModelCatalog) -> Pricing:
    """Return the operator's prices, with the accounts that the package's list applies to: those of its region
    and plan."""
    own = {price.model: _own_price(price, catalog.price_terms) for price in config.prices}
    for row in config.model_rows:
        price = list_price(row.prices or (), catalog.price_terms)
        if price is not None:
            own.setdefault(row.id, price)
    listed_for = [
        account.name
        for account in config.all_accounts()
        if account.kind == "key"
        and account.plan in (None, "payg")
        and (urlsplit(account.base_url or "").hostname or "").endswith(SINGAPORE)
    ]
    rates = {currency.upper(): rate for currency, rate in config.exchange_rates.items()}
    return Pricing(own, listed_for, catalog, rates)


def _own_price(price: PriceConfig, terms: Mapping[str, Any]) -> ModelPrice:
    """Return the price of a [[prices]] table. Raises ConfigError without a price, or with half of one."""
    units = {unit: value for unit in UNITS if (value := getattr(price, unit)) is not None}
    if price.input is None and price.output is None and price.cached is None and units:
        return ModelPrice((), terms, units, price.currency.upper())
    if price.input is None or price.output is None:
        raise ConfigError(f"[[prices]]: model {price.model!r}: a price of tokens has an input and an output.")
    tier = PriceTier(price.input, price.output, price.cached)
    return ModelPrice((tier,), terms, units, price.currency.upper())


def build_tracer(config: Config) -> OtelTracer | None:
    """Return the tracer, or None unless `tracing` is on.  Raises ConfigError without OpenTelemetry."""
    if not config.tracing:
        return None
    try:
        from qproxy.telemetry import tracing

        return tracing.exporting()
    except ImportError:
        raise ConfigError(f"tracing requires OpenTelemetry: {install_command('otel')}") from None


def build_listeners(ledger: UsageLedger | None, tracer: OtelTracer | None) -> tuple[Listener, ...]:
    """Return the listeners for finished requests."""
    found: list[Listener] = []
    if ledger is not None:
        found.append(ledger.record)
    if tracer is not None:
        from qproxy.telemetry import tracing

        found.append(tracing.end_span)
    return tuple(found)


def build_redact(config: Config) -> Callable[[str], str]:
    """Return a function that hides secrets in messages that are stored; built at the first failure."""
    redactor = cache(lambda: Redactor(config.secrets()))
    return lambda text: redactor().text(text)


def build_body_logger(config: Config) -> BodyLogger | None:
    """Return the log of request and response bodies, or None unless `log_bodies` is on."""
    return BodyLogger(Redactor(config.secrets())) if config.log_bodies else None
