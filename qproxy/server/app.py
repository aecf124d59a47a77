"""The Quart-Trio app: routes from its families, and what happens around every request.

The idea: every request owns an exit stack and a nursery (`Connection`).  Whatever is opened for it is entered on the
stack: leases, upstream responses; what goes on beside it, tools, runs in the nursery.  Quart-Trio cancels the handler
when the client leaves; then the nursery is cancelled, and the stack closes everything, in whatever state it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException

from qproxy.admission import Admission
from qproxy.discovery import Discovery
from qproxy.door import SECURITY, Access, Door
from qproxy.observe import BeginsTraces, ToolRun
from qproxy.relay import Relay
from qproxy.server import current, refusals
from qproxy.server.asking import Asking
from qproxy.server.describing import Describing
from qproxy.server.embedding import Embedding
from qproxy.server.parts import Family, Parts, Route
from qproxy.server.plain import QUIET, Plain
from qproxy.server.responses import RememberedResponses, StoredResponses
from qproxy.server.signing_in import SigningIn
from qproxy.wire.errors import QproxyError

log = logging.getLogger("qproxy.server")


class Connection(TrioASGIHTTPConnection):
    """One request: its exit stack outlives everything done for it, and nothing outlives the stack."""

    async def __call__(self, receive: Any, send: Any) -> None:
        self.scope["path"] = one_path(self.scope["path"])
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            self.scope["qproxy.stack"] = stack  # type: ignore[typeddict-unknown-key]
            self.scope["qproxy.nursery"] = nursery  # type: ignore[typeddict-unknown-key]
            await super().__call__(receive, send)
            nursery.cancel_scope.cancel()  # the answer is whole, or nobody waits for it any more


class Server(Parts):
    """The app and what it stands on."""

    def __init__(
        self, relay: Relay, discovery: Discovery, door: Door, admission: Admission | None = None
    ) -> None:
        super().__init__(relay, discovery, door, admission)
        asking = Asking(self, {"/responses": RememberedResponses})
        self.families: list[Family] = [
            asking, Embedding(self), StoredResponses(self), Plain(self), SigningIn(self),
        ]  # fmt: skip
        self.families.append(Describing(self, self.families))
        self.access: dict[str, Access] = {}
        """Who may use each route, by its name; one that is not named here wants a key."""
        self.background: list[Callable[[], Awaitable[None]]] = [self.keepers.run]
        """What runs beside the requests, from the start until it is cancelled at the end."""
        self._keep()
        self.tracer: BeginsTraces | None = None
        self._nursery: trio.Nursery | None = None
        """While the app is served."""

    def app(self) -> QuartTrio:
        """A new Quart-Trio app with every route."""
        app = QuartTrio("qproxy", static_folder=None)
        app.asgi_http_class = Connection
        app.config["RESPONSE_TIMEOUT"] = None  # Quart's 60 s would cut streams without a word
        app.config["BODY_TIMEOUT"] = self.door.body_timeout
        app.config["MAX_CONTENT_LENGTH"] = self.door.max_body_bytes
        app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False  # or a redirect in HTML; see `one_path`
        for family in self.families:
            for route in family.routes():
                self._add(app, route)
        app.register_error_handler(QproxyError, refusals.refusal)
        app.register_error_handler(HTTPException, refusals.http_refusal)
        app.register_error_handler(Exception, refusals.fault)
        app.before_request(self._begin)
        app.after_request(self._finish_headers)
        app.while_serving(partial(self._while_serving, app))
        return app

    def _add(self, app: QuartTrio, route: Route) -> None:
        for path in route.paths():
            name = f"{' '.join(route.methods)} {path}"
            self.access[name] = route.access
            app.add_url_rule(path, name, route.view, methods=list(route.methods))

    async def take_up(self, parts: Server) -> None:
        """Serve with other parts from the next request on; those of the requests under way end with them."""
        before, accounts = self.relay.transport, self.relay.accounts
        accounts.renew(parts.relay.accounts)
        parts.relay.accounts = accounts
        self.relay, self.discovery, self.door = parts.relay, parts.discovery, parts.door
        self.bodies, self.pricing = parts.bodies, parts.pricing
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

    def _keep(self) -> None:
        self.keepers.keep(account.source for account in self.relay.accounts.accounts)

    async def _beside(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for task in self.background:
                    nursery.start_soon(_guarded, task)

    async def _begin(self) -> Response | None:
        """Before a request's view: who is it."""
        scope = current.scope()
        record, rule = current.record(), request.url_rule
        record.endpoint = "" if rule is None else rule.rule.removeprefix("/v1")
        if request.path not in QUIET:
            self.counts.began(record)
            current.stack().callback(self.counts.finished, record)
            if self.tracer is not None:
                record.story.trace = self.tracer.begin(record, request.headers.get)
        self.door.check_framing(request.headers)
        if request.method == "OPTIONS":
            return Response(b"", 204, self.door.preflight(request.headers))
        access = Access.KEY if rule is None else self.access.get(rule.endpoint, Access.KEY)
        if rule is not None and access is Access.KEY:
            key = scope["qproxy.key"] = self.door.client(request.headers, scope)
            record.key = None if key is None else key.label
        elif access is Access.ADMIN:
            self.door.admit_admin(request.headers, scope)
        return None

    async def _finish_headers(self, response: Response) -> Response:
        """After it: what every response says of itself."""
        scope, record = current.scope(), current.record()
        record.status = response.status_code
        if record.outcome == "client_left" and not record.stream:
            record.outcome = "ok"  # an error has said so by now
        story, headers = record.story, response.headers
        headers["x-request-id"] = record.id
        headers["openai-processing-ms"] = str(round(record.seconds * 1000))
        headers.update({**SECURITY, **self.door.page_fields(request.headers)})
        if "qproxy.meter" in scope:
            headers.update(scope["qproxy.meter"].headers(trio.current_time()))
        if not record.stream and story.tries:
            headers["x-qproxy-overhead-ms"] = f"{record.overhead * 1000:.1f}"
        if story.upstream_request_id:
            headers["x-qproxy-upstream-request-id"] = _header_text(story.upstream_request_id)
        if story.ignored:
            headers["x-qproxy-ignored-params"] = _header_text(", ".join(story.ignored))
        if story.notes:
            headers["x-qproxy-notes"] = _header_text("; ".join(story.notes))
        if record.tools and not record.stream:
            headers["x-qproxy-tools"] = _header_text(", ".join(map(_ran, record.tools)))
        return response


def one_path(target: str) -> str:
    """The path of a request, however it was written: absolute, with doubled slashes, or none at all."""
    if not target.startswith("/"):
        target = target.partition("://")[2].partition("/")[2] if "://" in target else target
    return "/" + re.sub("/{2,}", "/", target).removeprefix("/")


def _ran(tool: ToolRun) -> str:
    """A call of a tool, as an item of a structured field (RFC 8941)."""
    return f"{tool.name};ok=?{tool.ok:d};ms={tool.seconds * 1000:.0f}"


async def _guarded(task: Callable[[], Awaitable[None]]) -> None:
    """A task whose fault is told, and ends nothing else."""
    try:
        await task()
    except Exception:
        log.exception("%r ended", task)


def _header_text(text: str) -> str:
    """Text that may stand in a header field: printable ASCII, at most 1,000 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:1000])
