"""The OpenAPI 3.1 document at `/openapi.json`, generated from the routes themselves, so that none can be
missing.

Here: the document and its route. Not here: the schemas of bodies (`wire.endpoints.request_schemas`).
`document` is pure: the same routes give the same document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qproxy.server import request_context
from qproxy.server.authentication import Access
from qproxy.server.form_data import FORM_TYPE
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import JSON_TYPE
from qproxy.server.state import Route, RouteGroup, StateHolder
from qproxy.version import VERSION
from qproxy.wire.endpoints import Api

_PARAMETER = re.compile(r"<(?:[^<>:]+:)?([^<>:]+)>")
_SCHEMES = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `qproxy keys create` or `api_keys`.",
    },
    "admin": {"type": "http", "scheme": "bearer", "description": "The setting `admin_key`."},
}


class OpenApiRoutes:
    """The document's route."""

    def __init__(self, server: StateHolder, groups: Sequence[RouteGroup], apis: Sequence[Api]) -> None:
        self._server = server
        self._apis = apis
        self._route_groups = (*groups, self)

    def routes(self) -> Iterator[Route]:
        yield Route("/openapi.json", ("GET",), self._view, Access.OPEN, versioned=False)

    async def _view(self) -> HTTPResponse:
        routes = (
            route
            for group in self._route_groups
            for route in group.routes()
            if route.access is not Access.SESSION  # pages for people are no part of an API
        )
        keys = self._server.state.authentication.api_keys.required()
        described = document(routes, self._apis, keys=keys)
        described["servers"] = [{"url": request_context.root_path() or "/"}]
        return json_response(described)


def document(routes: Iterable[Route], apis: Sequence[Api], *, keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document of some routes; `keys` is whether clients must send one.

    A route that names no API is described with the first of `apis`.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for path in route.paths():
            for method in route.methods:
                operation = _operation(route, route.api or apis[0], path, method, keys)
                paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qproxy",
            "version": VERSION,
            "description": "OpenAI's API, answered by Qwen models.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {**_SCHEMES, **dict(map(_key_scheme, apis))},
            "responses": {_error_name(api): _error_response(api) for api in apis},
        },
    }


def _error_name(api: Api) -> str:
    return f"{api.name}Error"


def _error_response(api: Api) -> dict[str, Any]:
    content = {JSON_TYPE: {"schema": api.error_schema}}
    return {"description": f"An error in {api.name}'s shape.", "content": content}


def _key_scheme(api: Api) -> tuple[str, dict[str, str]]:
    name = api.api_key_headers[0]
    return name, {"type": "apiKey", "in": "header", "name": name, "description": "The same."}


def _operation(route: Route, api: Api, path: str, method: str, keys: bool) -> dict[str, Any]:
    error = {"$ref": f"#/components/responses/{_error_name(api)}"}
    words = re.findall(r"[A-Za-z0-9]+", path)
    operation: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *words]),
        "security": _security(route.access, api, keys),
        "responses": {"200": _answer(route.streams), "4XX": error, "5XX": error},
    }
    names = _PARAMETER.findall(path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.schema is not None:
        body_type = FORM_TYPE if route.form else JSON_TYPE
        operation["requestBody"] = {"required": True, "content": {body_type: {"schema": route.schema}}}
    return operation


def _security(access: Access, api: Api, keys: bool) -> list[dict[str, list[str]]]:
    """Return the alternative security requirements; the empty one allows anonymous requests."""
    if access is Access.OPEN:
        return []
    if access is Access.ADMIN:
        return [{"admin": []}]
    shown: list[dict[str, list[str]]] = [{"key": []}, {api.api_key_headers[0]: []}]
    return shown if keys else [{}, *shown]


def _answer(streams: bool) -> dict[str, Any]:
    if not streams:
        return {"description": "What was asked for."}
    streamed = {"description": "Server-sent events, if the body has `stream: true`.", "type": "string"}
    content = {JSON_TYPE: {"schema": {"type": "object"}}, "text/event-stream": {"schema": streamed}}
    return {"description": "The model's answer.", "content": content}
