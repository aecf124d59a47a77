"""Errors as responses: the one place where an error gets its status, its body and its fields.

Quart's own refusals (no such route, a body that is too large) are put into OpenAI's shape here too.
"""

from __future__ import annotations

import logging
import math

from quart import Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_policy import websocket_not_supported
from qproxy.server.streaming import internal_error
from qproxy.wire.errors import QproxyError, RequestError

log = logging.getLogger("qproxy.server")


def body_too_large() -> RequestError:
    return RequestError("The request body is too large.", status=413, code="request_too_large")


def body_timeout() -> RequestError:
    return RequestError("The request body did not arrive in time.", status=408, code="request_timeout")


def error_response(error: QproxyError) -> HTTPResponse:
    """An error of ours."""
    record = request_context.record()
    record.fail(error, "error")
    record.relay.upstream_request_id = error.request_id or record.relay.upstream_request_id
    reply = json_response(error.to_body(), error.status)
    if error.retry_after is not None:
        seconds = min(error.retry_after, 120.0)
        reply.headers["retry-after"] = str(math.ceil(seconds))
        reply.headers["retry-after-ms"] = str(round(seconds * 1000))
    if error.should_retry is not None:
        reply.headers["x-should-retry"] = str(error.should_retry).lower()
    return reply


def internal_error_response(error: Exception) -> HTTPResponse:
    """A fault of ours: the client learns nothing but that, the log has the rest."""
    log.error("request %s failed", request_context.record().id, exc_info=error)
    return error_response(internal_error())


async def handle_qproxy_error(error: QproxyError) -> Response:
    """An error of ours, for Quart."""
    return error_response(error).response()


async def handle_exception(error: Exception) -> Response:
    """A fault of ours, for Quart."""
    return internal_error_response(error).response()


async def handle_http_exception(error: HTTPException) -> Response:
    """Quart's own."""
    scope = request_context.scope()
    status, path = error.code or 500, scope["path"][: request_context.MAX_LOGGED_PATH]
    method = scope.get("method", "GET")
    if scope["type"] == "websocket":
        return error_response(websocket_not_supported()).response()
    if isinstance(error, RequestEntityTooLarge):
        ours = body_too_large()
    elif isinstance(error, RequestTimeout):
        ours = body_timeout()
    elif status == 404:
        message = f"Unknown request URL: {method} {path}."
        ours = RequestError(message, status=404, code="unknown_url")
    elif status == 405:
        message = f"Not allowed to {method} on {path}."
        ours = RequestError(message, status=405, code="method_not_allowed")
    else:
        ours = RequestError(error.description or "The request cannot be served.", status=status)
    answer = error_response(ours)
    allow = dict(error.get_headers()).get("Allow")
    if allow:
        answer.headers["allow"] = allow
    return answer.response()
