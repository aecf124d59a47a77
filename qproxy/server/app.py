"""The Quart-Trio app: routes from its families, and what happens around every request.

The idea: every request owns an exit stack and a nursery, whichever way it takes (`Connection`, `SocketConnection`,
`lane.Lane`).  Whatever is opened for it is entered on the stack: leases, upstream responses; what goes on beside its
handler, tools, runs in the nursery.  When the client leaves the handler is cancelled and the nursery with it, and the
stack closes everything, in whatever state it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio
from quart import Response, request, websocket
from quart.routing import QuartMap
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from qproxy.limits.concurrency import ConcurrencyLimiter
from qproxy.relay.model_directory import ModelDirectory
from qproxy.relay.relay import Relay
from qproxy.server import error_handlers, request_context
from qproxy.server.fast_path import HTTP_STREAM, FastPath
from qproxy.server.http_response import HTTPResponse
from qproxy.server.middleware import RequestMiddleware
from qproxy.server.request_policy import Access, RequestPolicy
from qproxy.server.routes.admin_login import AdminLoginRoutes
from qproxy.server.routes.embeddings import EmbeddingRoutes
from qproxy.server.routes.generate import GenerationRoutes
from qproxy.server.routes.info import InfoRoutes
from qproxy.server.routes.openapi import OpenApiRoutes
from qproxy.server.routes.realtime import RealtimeRoutes
from qproxy.server.routes.responses import ResponseHistory, ResponseRoutes
from qproxy.server.state import Route, RouteGroup, ServerState
from qproxy.wire.errors import QproxyError

log = logging.getLogger("qproxy.server")


class _Routes(QuartMap):
    """The routes, which are the same for every host: a Host that is no name is `door`'s to judge, not werkzeug's."""

    def bind_to_request(self, request: Any, subdomain: str | None, server_name: str | None) -> MapAdapter:
        query = request.query_string.decode("latin-1")
        return self.bind(
            "localhost", request.root_path, None, request.scheme, request.method, request.path, query
        )


class _Quart(QuartTrio):
    url_map_class = _Routes
    _was_served = False

    async def check_unserved(self) -> None:
        """RuntimeError when the app was served before: what its parts held open is closed."""
        if self._was_served:
            raise RuntimeError(
                "This app was served before, and what it held open is closed: make another one."
            )
        self._was_served = True


class HTTPConnection(TrioASGIHTTPConnection):
    """One request: its exit stack outlives everything done for it, and nothing outlives the stack."""

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = normalize_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            request_context.bind(self.scope, stack, nursery, _body)
            await super().__call__(receive, send)
            nursery.cancel_scope.cancel()  # the answer is whole, or nobody waits for it any more


class WebSocketConnection(TrioASGIWebsocketConnection):
    """A WebSocket, owned as a request is.

    What its client says is read when it is asked for (`current.listen`): Quart would read ahead, as of 0.23 without end.
    """

    def __init__(self, app: QuartTrio, scope: Any) -> None:
        super().__init__(app, scope)
        self._receive_requested = trio.Event()

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = normalize_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            exchange: Any = self.scope["extensions"].get(HTTP_STREAM)
            if exchange is not None:
                exchange.leave = nursery.cancel_scope.cancel
            request_context.bind(self.scope, stack, nursery, _body)
            request_context.scope()["qproxy.listen"] = self._listen
            self._listen()  # to the handshake
            await super().__call__(partial(self._receive_one, receive), send)
            nursery.cancel_scope.cancel()

    def _listen(self) -> None:
        self._receive_requested.set()

    async def _receive_one(self, receive: Any) -> Any:
        """The next message, once somebody wants one."""
        await self._receive_requested.wait()
        self._receive_requested = trio.Event()
        return await receive()


class Server(ServerState):
    """The app and what it stands on."""

    def __init__(
        self,
        relay: Relay,
        discovery: ModelDirectory,
        policy: RequestPolicy,
        admission: ConcurrencyLimiter | None = None,
    ) -> None:
        super().__init__(relay, discovery, policy, admission)
        asking = GenerationRoutes(self, {"/responses": ResponseHistory})
        self.route_groups: list[RouteGroup] = [
            asking, EmbeddingRoutes(self), ResponseRoutes(self), InfoRoutes(self), AdminLoginRoutes(self), RealtimeRoutes(self),
        ]  # fmt: skip
        self.route_groups.append(OpenApiRoutes(self, self.route_groups))
        self.access: dict[str, Access] = {}
        """Who may use each route, by its name; one that is not named here wants a key."""
        self.background: list[Callable[[], Awaitable[None]]] = [self.refresh_tasks.run]
        """What runs beside the requests, from the start until it is cancelled at the end."""
        self.preparations: list[Callable[[], None]] = []
        """What is done before the first request, in the lifespan."""
        self._run_forever()
        self.middleware = RequestMiddleware(self)
        self._nursery: trio.Nursery | None = None
        """While the app is served."""

    def app(self) -> QuartTrio:
        """A new Quart-Trio app with every route."""
        app = _Quart("qproxy", static_folder=None)
        app.asgi_http_class = HTTPConnection
        app.asgi_websocket_class = WebSocketConnection
        app.config["RESPONSE_TIMEOUT"] = None  # Quart's 60 s would cut streams without a word
        app.config["BODY_TIMEOUT"] = self.door.body_timeout
        app.config["MAX_CONTENT_LENGTH"] = self.door.max_body_bytes
        app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False  # or a redirect in HTML; see `one_path`
        routes = [route for family in self.route_groups for route in family.routes()]
        for route in routes:
            self._add_route(app, route)
        app.register_error_handler(QproxyError, error_handlers.handle_qproxy_error)
        app.register_error_handler(HTTPException, error_handlers.handle_http_exception)
        app.register_error_handler(Exception, error_handlers.handle_exception)
        app.before_request(self._before_request)
        app.after_request(self._after_request)
        app.before_websocket(self._before_websocket)
        app.after_websocket(self._after_websocket)  # type: ignore[type-var]  # Quart calls it with None too
        app.before_serving(app.check_unserved)
        app.while_serving(partial(self._serving, app))
        direct = {path: route for route in routes if route.fast_path for path in route.paths()}
        lane = FastPath(self, self.middleware, direct, app.asgi_app, partial(_has_no_hooks, app))
        setattr(app, "asgi_app", lane)  # noqa: B010 - as Quart documents it; typed modules do not let methods be replaced
        return app

    def _add_route(self, app: QuartTrio, route: Route) -> None:
        for path in route.paths():
            name = f"{' '.join(route.methods) or 'WebSocket'} {path}"
            self.access[name] = route.access
            if route.websocket:
                app.add_websocket(path, name, route.view)
                continue
            app.add_url_rule(path, name, _as_quart_view(route.view), methods=list(route.methods))

    async def reconfigure(self, state: Server) -> None:
        """Serve with other parts from the next request on; those of the requests under way end with them."""
        before, accounts = self.relay.transport, self.relay.accounts
        accounts.renew(state.relay.accounts)
        state.relay.accounts = accounts
        self.relay, self.discovery, self.door = state.relay, state.discovery, state.door
        self.body_logger, self.pricing, self.speech = state.body_logger, state.pricing, state.speech
        self.proxies = state.proxies
        if self.ledger is not None:
            self.ledger.pricing = state.pricing
        self._run_forever()
        tool_runtime, self.workshop = self.workshop, state.workshop
        if state.admission.limits != self.admission.limits:
            self.admission = state.admission
        if tool_runtime is not self.workshop:
            tool_runtime.retire()
            if self._nursery is not None:
                await self.workshop.open(self._nursery)
        if self.relay.transport is not before:
            await before.aclose()
        if self.responses is not state.responses:
            store, self.responses = self.responses, state.responses
            if store is not None:
                await store.aclose()

    async def _serving(self, app: QuartTrio) -> AsyncGenerator[None, None]:
        for prepare in self.preparations:
            prepare()
        scope = trio.CancelScope()
        app.nursery.start_soon(self._run_background, scope)
        self._nursery = app.nursery
        await self.workshop.open(app.nursery)
        yield
        await self.refresh_tasks.stop()
        scope.cancel()
        await self.aclose()

    async def aclose(self) -> None:
        """Close what the parts hold open: idle connections and the store."""
        await self.relay.transport.aclose()
        if self.responses is not None:
            await self.responses.aclose()
        await self.grants.aclose()

    def _run_forever(self) -> None:
        self.refresh_tasks.set_sources(account.source for account in self.relay.accounts.accounts)

    async def _run_background(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for task in self.background:
                    nursery.start_soon(_log_failure, task)

    async def _before_request(self) -> Response | None:
        """Before a request that goes Quart's way."""
        rule = request.url_rule
        self.middleware.on_request("" if rule is None else rule.rule)
        if request.method == "OPTIONS":
            return Response(b"", 204, self.door.preflight(request_context.headers()))
        if rule is not None:
            await self.middleware.authorize(self.access.get(rule.endpoint, Access.KEY))
        return None

    async def _after_request(self, response: Response) -> Response:
        """After it."""
        self.middleware.on_response(response.status_code, response.headers)
        return response

    async def _before_websocket(self) -> None:
        """Before a WebSocket is accepted."""
        rule = websocket.url_rule
        self.middleware.on_request("" if rule is None else rule.rule)
        if rule is not None:
            await self.middleware.authorize(self.access.get(rule.endpoint, Access.KEY))

    async def _after_websocket(self, response: Response | None) -> Response | None:
        """After it, where it was refused."""
        if response is not None:
            self.middleware.on_response(response.status_code, response.headers)
        return response


async def _body() -> bytes:
    """The body of the request that goes Quart's way."""
    data = await request.get_data(cache=False)
    assert isinstance(data, bytes)
    return data


def _has_no_hooks(app: QuartTrio) -> bool:
    """Whether nobody has added functions of their own around the requests of the app."""
    tables = (
        app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs, app.url_value_preprocessors,
    )  # fmt: skip
    added = sum(len(functions) for table in tables for functions in table.values())
    return added == len(("_begin", "_finish")) and not app.teardown_appcontext_funcs


def _as_quart_view(view: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A view for Quart."""

    async def respond(**values: Any) -> Any:
        reply = await view(**values)
        return reply.response() if isinstance(reply, HTTPResponse) else reply

    return respond


def normalize_path(target: str) -> str:
    """The path of a request, however it was written: absolute, with doubled slashes, or none at all."""
    if not target.startswith("/"):
        target = target.partition("://")[2].partition("/")[2] if "://" in target else target
    return "/" + re.sub("/{2,}", "/", target).removeprefix("/")


async def _log_failure(task: Callable[[], Awaitable[None]]) -> None:
    """A task whose fault is told, and ends nothing else."""
    try:
        await task()
    except Exception:
        log.exception("%r ended", task)
