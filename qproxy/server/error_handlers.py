"""Errors as responses: the status, body and headers that the request's API gives them.

Quart's own errors (no such route, a body that is too large) get the same shape.
"""

from __future__ import annotations

import logging

from quart import Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from qproxy.server import request_context
from qproxy.server.content_codings import ACCEPT_ENCODING
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import body_timeout, body_too_large, websocket_not_supported
from qproxy.server.state import StateHolder
from qproxy.server.streaming import internal_error
from qproxy.wire.endpoints.unsupported import unsupported_endpoint
from qproxy.wire.errors import QproxyError, RequestError

log = logging.getLogger("qproxy.server")


def error_response(error: QproxyError) -> HTTPResponse:
    """Return an expected error as the request's API writes it, and note it in the request's record."""
    record, api = request_context.record(), request_context.api()
    record.fail(error, "error")
    record.relay.upstream_request_id = error.request_id or record.relay.upstream_request_id
    reply = json_response(api.error_body(error, record.id), api.error_status(error))
    reply.headers.update(api.retry_headers(error))
    if error.code == "unsupported_content_encoding":
        reply.headers["accept-encoding"] = ACCEPT_ENCODING
    return reply


def internal_error_response(error: Exception) -> HTTPResponse:
    """Return the response for an unexpected exception; only the log has its details."""
    log.error("request %s failed", request_context.record().id, exc_info=error)
    return error_response(internal_error(request_context.record().id))


async def handle_qproxy_error(error: QproxyError) -> Response:
    return error_response(error).response()


async def handle_exception(error: Exception) -> Response:
    return internal_error_response(error).response()


async def handle_http_exception(server: StateHolder, error: HTTPException) -> Response:
    """Return the response for an error that Quart or Werkzeug raised."""
    scope, limits = request_context.scope(), server.state.request_limits
    status, path = error.code or 500, scope["path"][: request_context.MAX_LOGGED_PATH]
    method = scope.get("method", "GET")
    if scope["type"] == "websocket":
        return error_response(websocket_not_supported()).response()
    if isinstance(error, RequestEntityTooLarge):
        mapped = body_too_large(limits)
    elif isinstance(error, RequestTimeout):
        mapped = body_timeout(limits)
    elif status == 404:
        unknown = RequestError(f"Unknown request URL: {method} {path}.", status=404, code="unknown_url")
        mapped = unsupported_endpoint(method, path) or unknown
    elif status == 405:
        message = f"Method {method} is not allowed on {path}."
        mapped = RequestError(message, status=405, code="method_not_allowed")
    else:
        mapped = RequestError(error.description or "The request cannot be served.", status=status)
    reply = error_response(mapped)
    allow = dict(error.get_headers()).get("Allow")
    if allow:
        reply.headers["allow"] = allow
    return reply.response()
