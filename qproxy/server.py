"""The Quart-Trio app: routes from `ENDPOINTS`, client keys, limits, errors in OpenAI's shape.

Here: HTTP with the client.  Not here: any field of a body (`wire.endpoints`), any account (`relay`).

The idea: every request owns an exit stack (`Connection`), and whatever is opened for it is entered there:
leases, upstream responses.  Quart-Trio cancels the request's nursery when the client leaves; the stack then
closes everything, in whatever state the request was.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast

from quart import Response, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from qproxy.discovery import Discovery
from qproxy.lives import Lives
from qproxy.observe import Counts, Record
from qproxy.relay import Relay
from qproxy.streaming import Stream, internal_error, note
from qproxy.wire import jsontext
from qproxy.wire.endpoints import ENDPOINTS, Endpoint, models
from qproxy.wire.errors import NotAuthenticated, QproxyError, RequestError

log = logging.getLogger("qproxy.server")
JSON_TYPE = "application/json"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
QUIET = ("/livez", "/readyz")
"""Asked every few seconds by machines: no log line."""
EXPOSED = (
    "x-request-id, x-qproxy-upstream-request-id, x-qproxy-overhead-ms, x-qproxy-ignored-params, "
    "openai-processing-ms, retry-after, retry-after-ms, x-should-retry"
)


class Connection(TrioASGIHTTPConnection):
    """One request: its exit stack outlives everything done for it, and nothing outlives the stack."""

    async def __call__(self, receive: Any, send: Any) -> None:
        async with AsyncExitStack() as stack:
            self.scope["qproxy.stack"] = stack  # type: ignore[typeddict-unknown-key]
            await super().__call__(receive, send)


@dataclass(frozen=True, slots=True)
class Door:
    """What the server asks of a request before any endpoint sees it."""

    keys: tuple[str, ...] = ()
    """SHA-256 hex digests of the accepted client keys; none means that every key is accepted."""
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024
    max_messages: int = 10_000
    body_timeout: float = 60.0
    request_timeout: float = math.inf
    keep_alive: float = math.inf
    """Seconds of silence in a stream after which a comment is sent."""
    default_model: str | None = None

    def authenticate(self, headers: Headers) -> None:
        """NotAuthenticated unless the request carries an accepted key."""
        if not self.keys:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "") or headers.get("api-key", "")
        if not key.strip():
            raise NotAuthenticated(
                "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer KEY'."
            )
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
        accepted = [hmac.compare_digest(digest, known) for known in self.keys]  # all of them: constant time
        if not any(accepted):
            raise NotAuthenticated("Incorrect API key provided: this server does not know it.")


class Server:
    """The app and what it stands on."""

    def __init__(self, relay: Relay, discovery: Discovery, door: Door) -> None:
        self.relay = relay
        self.discovery = discovery
        self.door = door
        self.counts = Counts()
        self.draining = False
        self.lives = Lives()

    def app(self) -> QuartTrio:
        """A new Quart-Trio app with every route."""
        app = QuartTrio("qproxy", static_folder=None)
        app.asgi_http_class = Connection
        app.config["RESPONSE_TIMEOUT"] = None  # Quart's 60 s would cut streams without a word
        app.config["BODY_TIMEOUT"] = self.door.body_timeout
        app.config["MAX_CONTENT_LENGTH"] = self.door.max_body_bytes
        app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        app.url_map.strict_slashes = False
        for endpoint in ENDPOINTS:
            self._route(app, endpoint.path, ["POST"], self._ask(endpoint), endpoint.path)
        self._route(app, "/models", ["GET"], self._models, "models")
        self._route(app, "/models/<path:name>", ["GET"], self._model, "model")
        app.add_url_rule("/livez", "livez", self._livez, methods=["GET"])
        app.add_url_rule("/readyz", "readyz", self._readyz, methods=["GET"])
        app.add_url_rule("/", "root", self._root, methods=["GET"])
        app.register_error_handler(QproxyError, _refusal)
        app.register_error_handler(HTTPException, _http_refusal)
        app.register_error_handler(Exception, _fault)
        app.before_request(self._begin)
        app.after_request(self._finish_headers)
        app.while_serving(self._while_serving)
        return app

    def _route(self, app: QuartTrio, path: str, methods: list[str], view: Any, name: str) -> None:
        app.add_url_rule(f"/v1{path}", f"v1 {name}", view, methods=methods)
        app.add_url_rule(path, name, view, methods=methods)

    async def _while_serving(self) -> AsyncGenerator[None, None]:
        yield
        await self.relay.transport.aclose()

    # Views

    def _ask(self, endpoint: Endpoint) -> Any:
        async def view() -> Response:
            record, stack = _record(), _scope()["qproxy.stack"]
            self.door.authenticate(request.headers)
            life = stack.enter_context(self.lives.one(self.door.request_timeout))
            with life.limited():
                turn = endpoint.decode(
                    await _json_body(),
                    id=endpoint.id_prefix + secrets.token_hex(12),
                    created=int(time.time()),
                    default_model=self.door.default_model,
                    max_messages=self.door.max_messages,
                )
                record.stream = turn.stream
                answer = await self.relay.open(turn, record.story, stack)
                record.first_byte = record.seconds
                if not turn.stream:
                    events = await answer.all()
                    note(record, events)
                    return Response(jsontext.dumps(endpoint.whole(turn, events)), 200, content_type=JSON_TYPE)
            body = Stream(answer, endpoint.encoder(turn), record, life, keep_alive=self.door.keep_alive)
            response = Response(body, 200, dict(STREAM_HEADERS))
            response.content_type = "text/event-stream; charset=utf-8"
            return response

        return view

    async def _models(self) -> Response:
        self.door.authenticate(request.headers)
        return _json(models.listing(await self.discovery.models()))

    async def _model(self, name: str) -> Response:
        self.door.authenticate(request.headers)
        return _json(models.one(await self.discovery.models(), name, self.relay.policy.aliases))

    async def _livez(self) -> Response:
        return _json({"status": "ok"})

    async def _readyz(self) -> Response:
        if self.draining:
            return _json({"status": "draining"}, 503)
        return _json({"status": "ok", "accounts": len(self.relay.accounts.accounts)})

    async def _root(self) -> Response:
        return _json({"name": "qproxy", "endpoints": [f"/v1{e.path}" for e in ENDPOINTS] + ["/v1/models"]})

    # Around every request

    async def _begin(self) -> Response | None:
        if request.path not in QUIET:
            _scope()["qproxy.stack"].callback(self.counts.finished, _record())
        if request.method != "OPTIONS":
            return None
        response = Response(b"", 204)
        if self._origin() is not None:
            wanted = request.headers.get("access-control-request-headers", "authorization, content-type")
            response.headers["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
            response.headers["access-control-allow-headers"] = wanted
            response.headers["access-control-max-age"] = "600"
        return response

    def _origin(self) -> str | None:
        origin = request.headers.get("origin")
        allowed = self.door.cors_origins
        if origin is None or not allowed:
            return None
        return "*" if "*" in allowed else origin if origin in allowed else None

    async def _finish_headers(self, response: Response) -> Response:
        record: Record = _record()
        record.status = response.status_code
        if record.outcome == "client_left" and not record.stream:
            record.outcome = "ok"  # an error has said so by now
        story, headers = record.story, response.headers
        headers["x-request-id"] = record.id
        headers["openai-processing-ms"] = str(round(record.seconds * 1000))
        headers["x-content-type-options"] = "nosniff"
        if not record.stream and story.tries:
            headers["x-qproxy-overhead-ms"] = f"{record.overhead * 1000:.1f}"
        if story.upstream_request_id:
            headers["x-qproxy-upstream-request-id"] = _header_text(story.upstream_request_id)
        if story.ignored:
            headers["x-qproxy-ignored-params"] = _header_text(", ".join(story.ignored))
        if story.notes:
            headers["x-qproxy-notes"] = _header_text("; ".join(story.notes))
        origin = self._origin()
        if origin is not None:
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = EXPOSED
            headers["vary"] = "origin"
        return response


def _record() -> Record:
    """The record of the request being served, begun when it is first asked for."""
    scope = _scope()
    if "qproxy.record" not in scope:
        scope["qproxy.record"] = Record("req_" + secrets.token_hex(16), request.method, request.path)
    record: Record = scope["qproxy.record"]
    return record


def _scope() -> dict[str, Any]:
    """The request's ASGI scope, in which its stack and its record live."""
    return cast("dict[str, Any]", request.scope)


