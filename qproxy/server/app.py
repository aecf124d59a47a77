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

from qproxy.limits.concurrency import Admission
from qproxy.relay.model_directory import Discovery
from qproxy.relay.relay import Relay
from qproxy.server import error_handlers as refusals
from qproxy.server import request_context as current
from qproxy.server.fast_path import EXCHANGE, Lane
from qproxy.server.http_response import Reply
from qproxy.server.middleware import Around
from qproxy.server.request_policy import Access, Door
from qproxy.server.routes.admin_login import SigningIn
from qproxy.server.routes.embeddings import Embedding
from qproxy.server.routes.generate import Asking
from qproxy.server.routes.info import Plain
from qproxy.server.routes.openapi import Describing
from qproxy.server.routes.realtime import Realtime
from qproxy.server.routes.responses import RememberedResponses, StoredResponses
from qproxy.server.state import Family, Parts, Route
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


class Connection(TrioASGIHTTPConnection):
    """One request: its exit stack outlives everything done for it, and nothing outlives the stack."""

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = one_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            current.enter(self.scope, stack, nursery, _body)
            await super().__call__(receive, send)
            nursery.cancel_scope.cancel()  # the answer is whole, or nobody waits for it any more


class SocketConnection(TrioASGIWebsocketConnection):
    """A WebSocket, owned as a request is.

    What its client says is read when it is asked for (`current.listen`): Quart would read ahead, as of 0.23 without end.
    """

    def __init__(self, app: QuartTrio, scope: Any) -> None:
        super().__init__(app, scope)
        self._asked = trio.Event()

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = one_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            exchange: Any = self.scope["extensions"].get(EXCHANGE)
            if exchange is not None:
                exchange.leave = nursery.cancel_scope.cancel
            current.enter(self.scope, stack, nursery, _body)
            current.scope()["qproxy.listen"] = self._listen
            self._listen()  # to the handshake
            await super().__call__(partial(self._one, receive), send)
            nursery.cancel_scope.cancel()

    def _listen(self) -> None:
        self._asked.set()

    async def _one(self, receive: Any) -> Any:
        """The next message, once somebody wants one."""
        await self._asked.wait()
        self._asked = trio.Event()
        return await receive()


