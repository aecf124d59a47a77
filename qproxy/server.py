"""The Quart-Trio app: routes from `ENDPOINTS`, client keys, limits, errors in OpenAI's shape.

Here: HTTP with the client.  Not here: any field of a body (`wire.endpoints`), any account (`relay`).

The idea: every request owns an exit stack (`Connection`), and whatever is opened for it is entered there:
leases, upstream responses.  Quart-Trio cancels the request's nursery when the client leaves; the stack then
closes everything, in whatever state the request was.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, cast

import trio
from quart import Response, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from qproxy.admission import Admission
from qproxy.discovery import Discovery
from qproxy.door import JSON_TYPE, SECURITY, Access, Door
from qproxy.keys import Key
from qproxy.lives import Lives
from qproxy.meters import Meters, estimate
from qproxy.observe import Counts, Record
from qproxy.relay import Relay
from qproxy.streaming import Stream, internal_error, note
from qproxy.wire import jsontext
from qproxy.wire.endpoints import ENDPOINTS, Endpoint, models
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import Turn

log = logging.getLogger("qproxy.server")
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
QUIET = ("/livez", "/readyz")
"""Asked every few seconds by machines: no log line."""


class Connection(TrioASGIHTTPConnection):
    """One request: its exit stack outlives everything done for it, and nothing outlives the stack."""

    async def __call__(self, receive: Any, send: Any) -> None:
        async with AsyncExitStack() as stack:
            self.scope["qproxy.stack"] = stack  # type: ignore[typeddict-unknown-key]
            await super().__call__(receive, send)


class Server:
    """The app and what it stands on."""

    def __init__(
        self, relay: Relay, discovery: Discovery, door: Door, admission: Admission | None = None
    ) -> None:
        self.relay = relay
        self.admission = admission or Admission()
        self.discovery = discovery
        self.door = door
        self.counts = Counts()
        self.draining = False
        self.lives = Lives()
        self.meters = Meters()
        self.access: dict[str, Access] = {}
        """Who may use each route, by its name; one that is not named here wants a key."""

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
        self._route(app, "/models", ["GET"], self._models, "/models")
        self._route(app, "/models/<path:name>", ["GET"], self._model, "/models/name")
        for path, view in (("/livez", self._livez), ("/readyz", self._readyz), ("/", self._root)):
            self.access[path] = Access.OPEN
            app.add_url_rule(path, path, view, methods=["GET"])
        app.register_error_handler(QproxyError, _refusal)
        app.register_error_handler(HTTPException, _http_refusal)
        app.register_error_handler(Exception, _fault)
        app.before_request(self._begin)
        app.after_request(self._finish_headers)
        app.while_serving(self._while_serving)
        return app

    def _route(self, app: QuartTrio, path: str, methods: list[str], view: Any, name: str) -> None:
        for prefix in ("/v1", ""):
            self.access[prefix + name] = Access.KEY
            app.add_url_rule(prefix + path, prefix + name, view, methods=methods)

    async def take_up(self, parts: Server) -> None:
        """Serve with other parts from the next request on; those of the requests under way end with them."""
        before, accounts = self.relay.transport, self.relay.accounts
        accounts.renew(parts.relay.accounts)
        parts.relay.accounts = accounts
        self.relay, self.discovery, self.door = parts.relay, parts.discovery, parts.door
        if parts.admission.limits != self.admission.limits:
            self.admission = parts.admission
        if self.relay.transport is not before:
            await before.aclose()

    async def _while_serving(self) -> AsyncGenerator[None, None]:
        yield
        await self.relay.transport.aclose()

    # Views

    def _ask(self, endpoint: Endpoint) -> Any:
        async def view() -> Response:
            record, stack = _record(), _scope()["qproxy.stack"]
            life = stack.enter_context(self.lives.one(self.door.request_timeout))
            with life.limited():
                turn = endpoint.decode(
                    await self._json_body(),
                    id=endpoint.id_prefix + secrets.token_hex(12),
                    created=int(time.time()),
                    default_model=self.door.default_model,
                    max_messages=self.door.max_messages,
                )
                record.stream = turn.stream
                self._charge(turn)
                stack.callback(await self.admission.enter())
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
        found, key = await self.discovery.models(), _client()
        return _json(models.listing([model for model in found if key is None or key.allows(model.id)]))

    async def _model(self, name: str) -> Response:
        self.door.check_model(_client(), name)
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
        if request.method == "OPTIONS":
            return Response(b"", 204, self.door.preflight(request.headers))
        rule = request.url_rule
        if rule is not None and self.access.get(rule.endpoint) is not Access.OPEN:
            _scope()["qproxy.key"] = self.door.client(request.headers, _scope())
        return None

    async def _json_body(self) -> Any:
        """The request's body as JSON; a RequestError says what is wrong with it."""
        self.door.check_type(request.mimetype, from_page="origin" in request.headers)
        return self.door.parse(cast("bytes", await request.get_data(cache=False)))

    def _charge(self, turn: Turn) -> None:
        """Reserve what the turn will use of its key's limits, and settle when the request is over."""
        key, record, now = _client(), _record(), trio.current_time()
        self.door.check_model(key, turn.model)
        meter = self.meters.of(key, now)
        if meter is None:
            return
        prompt, most = estimate(turn)
        _scope()["qproxy.meter"] = meter
        reservation = meter.reserve(prompt + most, now)

        def settle() -> None:
            story, begun = record.story, record.first_byte is not None
            used = story.usage.total_tokens if story.usage else prompt + record.pieces if begun else 0
            reservation.settle(used, trio.current_time(), counts=story.tries > 0)

        _scope()["qproxy.stack"].callback(settle)

    async def _finish_headers(self, response: Response) -> Response:
        record: Record = _record()
        record.status = response.status_code
        if record.outcome == "client_left" and not record.stream:
            record.outcome = "ok"  # an error has said so by now
        story, headers = record.story, response.headers
        headers["x-request-id"] = record.id
        headers["openai-processing-ms"] = str(round(record.seconds * 1000))
        headers.update({**SECURITY, **self.door.page_fields(request.headers)})
        if "qproxy.meter" in _scope():
            headers.update(_scope()["qproxy.meter"].headers(trio.current_time()))
        if not record.stream and story.tries:
            headers["x-qproxy-overhead-ms"] = f"{record.overhead * 1000:.1f}"
        if story.upstream_request_id:
            headers["x-qproxy-upstream-request-id"] = _header_text(story.upstream_request_id)
        if story.ignored:
            headers["x-qproxy-ignored-params"] = _header_text(", ".join(story.ignored))
        if story.notes:
            headers["x-qproxy-notes"] = _header_text("; ".join(story.notes))
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


def _client() -> Key | None:
    """Whose request is being served, where that is asked."""
    return cast("Key | None", _scope().get("qproxy.key"))


def _header_text(text: str) -> str:
    """Text that may stand in a header field: printable ASCII, at most 1,000 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:1000])


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
    if error.should_retry is not None:
        response.headers["x-should-retry"] = str(error.should_retry).lower()
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
