"""This server in OpenAPI 3.1, at `/openapi.json`: written from the routes themselves, so that none can be missing.

Here: the document and its route.  Not here: what a body must look like (`wire.endpoints.bodies`).
`document` is pure: the same routes give the same document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_policy import JSON_TYPE, Access
from qproxy.server.state import Route, RouteGroup, ServerState
from qproxy.version import VERSION
from qproxy.wire.endpoints import ENDPOINTS
from qproxy.wire.endpoints.request_schemas import REQUEST_SCHEMAS

_PARAMETER = re.compile(r"<(?:[^<>:]+:)?([^<>:]+)>")
_TAKES_BODY = frozenset(endpoint.path for endpoint in ENDPOINTS)
"""The paths whose answers come whole or as a stream."""
_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERROR_RESPONSES = {"$ref": "#/components/responses/Error"}
_SCHEMES = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `qproxy keys create` or `api_keys`.",
    },
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
    "admin": {"type": "http", "scheme": "bearer", "description": "The setting `admin_key`."},
}


class OpenApiRoutes:
    """The document's route."""

    def __init__(self, state: ServerState, families: Sequence[RouteGroup]) -> None:
        self._state = state
        self._route_groups = families

    def routes(self) -> Iterator[Route]:
        yield Route("/openapi.json", ("GET",), self._view, Access.OPEN, versioned=False)

    async def _view(self) -> HTTPResponse:
        routes = (
            route
            for family in self._route_groups
            for route in family.routes()
            if route.access is not Access.SESSION  # pages for people are no part of an API
        )
        return json_response(document(routes, keys=self._state.policy.api_keys.required()))


def document(routes: Iterable[Route], *, keys: bool) -> dict[str, Any]:
    """The OpenAPI document of some routes; `keys` says whether clients must show one."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for path in route.paths():
            for method in route.methods:
                operation = _operation(route, path, method, keys)
                paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})[method.lower()] = operation
    error = {"description": "An error in OpenAI's shape.", "content": {JSON_TYPE: {"schema": _ERROR}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qproxy",
            "version": VERSION,
            "description": "OpenAI's API, answered by Qwen models.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"securitySchemes": _SCHEMES, "responses": {"Error": error}},
    }


def _operation(route: Route, path: str, method: str, keys: bool) -> dict[str, Any]:
    asks = route.path in _TAKES_BODY
    text = re.findall(r"[A-Za-z0-9]+", path)
    operation: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *text]),
        "security": _security(route.access, keys),
        "responses": {"200": _answer(asks), "4XX": _ERROR_RESPONSES, "5XX": _ERROR_RESPONSES},
    }
    names = _PARAMETER.findall(path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if asks or route.path in REQUEST_SCHEMAS:
        schema = REQUEST_SCHEMAS.get(route.path, {"type": "object"})
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": schema}}}
    return operation


def _security(access: Access, keys: bool) -> list[dict[str, list[str]]]:
    """One of these suffices; the empty one is nobody in particular."""
    if access is Access.OPEN:
        return []
    if access is Access.ADMIN:
        return [{"admin": []}]
    shown: list[dict[str, list[str]]] = [{"key": []}, {"x-api-key": []}]
    return shown if keys else [{}, *shown]


def _answer(asks: bool) -> dict[str, Any]:
    if not asks:
        return {"description": "What was asked for."}
    streamed = {"description": "Server-sent events, when the body says `stream: true`.", "type": "string"}
    content = {JSON_TYPE: {"schema": {"type": "object"}}, "text/event-stream": {"schema": streamed}}
    return {"description": "The model's answer.", "content": content}