def _header_text(text: str) -> str:
    """Text that may stand in a header field: printable ASCII, at most 1,000 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:1000])


async def _json_body() -> Any:
    """The request's body as JSON; a RequestError says what is wrong with it."""
    mimetype = request.mimetype
    if mimetype and mimetype != JSON_TYPE and not mimetype.endswith("+json"):
        raise RequestError(
            f"Unsupported content type '{mimetype[:100]}': send application/json.",
            status=415,
            code="unsupported_media_type",
        )
    data = await request.get_data(cache=False)
    try:
        return jsontext.loads(data)
    except ValueError as error:
        raise RequestError(f"The request body is not valid JSON: {error}.") from None


def _json(body: Any, status: int = 200) -> Response:
    return Response(jsontext.dumps(body), status, content_type=JSON_TYPE)


async def _refusal(error: QproxyError) -> Response:
    """The one place where an error becomes a response."""
    record = _record()
    record.outcome, record.error = "error", error.code or error.type
    record.story.upstream_request_id = error.request_id or record.story.upstream_request_id
    response = _json(error.body(), error.status)
    if error.retry_after is not None:
        seconds = min(error.retry_after, 120.0)
        response.headers["retry-after"] = str(math.ceil(seconds))
        response.headers["retry-after-ms"] = str(round(seconds * 1000))
    if error.code in ("insufficient_quota", "upstream_credentials_exhausted"):
        response.headers["x-should-retry"] = "false"
    return response


async def _http_refusal(error: HTTPException) -> Response:
    """Quart's own refusals (no such route, wrong method, body too large or too slow) in OpenAI's shape."""
    status = error.code or 500
    if isinstance(error, RequestEntityTooLarge):
        ours = RequestError("The request body is too large.", status=413, code="request_too_large")
    elif isinstance(error, RequestTimeout):
        ours = RequestError("The request body did not arrive in time.", status=408, code="request_timeout")
    elif status == 404:
        message = f"Unknown request URL: {request.method} {request.path}."
        ours = RequestError(message, status=404, code="unknown_url")
    elif status == 405:
        message = f"Not allowed to {request.method} on {request.path}."
        ours = RequestError(message, status=405, code="method_not_allowed")
    else:
        ours = RequestError(error.description or "The request cannot be served.", status=status)
    response = await _refusal(ours)
    allow = dict(error.get_headers()).get("Allow")
    if allow:
        response.headers["allow"] = allow
    return response


async def _fault(error: Exception) -> Response:
    log.error("request %s failed", _record().id, exc_info=error)
    return await _refusal(internal_error())
