"""`/metrics`: the metrics of this process and of the other workers behind the same address.

Gauges are read here from the server's parts on request; counters are fed from finished records
(`telemetry.metrics`).  `telemetry.peers` queries the other workers.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator

from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import AccountStatus
from qproxy.ledger import LedgerError
from qproxy.ledger.rows import charge_of
from qproxy.server import health
from qproxy.server.http_response import HTTPResponse
from qproxy.server.replicas import SharedStateStatistics
from qproxy.server.state import Route, StateHolder
from qproxy.telemetry import RequestRecord
from qproxy.telemetry.metrics import Metrics, Values, exposition
from qproxy.version import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DASHBOARD = "/dashboard"
METRICS_QUERY = "metrics"


class MetricsRoutes:
    """Serve and answer metrics."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server
        self._metrics = Metrics(self.known_labels)
        self._metrics.read(
            {
                "qproxy_requests_in_flight": lambda: [((), len(server.state.counters.in_flight))],
                "qproxy_requests_admitted": lambda: [((), server.state.concurrency.in_use)],
                "qproxy_requests_waiting": lambda: [
                    (("server",), server.state.concurrency.queue_size),
                    (("account",), server.state.relay.accounts.queue_size),
                ],
                "qproxy_requests_rejected_total": lambda: [((), server.state.concurrency.rejected)],
                "qproxy_health": self._health,
                "qproxy_account_state": self._account_states,
                "qproxy_account_last_success_timestamp_seconds": self._last_successes,
                "qproxy_build_info": lambda: [((VERSION, platform.python_version()), 1.0)],
                "qproxy_account_requests_in_flight": self._account_requests,
                "qproxy_token_refreshes_total": self._refreshes,
                "qproxy_token_refresh_failures": self._refresh_failures,
                "qproxy_token_expiry_timestamp_seconds": self._expiries,
                "qproxy_upstream_connections": self._connections,
                "qproxy_upstream_connections_made_total": self._connections_opened,
                "qproxy_stored_responses_total": self._stored_responses,
                "qproxy_shared_state_up": lambda: self._shared_state(
                    lambda found: [((), float(found.is_connected))]
                ),
                "qproxy_shared_state_outbox": lambda: self._shared_state(lambda found: [((), found.outbox)]),
                "qproxy_shared_state_commands_total": lambda: self._shared_state(
                    lambda found: [((outcome,), count) for outcome, count in found.commands.items()]
                ),
                "qproxy_shared_state_seconds_total": lambda: self._shared_state(
                    lambda found: [((), found.seconds)]
                ),
            }
        )

    def routes(self) -> Iterator[Route]:
        yield Route("/metrics", ("GET",), self._view, self._server.state.metrics_access, versioned=False)

    async def _view(self) -> HTTPResponse:
        others = [
            json.loads(answer) for answer in await self._server.state.peers.query(METRICS_QUERY) if answer
        ]
        budgets = await self._budgets()
        self._metrics.read({"qproxy_key_budget_remaining": lambda: budgets})
        return HTTPResponse(exposition([self._metrics.families(), *others]), content_type=CONTENT_TYPE)

    def record(self, record: RequestRecord) -> None:
        """Count a finished request, unless it is the dashboard's own."""
        if not record.endpoint.startswith(DASHBOARD):
            charge = charge_of(record, self._server.state.pricing)
            full = None if charge is None else charge.full_cost
            self._metrics.record(record, None if charge is None else charge.cost, full)

    def answer(self) -> bytes:
        """Return this process's metrics for another worker."""
        return json.dumps(self._metrics.families()).encode()

    def known_labels(self, model: str) -> bool:
        """Return whether the model is configured or listed by an upstream; other names do not become
        labels."""
        relay = self._server.state.relay
        return (
            model in relay.policy.catalog
            or model == self._server.state.default_model
            or self._server.state.model_directory.is_configured(model)
            or model in relay.policy.aliases.names
            or any(
                model in (a.known_models or a.models) or model in a.models for a in relay.accounts.accounts
            )
        )

    def _health(self) -> Values:
        now = self._server.state.health().state
        return [((state,), float(state == now)) for state in health.STATES]

    def _account_states(self) -> Values:
        return [((name, state), 1.0) for name, state in self._server.state.account_states().items()]

    def _account_requests(self) -> Values:
        return [
            ((account.name,), account.in_flight) for account in self._server.state.relay.accounts.accounts
        ]

    def _login_states(self) -> dict[str, AccountStatus]:
        """Return the status of the accounts whose tokens are refreshed."""
        accounts = self._server.state.relay.accounts.accounts
        return {a.name: a.source.status() for a in accounts if isinstance(a.source, OAuthSource)}

    def _refreshes(self) -> Values:
        return [((name,), status.refreshes) for name, status in self._login_states().items()]

    def _refresh_failures(self) -> Values:
        return [((name,), status.failures) for name, status in self._login_states().items()]

    def _expiries(self) -> Values:
        expiries = {name: status.expires_at for name, status in self._login_states().items()}
        return [((name,), expiry) for name, expiry in expiries.items() if expiry is not None]

    def _last_successes(self) -> Values:
        accounts = self._server.state.relay.accounts.accounts
        return [((a.name,), a.last_success_at) for a in accounts if a.last_success_at is not None]

    async def _budgets(self) -> Values:
        """Return the rest of every key's budgets, by the ledger, which all workers share."""
        ledger, now = self._server.state.ledger, time.time()
        keys = [key for key in self._server.state.authentication.api_keys.list_keys() if key.budgets]
        windows = sorted({budget.window for key in keys for budget in key.budgets})
        if ledger is None or not keys:
            return []
        try:
            rows = await ledger.usage_by("key", windows, now)
        except LedgerError:
            return []
        used = {(row.name, window): row.amounts for window, found in rows.items() for row in found}
        return [
            (
                (key.label, budget.window, unit),
                max(0.0, limit - used.get((key.label, budget.window), {}).get(unit, 0)),
            )
            for key in keys
            if key.status(now) == "active"
            for budget in key.budgets
            for unit, limit in budget.limits.items()
        ]

    def _shared_state(self, values: Callable[[SharedStateStatistics], Values]) -> Values:
        """Return values of the server that machines share; none without one."""
        monitor = self._server.state.shared_state
        return [] if monitor is None else values(monitor.statistics())

    def _connections(self) -> Values:
        pool = self._server.state.relay.transport.statistics()
        return [(("busy",), pool.open - pool.idle), (("idle",), pool.idle)]

    def _connections_opened(self) -> Values:
        return [((), self._server.state.relay.transport.statistics().created)]

    def _stored_responses(self) -> Values:
        if self._server.state.responses is None:
            return []
        store = self._server.state.responses.statistics()
        return [(("kept",), store.saved), (("discarded",), store.discarded), (("failed",), store.failed)]
