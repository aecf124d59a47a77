"""`/metrics`: the numbers of this process and of its siblings behind the same address, and where gauges are read.

Here: what the server's parts say of themselves when somebody asks.  Not here: what records add up to
(`observe.metrics`), who the siblings are (`siblings`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import Status
from qproxy.server import health
from qproxy.server.http_response import Reply
from qproxy.server.request_policy import Access
from qproxy.server.state import Parts, Route
from qproxy.telemetry.metrics import Metrics, Values, exposition
from qproxy.telemetry.peers import Siblings
from qproxy.wire.dialects import model_catalog as catalogue

TEXT = "text/plain; version=0.0.4; charset=utf-8"
QUESTION = "metrics"


class Monitoring:
    """The view and its route."""

    def __init__(self, parts: Parts, siblings: Siblings, access: Access = Access.ADMIN) -> None:
        self._parts = parts
        self._siblings = siblings
        self._access = access
        self.metrics = Metrics(self.known)
        self.metrics.read(
            {
                "qproxy_requests_in_flight": lambda: [((), len(parts.counts.live))],
                "qproxy_requests_admitted": lambda: [((), parts.admission.taken)],
                "qproxy_requests_waiting": lambda: [
                    (("place",), parts.admission.waiting),
                    (("account",), parts.relay.accounts.waiting),
                ],
                "qproxy_requests_refused_total": lambda: [((), parts.admission.refused)],
                "qproxy_health": self._health,
                "qproxy_account_state": self._account_states,
                "qproxy_account_requests_in_flight": self._account_requests,
                "qproxy_token_refreshes_total": self._refreshes,
                "qproxy_token_refresh_failures": self._refresh_failures,
                "qproxy_token_expiry_timestamp_seconds": self._expiries,
                "qproxy_upstream_connections": self._connections,
                "qproxy_upstream_connections_made_total": self._made,
                "qproxy_stored_responses_total": self._stored,
            }
        )

    def routes(self) -> Iterator[Route]:
        yield Route("/metrics", ("GET",), self._view, self._access, versioned=False)

    async def _view(self) -> Reply:
        others = [json.loads(answer) for answer in await self._siblings.ask(QUESTION) if answer]
        return Reply(exposition([self.metrics.families(), *others]), content_type=TEXT)

    def answer(self) -> bytes:
        """This process's numbers, for a sibling."""
        return json.dumps(self.metrics.families()).encode()

    def known(self, model: str) -> bool:
        """Whether somebody configured the model or a server listed it: others are no labels."""
        relay = self._parts.relay
        return (
            model in catalogue.MODELS
            or model in relay.policy.aliases.names
            or any(
                model in (a.known_models or a.models) or model in a.models for a in relay.accounts.accounts
            )
        )

    def _health(self) -> Values:
        now = self._parts.health().state
        return [((state,), float(state == now)) for state in health.STATES]

    def _account_states(self) -> Values:
        return [((name, state), 1.0) for name, state in self._parts.account_states().items()]

    def _account_requests(self) -> Values:
        return [((account.name,), account.in_flight) for account in self._parts.relay.accounts.accounts]

    def _signed_in(self) -> dict[str, Status]:
        """The accounts whose tokens are renewed here."""
        accounts = self._parts.relay.accounts.accounts
        return {a.name: a.source.status() for a in accounts if isinstance(a.source, OAuthSource)}

    def _refreshes(self) -> Values:
        return [((name,), status.refreshes) for name, status in self._signed_in().items()]

    def _refresh_failures(self) -> Values:
        return [((name,), status.failures) for name, status in self._signed_in().items()]

    def _expiries(self) -> Values:
        return [((name,), status.expires_at or 0.0) for name, status in self._signed_in().items()]

    def _connections(self) -> Values:
        pool = self._parts.relay.transport.statistics()
        return [(("busy",), pool.open - pool.idle), (("idle",), pool.idle)]

    def _made(self) -> Values:
        return [((), self._parts.relay.transport.statistics().made)]

    def _stored(self) -> Values:
        if self._parts.store is None:
            return []
        store = self._parts.store.statistics()
        return [(("kept",), store.kept), (("discarded",), store.discarded), (("failed",), store.failed)]
