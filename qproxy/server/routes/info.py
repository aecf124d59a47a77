"""Routes without a model request: the list of models, health, and the description of the server."""

from __future__ import annotations

from collections.abc import Iterator

from quart import current_app, request

from qproxy.server import request_context
from qproxy.server.authentication import Access
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.state import Route, StateHolder


class InfoRoutes:
    """List models, report health, describe the server."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route("/models", ("GET",), self._models)
        yield Route("/models/<path:name>", ("GET",), self._model)
        for path, view in (("/livez", self._livez), ("/readyz", self._readyz), ("/", self._root)):
            yield Route(path, ("GET",), view, Access.OPEN, versioned=False)

    async def _models(self) -> HTTPResponse:
        state, key = self._server.state, request_context.api_key()
        found = await state.model_directory.models()
        allowed = [model for model in found if state.authentication.allows(key, model.id)]
        return json_response(request_context.api().model_list(allowed, request.args))

    async def _model(self, name: str) -> HTTPResponse:
        state = self._server.state
        aliases = state.relay.policy.aliases
        state.authentication.authorize_model(request_context.api_key(), aliases.resolve(name))
        state.relay.names.route(name)  # the same 404 for a retired model as in a chat
        model = await state.model_directory.model(name)
        return json_response(request_context.api().model_object(model))

    async def _livez(self) -> HTTPResponse:
        return json_response({"status": "ok"})

    async def _readyz(self) -> HTTPResponse:
        health = self._server.state.health()
        status = "ok" if health.ready else health.state
        body = {"status": status, "accounts": health.accounts, "usable": health.usable}
        return json_response(body, 200 if health.ready else 503)

    async def _root(self) -> HTTPResponse:
        paths = {rule.rule for rule in current_app.url_map.iter_rules() if "<" not in rule.rule}
        return json_response(
            {"name": "qproxy", "endpoints": sorted(path for path in paths if path.startswith("/v1/"))}
        )
