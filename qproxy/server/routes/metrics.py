"""`/metrics`: the numbers of this process and of its siblings behind the same address, and where gauges are read.

Here: what the server's parts say of themselves when somebody asks.  Not here: what records add up to
(`observe.metrics`), who the siblings are (`siblings`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import AccountStatus
from qproxy.server import health
from qproxy.server.http_response import HTTPResponse
from qproxy.server.request_policy import Access
from qproxy.server.state import Route, ServerState
from qproxy.telemetry.metrics import Metrics, Values, exposition
from qproxy.telemetry.peers import Peers
from qproxy.wire.dialects import model_catalog

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METRICS_QUERY = "metrics"


class MetricsRoutes:
    """The view and its route."""

    def __init__(self, state: ServerState, peers: Peers, access: Access = Access.ADMIN) -> None:
        self._state = state
        self._peers = peers
        self._access = access
        self.metrics = Metrics(self.known_labels)
        self.metrics.read(
            {
                "qproxy_requests_in_flight": lambda: [((), len(state.counters.in_flight))],
                "qproxy_requests_admitted": lambda: [((), state.concurrency.in_use)],
                "qproxy_requests_waiting": lambda: [
                    (("place",), state.concurrency.queue_size),
                    (("account",), state.relay.accounts.queue_size),
                ],
                "qproxy_requests_refused_total": lambda: [((), state.concurrency.rejected)],
                "qproxy_health": self._health,
                "qproxy_account_state": self._account_states,
                "qproxy_account_requests_in_flight": self._account_requests,
                "qproxy_token_refreshes_total": self._refreshes,
                "qproxy_token_refresh_failures": self._refresh_failures,
                "qproxy_token_expiry_timestamp_seconds": self._expiries,
                "qproxy_upstream_connections": self._connections,
                "qproxy_upstream_connections_made_total": self._connections_opened,
                "qproxy_stored_responses_total": self._stored_responses,
            }
        )

    def routes(self) -> Iterator[Route]:
        yield Route("/metrics", ("GET",), self._view, self._access, versioned=False)

    async def _view(self) -> HTTPResponse:
        others = [json.loads(answer) for answer in await self._peers.query(METRICS_QUERY) if answer]
        return HTTPResponse(exposition([self.metrics.families(), *others]), content_type=CONTENT_TYPE)

    def answer(self) -> bytes:
        """This process's numbers, for a sibling."""
        return json.dumps(self.metrics.families()).encode()

    def known_labels(self, model: str) -> bool:
        """Whether somebody configured the model or a server listed it: others are no labels."""
        relay = self._state.relay
        return (
            model in model_catalog.MODELS
            or model in relay.policy.aliases.names
            or any(
                model in (a.known_models or a.models) or model in a.models for a in relay.accounts.accounts
            )
        )

    def _health(self) -> Values:
        now = self._state.health().state
        return [((state,), float(state == now)) for state in health.STATES]

    def _account_states(self) -> Values:
        return [((name, state), 1.0) for name, state in self._state.account_states().items()]

    def _account_requests(self) -> Values:
        return [((account.name,), account.in_flight) for account in self._state.relay.accounts.accounts]

    def _login_states(self) -> dict[str, AccountStatus]:
        """The accounts whose tokens are renewed here."""
        accounts = self._state.relay.accounts.accounts
        return {a.name: a.source.status() for a in accounts if isinstance(a.source, OAuthSource)}

    def _refreshes(self) -> Values:
        return [((name,), status.refreshes) for name, status in self._login_states().items()]

    def _refresh_failures(self) -> Values:
        return [((name,), status.failures) for name, status in self._login_states().items()]

    def _expiries(self) -> Values:
        return [((name,), status.expires_at or 0.0) for name, status in self._login_states().items()]

    def _connections(self) -> Values:
        pool = self._state.relay.transport.statistics()
        return [(("busy",), pool.open - pool.idle), (("idle",), pool.idle)]

    def _connections_opened(self) -> Values:
        return [((), self._state.relay.transport.statistics().created)]

    def _stored_responses(self) -> Values:
        if self._state.responses is None:
            return []
        store = self._state.responses.statistics()
        return [(("kept",), store.saved), (("discarded",), store.discarded), (("failed",), store.failed)]
