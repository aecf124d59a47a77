"""Errors as responses: the one place where an error gets its status, its body and its fields.

Quart's own refusals (no such route, a body that is too large) are put into OpenAI's shape here too.
"""

from __future__ import annotations

import logging
import math

from quart import Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from qproxy.server import request_context as current
from qproxy.server.http_response import Reply, json
from qproxy.server.request_policy import no_websocket
from qproxy.server.streaming import internal_error
from qproxy.wire.errors import QproxyError, RequestError

log = logging.getLogger("qproxy.server")


def too_large() -> RequestError:
    return RequestError("The request body is too large.", status=413, code="request_too_large")


def too_slow() -> RequestError:
    return RequestError("The request body did not arrive in time.", status=408, code="request_timeout")


def reply(error: QproxyError) -> Reply:
    """An error of ours."""
    record = current.record()
    record.fail(error, "error")
    record.story.upstream_request_id = error.request_id or record.story.upstream_request_id
    reply = json(error.body(), error.status)
    if error.retry_after is not None:
        seconds = min(error.retry_after, 120.0)
        reply.fields["retry-after"] = str(math.ceil(seconds))
        reply.fields["retry-after-ms"] = str(round(seconds * 1000))
    if error.should_retry is not None:
        reply.fields["x-should-retry"] = str(error.should_retry).lower()
    return reply


def fault(error: Exception) -> Reply:
    """A fault of ours: the client learns nothing but that, the log has the rest."""
    log.error("request %s failed", current.record().id, exc_info=error)
    return reply(internal_error())


async def refused(error: QproxyError) -> Response:
    """An error of ours, for Quart."""
    return reply(error).response()


async def failed(error: Exception) -> Response:
    """A fault of ours, for Quart."""
    return fault(error).response()


async def refused_by_quart(error: HTTPException) -> Response:
    """Quart's own."""
    scope = current.scope()
    status, path = error.code or 500, scope["path"][: current.LONGEST_PATH]
    method = scope.get("method", "GET")
    if scope["type"] == "websocket":
        return reply(no_websocket()).response()
    if isinstance(error, RequestEntityTooLarge):
        ours = too_large()
    elif isinstance(error, RequestTimeout):
        ours = too_slow()
    elif status == 404:
        message = f"Unknown request URL: {method} {path}."
        ours = RequestError(message, status=404, code="unknown_url")
    elif status == 405:
        message = f"Not allowed to {method} on {path}."
        ours = RequestError(message, status=405, code="method_not_allowed")
    else:
        ours = RequestError(error.description or "The request cannot be served.", status=status)
    answer = reply(ours)
    allow = dict(error.get_headers()).get("Allow")
    if allow:
        answer.fields["allow"] = allow
    return answer.response()
