"""The Quart-Trio app: its routes, the middleware around them, and the swap of the server's state at a reload.

Every request owns an exit stack and a nursery, whichever path serves it (`HTTPConnection`,
`WebSocketConnection`, `fast_path.FastPath`). Whatever is opened for the request is entered on the stack
(leases, upstream responses); tasks beside its handler (tools) run in the nursery. When the client
disconnects, the handler and the nursery are cancelled, and the stack closes everything, in whatever state it
was.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeAlias

import trio
from quart import Response, request, websocket
from quart.routing import QuartMap, QuartRule
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter, Rule

from qproxy.http_server.shutdown import drain
from qproxy.server import error_handlers, request_context
from qproxy.server.authentication import Access
from qproxy.server.fast_path import HTTP_STREAM, FastPath
from qproxy.server.http_response import HTTPResponse
from qproxy.server.middleware import RequestMiddleware
from qproxy.server.replicas import REPLICA_QUERY
from qproxy.server.request_body import BodyDeadline, body_timeout, body_too_large
from qproxy.server.routes.admin_login import AdminLoginRoutes
from qproxy.server.routes.conversations import ConversationRoutes
from qproxy.server.routes.embeddings import EmbeddingRoutes
from qproxy.server.routes.families import FAMILIES
from qproxy.server.routes.generate import GenerationRoutes
from qproxy.server.routes.info import InfoRoutes
from qproxy.server.routes.metrics import METRICS_QUERY, MetricsRoutes
from qproxy.server.routes.openapi import OpenApiRoutes
from qproxy.server.routes.realtime import RealtimeRoutes
from qproxy.server.routes.response_socket import ResponseSocketRoutes
from qproxy.server.routes.responses import HISTORIES, ResponseRoutes
from qproxy.server.routes.stored_completions import CHAT_PATH, CompletionHistory, StoredCompletionRoutes
from qproxy.server.routes.token_counting import TokenCountRoutes
from qproxy.server.state import BackgroundTask, Route, RouteGroup, ServerState, StateHolder
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import QproxyError

App: TypeAlias = QuartTrio
RouteGroupFactory: TypeAlias = Callable[[StateHolder], RouteGroup]
log = logging.getLogger("qproxy.server")


class _Routes(QuartMap):
    """The routes, which are the same for every host: `host_policy` checks an invalid Host, not werkzeug."""

    def bind_to_request(self, request: Any, subdomain: str | None, server_name: str | None) -> MapAdapter:
        query = request.query_string.decode("latin-1")
        return self.bind(
            "localhost", request.root_path, None, request.scheme, request.method, request.path, query
        )


class _Rule(QuartRule):
    """A route whose builder of URLs is compiled at its first use: qproxy uses none, and those of all routes
    would take most of the time that an app takes to be made."""

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        compile_builder = super()._compile_builder

        def build(rule: _Rule, **values: Any) -> tuple[str, str]:
            built: tuple[str, str] = compile_builder(append_unknown)(rule, **values)
            return built

        return build


class _Quart(QuartTrio):
    url_map_class = _Routes
    url_rule_class = _Rule  # type: ignore[assignment]  # as Quart's own
    _was_served = False

    def __init__(self, server: StateHolder) -> None:
        super().__init__("qproxy", static_folder=None)
        self._server = server

    async def read_body(self) -> bytes:
        """Return the body of the current request. Raises RequestError when it is too large or too slow."""
        limits, pieces, size = self._server.state.request_limits, [], 0
        deadline = BodyDeadline(limits)
        with deadline.scope:
            async for piece in request.body:
                pieces.append(piece)
                size += len(piece)
                if size > limits.max_body_bytes:
                    raise body_too_large(limits)
                deadline.extend(size)
            return b"".join(pieces)
        raise body_timeout(limits)

    async def check_unserved(self) -> None:
        """RuntimeError when the app was served before: what its parts held open is closed."""
        if self._was_served:
            raise RuntimeError(
                "This app was served before, and what it held open is closed: make another one."
            )
        self._was_served = True


class HTTPConnection(TrioASGIHTTPConnection):
    """One request on Quart's path: its exit stack outlives everything done for it, and nothing outlives the
    stack."""

    app: _Quart

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = normalize_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            request_context.bind(self.scope, stack, nursery, self.app.read_body)
            await super().__call__(receive, send)
            nursery.cancel_scope.cancel()  # the response is complete, or the client has disconnected


class WebSocketConnection(TrioASGIWebsocketConnection):
    """A WebSocket, with a stack and a nursery like a request.

    A message is read only when the handler requests it (`request_context.allow_receive`): Quart 0.23 would
    read ahead without a limit.
    """

    app: _Quart

    def __init__(self, app: QuartTrio, scope: Any) -> None:
        super().__init__(app, scope)
        self._receives = trio.Semaphore(0)
        """The messages that may be read; the first one may be requested before the handshake was read."""

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = normalize_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            http_stream: Any = self.scope["extensions"].get(HTTP_STREAM)
            if http_stream is not None:
                http_stream.on_disconnect = nursery.cancel_scope.cancel
            context = request_context.bind(self.scope, stack, nursery, self.app.read_body)
            context.allow_receive = self._allow_receive
            self._allow_receive()  # the handshake
            await super().__call__(partial(self._receive_one, receive), send)
            nursery.cancel_scope.cancel()

    def _allow_receive(self) -> None:
        self._receives.release()

    async def _receive_one(self, receive: Any) -> Any:
        """Return the next message once the handler has requested one."""
        await self._receives.acquire()
        return await receive()


class Server:
    """The app of one `ServerState`, which a reload replaces by another one."""

    def __init__(self, state: ServerState, extensions: Sequence[RouteGroupFactory] = ()) -> None:
        """`extensions` make further groups of routes; each gets the server."""
        self.state = state
        metrics = MetricsRoutes(self)
        groups: list[RouteGroup] = [
            GenerationRoutes(self, state.endpoints, {**HISTORIES, CHAT_PATH: CompletionHistory}),
            EmbeddingRoutes(self), StoredCompletionRoutes(self),
            TokenCountRoutes(self), ResponseRoutes(self), ConversationRoutes(self), InfoRoutes(self),
            AdminLoginRoutes(self), RealtimeRoutes(self), ResponseSocketRoutes(self, lambda: self.middleware),
            metrics, *(family(self) for family in FAMILIES),
            *(extension(self) for extension in extensions),
        ]  # fmt: skip
        apis = tuple(dict.fromkeys((OPENAI, *(endpoint.api for endpoint in state.endpoints))))
        self.route_groups: tuple[RouteGroup, ...] = (*groups, OpenApiRoutes(self, groups, apis))
        self.routes: dict[str, Route] = {}
        """Each route by its name; a route that is not listed requires a key."""
        self.middleware = RequestMiddleware(self, apis, (metrics.record, *state.listeners))
        self._background: tuple[BackgroundTask, ...] = (
            partial(drain, state.in_flight, state.http_limits.graceful_timeout),
            partial(
                state.peers.listen,
                {
                    METRICS_QUERY: metrics.answer,
                    REPLICA_QUERY: lambda: self.state.replica().to_json().encode(),
                },
            ),
            state.refresh_tasks.run,
            *state.background,
        )
        if state.shared_state is not None:
            state.shared_state.describe_process(lambda: self.state.replica().to_json())
        self._nursery: trio.Nursery | None = None
        """While the app is served."""
        self._set_refreshed_sources()

    def app(self) -> QuartTrio:
        """Return a new Quart-Trio app with every route."""
        app = _Quart(self)
        app.asgi_http_class = HTTPConnection
        app.asgi_websocket_class = WebSocketConnection
        app.config["RESPONSE_TIMEOUT"] = None  # Quart's default of 60 s would truncate streams
        app.config["BODY_TIMEOUT"] = self.state.request_limits.client_body_timeout
        app.config["MAX_CONTENT_LENGTH"] = self.state.request_limits.max_body_bytes
        app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False  # it would redirect with a page in HTML; see `normalize_path`
        routes = [route for group in self.route_groups for route in group.routes()]
        for route in routes:
            self._add_route(app, route)
        app.register_error_handler(QproxyError, error_handlers.handle_qproxy_error)
        app.register_error_handler(HTTPException, partial(error_handlers.handle_http_exception, self))
        app.register_error_handler(Exception, error_handlers.handle_exception)
        app.before_request(self._before_request)
        app.after_request(self._after_request)
        app.before_websocket(self._before_websocket)
        app.after_websocket(self._after_websocket)  # type: ignore[type-var]  # Quart calls it with None too
        app.before_serving(app.check_unserved)
        app.while_serving(partial(self._serving, app))
        direct = {path: route for route in routes if route.fast_path for path in route.paths()}
        fast_path = FastPath(self, self.middleware, direct, app.asgi_app, partial(_has_no_hooks, app))
        setattr(app, "asgi_app", fast_path)  # noqa: B010 - as Quart documents it; typed modules do not let methods be replaced
        return app

    def _add_route(self, app: QuartTrio, route: Route) -> None:
        for path in route.paths():
            name = f"{' '.join(route.methods) or 'WebSocket'} {path}"
            self.routes[name] = route
            if route.websocket:
                app.add_websocket(path, name, route.view)
                continue
            app.add_url_rule(path, name, _as_quart_view(route.view), methods=list(route.methods))

    async def reconfigure(self, state: ServerState) -> None:
        """Serve with another state from the next request on; requests in flight keep the parts that they
        have."""
        previous, self.state = self.state, state
        state.relay.accounts.reconfigure(state.pool_settings)
        state.prober.relay = state.relay
        self._set_refreshed_sources()
        if state.ledger is not None:
            state.ledger.use_pricing(state.pricing)
        if state.tool_runtime is not previous.tool_runtime:
            previous.tool_runtime.drain()
            if self._nursery is not None:
                await state.tool_runtime.open(self._nursery)
        if state.relay.transport is not previous.relay.transport:
            await previous.relay.transport.aclose()
        if state.responses is not previous.responses:
            await _close_stores(previous)

    async def _serving(self, app: QuartTrio) -> AsyncGenerator[None, None]:
        self.state.http_limits.apply()
        scope = trio.CancelScope()
        app.nursery.start_soon(self._run_background, scope)
        self._nursery = app.nursery
        await self.state.tool_runtime.open(app.nursery)
        for wait in self.state.startup:
            await wait()
        self.state.background_runs.open(app.nursery)
        self.state.batch_runner.open(app)
        yield
        await self._end_background_runs(app.nursery.cancel_scope)
        await self.state.refresh_tasks.stop()
        scope.cancel()
        await self.aclose()

    async def _end_background_runs(self, scope: trio.CancelScope) -> None:
        """Wait for the responses in the background, within `graceful_timeout`. Quart's own limit on `scope`,
        that of all tasks of the app, applies to what comes after them."""
        seconds = scope.deadline - trio.current_time()
        scope.deadline = math.inf
        await self.state.background_runs.close(self.state.http_limits.graceful_timeout)
        await self.state.stream_recorder.flush()
        scope.deadline = trio.current_time() + seconds

    async def aclose(self) -> None:
        """Close what the parts hold open: idle connections and stores."""
        state = self.state
        await state.relay.transport.aclose()
        await _close_stores(state)
        await state.files.aclose()
        await state.batches.aclose()
        await state.uploads.aclose()
        await state.grants.aclose()

    def _set_refreshed_sources(self) -> None:
        accounts = self.state.pool_settings.accounts
        self.state.refresh_tasks.set_sources(account.source for account in accounts)

    async def _run_background(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for task in self._background:
                    nursery.start_soon(_log_failure, task)

    async def _before_request(self) -> Response | None:
        rule = request.url_rule
        access = self._begin_request(rule)
        if request.method == "OPTIONS":
            return Response(b"", 204, self.state.cors.preflight_headers(request_context.headers()))
        if rule is not None:
            await self.middleware.authorize(access)
        return None

    def _begin_request(self, rule: Rule | None) -> Access:
        """Begin a request to the route of this rule, and return who may use it."""
        route = None if rule is None else self.routes.get(rule.endpoint)
        self.middleware.on_request("" if rule is None else rule.rule, route)
        return Access.KEY if route is None else route.access

    async def _after_request(self, response: Response) -> Response:
        self.middleware.on_response(response.status_code, response.headers)
        return response

    async def _before_websocket(self) -> None:
        rule = websocket.url_rule
        access = self._begin_request(rule)
        if rule is not None:
            await self.middleware.authorize(access)

    async def _after_websocket(self, response: Response | None) -> Response | None:
        if response is not None:  # the handshake was rejected
            self.middleware.on_response(response.status_code, response.headers)
        return response


async def _close_stores(state: ServerState) -> None:
    for store in (state.responses, state.conversations, state.response_runs):
        if store is not None:
            await store.aclose()


def _has_no_hooks(app: QuartTrio) -> bool:
    """Return whether the app has no request hooks but the server's own."""
    tables = (
        app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs,
        app.url_value_preprocessors,
    )  # fmt: skip
    added = sum(len(functions) for table in tables for functions in table.values())
    return added == len(("_before_request", "_after_request")) and not app.teardown_appcontext_funcs


def _as_quart_view(view: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Adapt a view to Quart."""

    async def respond(**values: Any) -> Any:
        reply = await view(**values)
        return reply.response() if isinstance(reply, HTTPResponse) else reply

    return respond


def normalize_path(target: str) -> str:
    """Return the path of a request target in any form: absolute, with doubled slashes, or empty."""
    if not target.startswith("/"):
        target = target.partition("://")[2].partition("/")[2] if "://" in target else target
    return "/" + re.sub("/{2,}", "/", target).removeprefix("/")


async def _log_failure(task: Callable[[], Awaitable[None]]) -> None:
    """Run a task; log its exception rather than end the others with it."""
    try:
        await task()
    except Exception:
        log.exception("background task %r failed", task)