class Server(Parts):
    """The app and what it stands on."""

    def __init__(
        self, relay: Relay, discovery: Discovery, door: Door, admission: Admission | None = None
    ) -> None:
        super().__init__(relay, discovery, door, admission)
        asking = Asking(self, {"/responses": RememberedResponses})
        self.families: list[Family] = [
            asking, Embedding(self), StoredResponses(self), Plain(self), SigningIn(self), Realtime(self),
        ]  # fmt: skip
        self.families.append(Describing(self, self.families))
        self.access: dict[str, Access] = {}
        """Who may use each route, by its name; one that is not named here wants a key."""
        self.background: list[Callable[[], Awaitable[None]]] = [self.keepers.run]
        """What runs beside the requests, from the start until it is cancelled at the end."""
        self.preparations: list[Callable[[], None]] = []
        """What is done before the first request, in the lifespan."""
        self._keep()
        self.around = Around(self)
        self._nursery: trio.Nursery | None = None
        """While the app is served."""

    def app(self) -> QuartTrio:
        """A new Quart-Trio app with every route."""
        app = _Quart("qproxy", static_folder=None)
        app.asgi_http_class = Connection
        app.asgi_websocket_class = SocketConnection
        app.config["RESPONSE_TIMEOUT"] = None  # Quart's 60 s would cut streams without a word
        app.config["BODY_TIMEOUT"] = self.door.body_timeout
        app.config["MAX_CONTENT_LENGTH"] = self.door.max_body_bytes
        app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False  # or a redirect in HTML; see `one_path`
        routes = [route for family in self.families for route in family.routes()]
        for route in routes:
            self._add(app, route)
        app.register_error_handler(QproxyError, refusals.refused)
        app.register_error_handler(HTTPException, refusals.refused_by_quart)
        app.register_error_handler(Exception, refusals.failed)
        app.before_request(self._begin)
        app.after_request(self._finish)
        app.before_websocket(self._begin_socket)
        app.after_websocket(self._finish_socket)  # type: ignore[type-var]  # Quart calls it with None too
        app.before_serving(app.check_unserved)
        app.while_serving(partial(self._while_serving, app))
        direct = {path: route for route in routes if route.direct for path in route.paths()}
        lane = Lane(self, self.around, direct, app.asgi_app, partial(_is_ours, app))
        setattr(app, "asgi_app", lane)  # noqa: B010 - as Quart documents it; typed modules do not let methods be replaced
        return app

    def _add(self, app: QuartTrio, route: Route) -> None:
        for path in route.paths():
            name = f"{' '.join(route.methods) or 'WebSocket'} {path}"
            self.access[name] = route.access
            if route.websocket:
                app.add_websocket(path, name, route.view)
                continue
            app.add_url_rule(path, name, _quarts(route.view), methods=list(route.methods))

    async def take_up(self, parts: Server) -> None:
        """Serve with other parts from the next request on; those of the requests under way end with them."""
        before, accounts = self.relay.transport, self.relay.accounts
        accounts.renew(parts.relay.accounts)
        parts.relay.accounts = accounts
        self.relay, self.discovery, self.door = parts.relay, parts.discovery, parts.door
        self.bodies, self.pricing, self.speech = parts.bodies, parts.pricing, parts.speech
        self.proxies = parts.proxies
        if self.ledger is not None:
            self.ledger.pricing = parts.pricing
        self._keep()
        workshop, self.workshop = self.workshop, parts.workshop
        if parts.admission.limits != self.admission.limits:
            self.admission = parts.admission
        if workshop is not self.workshop:
            workshop.retire()
            if self._nursery is not None:
                await self.workshop.open(self._nursery)
        if self.relay.transport is not before:
            await before.aclose()
        if self.store is not parts.store:
            store, self.store = self.store, parts.store
            if store is not None:
                await store.aclose()

    async def _while_serving(self, app: QuartTrio) -> AsyncGenerator[None, None]:
        for prepare in self.preparations:
            prepare()
        scope = trio.CancelScope()
        app.nursery.start_soon(self._beside, scope)
        self._nursery = app.nursery
        await self.workshop.open(app.nursery)
        yield
        await self.keepers.stop()
        scope.cancel()
        await self.aclose()

    async def aclose(self) -> None:
        """Close what the parts hold open: idle connections and the store."""
        await self.relay.transport.aclose()
        if self.store is not None:
            await self.store.aclose()
        await self.grants.aclose()

    def _keep(self) -> None:
        self.keepers.keep(account.source for account in self.relay.accounts.accounts)

    async def _beside(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for task in self.background:
                    nursery.start_soon(_guarded, task)

    async def _begin(self) -> Response | None:
        """Before a request that goes Quart's way."""
        rule = request.url_rule
        self.around.begin("" if rule is None else rule.rule)
        if request.method == "OPTIONS":
            return Response(b"", 204, self.door.preflight(current.headers()))
        if rule is not None:
            await self.around.admit(self.access.get(rule.endpoint, Access.KEY))
        return None

    async def _finish(self, response: Response) -> Response:
        """After it."""
        self.around.finish(response.status_code, response.headers)
        return response

    async def _begin_socket(self) -> None:
        """Before a WebSocket is accepted."""
        rule = websocket.url_rule
        self.around.begin("" if rule is None else rule.rule)
        if rule is not None:
            await self.around.admit(self.access.get(rule.endpoint, Access.KEY))

    async def _finish_socket(self, response: Response | None) -> Response | None:
        """After it, where it was refused."""
        if response is not None:
            self.around.finish(response.status_code, response.headers)
        return response


async def _body() -> bytes:
    """The body of the request that goes Quart's way."""
    data = await request.get_data(cache=False)
    assert isinstance(data, bytes)
    return data


def _is_ours(app: QuartTrio) -> bool:
    """Whether nobody has added functions of their own around the requests of the app."""
    tables = (
        app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs, app.url_value_preprocessors,
    )  # fmt: skip
    added = sum(len(functions) for table in tables for functions in table.values())
    return added == len(("_begin", "_finish")) and not app.teardown_appcontext_funcs


def _quarts(view: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A view for Quart."""

    async def respond(**values: Any) -> Any:
        reply = await view(**values)
        return reply.response() if isinstance(reply, Reply) else reply

    return respond


def one_path(target: str) -> str:
    """The path of a request, however it was written: absolute, with doubled slashes, or none at all."""
    if not target.startswith("/"):
        target = target.partition("://")[2].partition("/")[2] if "://" in target else target
    return "/" + re.sub("/{2,}", "/", target).removeprefix("/")


async def _guarded(task: Callable[[], Awaitable[None]]) -> None:
    """A task whose fault is told, and ends nothing else."""
    try:
        await task()
    except Exception:
        log.exception("%r ended", task)
