"""Routes that ask no model: the list of models, health, and what this server is."""

from __future__ import annotations

from collections.abc import Iterator

from quart import current_app

from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_policy import Access
from qproxy.server.state import Route, ServerState
from qproxy.wire.endpoints import models

UNLOGGED_INFO_PATHS = ("/livez", "/readyz", "/metrics")
"""Asked every few seconds by machines: no log line."""


class InfoRoutes:
    """The views and their routes."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> Iterator[Route]:
        yield Route("/models", ("GET",), self._models)
        yield Route("/models/<path:name>", ("GET",), self._model)
        for path, view in (("/livez", self._livez), ("/readyz", self._readyz), ("/", self._root)):
            yield Route(path, ("GET",), view, Access.OPEN, versioned=False)

    async def _models(self) -> HTTPResponse:
        found, key = await self._state.model_directory.models(), request_context.api_key()
        return json_response(
            models.model_list([model for model in found if self._state.policy.allows(key, model.id)])
        )

    async def _model(self, name: str) -> HTTPResponse:
        self._state.policy.authorize_model(request_context.api_key(), name)
        found = await self._state.model_directory.models()
        return json_response(models.model_object(found, name, self._state.relay.policy.aliases))

    async def _livez(self) -> HTTPResponse:
        return json_response({"status": "ok"})

    async def _readyz(self) -> HTTPResponse:
        health = self._state.health()
        status = "ok" if health.ready else health.state
        body = {"status": status, "accounts": health.accounts, "usable": health.usable}
        return json_response(body, 200 if health.ready else 503)

    async def _root(self) -> HTTPResponse:
        paths = {rule.rule for rule in current_app.url_map.iter_rules() if "<" not in rule.rule}
        return json_response(
            {"name": "qproxy", "endpoints": sorted(path for path in paths if path.startswith("/v1/"))}
        )
