"""Routes that ask no model: the list of models, health, and what this server is."""

from __future__ import annotations

from collections.abc import Iterator

from quart import current_app

from qproxy.server import request_context as current
from qproxy.server.http_response import Reply, json
from qproxy.server.request_policy import Access
from qproxy.server.state import Parts, Route
from qproxy.wire.endpoints import models

QUIET = ("/livez", "/readyz", "/metrics")
"""Asked every few seconds by machines: no log line."""


class Plain:
    """The views and their routes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> Iterator[Route]:
        yield Route("/models", ("GET",), self._models)
        yield Route("/models/<path:name>", ("GET",), self._model)
        for path, view in (("/livez", self._livez), ("/readyz", self._readyz), ("/", self._root)):
            yield Route(path, ("GET",), view, Access.OPEN, versioned=False)

    async def _models(self) -> Reply:
        found, key = await self._parts.discovery.models(), current.client()
        return json(models.listing([model for model in found if self._parts.door.allows(key, model.id)]))

    async def _model(self, name: str) -> Reply:
        self._parts.door.check_model(current.client(), name)
        found = await self._parts.discovery.models()
        return json(models.one(found, name, self._parts.relay.policy.aliases))

    async def _livez(self) -> Reply:
        return json({"status": "ok"})

    async def _readyz(self) -> Reply:
        health = self._parts.health()
        status = "ok" if health.ready else health.state
        body = {"status": status, "accounts": health.accounts, "usable": health.usable}
        return json(body, 200 if health.ready else 503)

    async def _root(self) -> Reply:
        paths = {rule.rule for rule in current_app.url_map.iter_rules() if "<" not in rule.rule}
        return json(
            {"name": "qproxy", "endpoints": sorted(path for path in paths if path.startswith("/v1/"))}
        )
