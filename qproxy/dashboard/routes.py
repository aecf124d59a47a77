"""The routes of the dashboard: authentication, form checks and error pages around each view.

A view receives an authenticated `PageRequest` with a checked form, and returns a response. A new group of
pages is a class with `views()` and a row in `DashboardRoutes`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

from qproxy.dashboard import auth
from qproxy.dashboard.auth import DashboardAuth, LoginRequired, PageRequest
from qproxy.dashboard.rendering import page_renderer, redirect
from qproxy.dashboard.views.accounts import AccountPages
from qproxy.dashboard.views.connect import ConnectPage
from qproxy.dashboard.views.keys import KeyPages
from qproxy.dashboard.views.overview import OverviewPages
from qproxy.dashboard.views.requests import RequestPages
from qproxy.dashboard.views.tools import ToolPages
from qproxy.server import error_handlers, request_context
from qproxy.server.authentication import Access
from qproxy.server.http_response import HTTPResponse
from qproxy.server.state import Route, StateHolder
from qproxy.wire.errors import QproxyError, RequestError

View: TypeAlias = Callable[..., Awaitable[HTTPResponse]]
LOGIN_PAGE = "/dashboard/login"
MAX_FORM = 64 * 1024


class PageGroup(Protocol):
    """A group of pages."""

    def views(self) -> Iterator[tuple[str, str, View]]:
        """Yield (method, path below /dashboard, view); a view takes a `PageRequest` and path parameters."""
        ...


class DashboardRoutes:
    """The routes of all pages."""

    def __init__(self, server: StateHolder, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._auth = DashboardAuth(server, wall_clock=wall_clock)
        self._pages = pages = page_renderer()
        self._families: list[PageGroup] = [
            OverviewPages(server, pages, wall_clock), RequestPages(server, pages, wall_clock),
            AccountPages(server, pages, wall_clock),
            KeyPages(server, pages, wall_clock), ToolPages(server, pages), ConnectPage(server, pages),
        ]  # fmt: skip

    def routes(self) -> Iterator[Route]:
        yield self._route("/login", "GET", self._form, admitted=False)
        yield self._route("/login", "POST", self._login, admitted=False)
        yield self._route("/logout", "POST", self._logout, admitted=False)
        yield Route("/dashboard/static/<path:name>", ("GET",), self._static, Access.SESSION, versioned=False)
        for family in self._families:
            for method, path, view in family.views():
                yield self._route(path, method, view)
        yield self._route("/<path:name>", "GET", _unknown_page)

    def _route(self, path: str, method: str, view: View, *, admitted: bool = True) -> Route:
        served = partial(self._serve, view, method, admitted)
        return Route(f"/dashboard{path}", (method,), served, Access.SESSION, versioned=False)

    async def _serve(self, view: View, method: str, admitted: bool, **values: Any) -> HTTPResponse:
        """Return a view's page, the login page or an error page."""
        visit = None
        try:
            visit = await self._auth.open_request()
            if admitted:
                self._auth.require_login(visit)
            if method == "POST":
                visit = await self._with_form(visit)
            reply = await view(visit, **values)
        except LoginRequired:
            target = visit.path if visit is not None and method == "GET" else auth.PATH
            return redirect(f"{LOGIN_PAGE}?next={quote(target)}")
        except QproxyError as error:
            return self._error_page(visit, error)
        if "set-cookie" not in reply.headers:
            reply.headers["set-cookie"] = self._auth.set_cookie(visit.session, secure=visit.secure)
        return reply

    async def _with_form(self, visit: PageRequest) -> PageRequest:
        body = await request_context.body()
        if len(body) > MAX_FORM:
            raise RequestError("The form is too large.", status=413, code="request_too_large")
        visit = replace(
            visit, form=auth.parse_form(body, request_context.headers().get("content-type") or "")
        )
        self._auth.check_form(visit)
        return visit

    def _error_page(self, visit: PageRequest | None, error: QproxyError) -> HTTPResponse:
        """Return an error as a page with its code and status."""
        plain = error_handlers.error_response(error)
        if visit is None:
            return plain
        page = self._pages.page(visit, "refused.html", error.status, known=False, message=error.message)
        page.headers.update(plain.headers)
        return page

    async def _static(self, name: str) -> HTTPResponse:
        found = self._pages.static(name)
        if found is None:
            raise RequestError(f"Unknown file {name[:100]!r}.", status=404, code="unknown_url")
        return found

    async def _form(self, visit: PageRequest) -> HTTPResponse:
        if self._auth.key is None or visit.session.created:
            return redirect(auth.PATH)
        return self._login_page(visit)

    def _login_page(self, visit: PageRequest, message: str = "", status: int = 200) -> HTTPResponse:
        target = visit.form.get("next") or visit.query.get("next") or ""
        return self._pages.page(visit, "login.html", status, known=False, message=message, next=target)

    async def _login(self, visit: PageRequest) -> HTTPResponse:
        session = await self._auth.login(visit.form.get("key", ""))
        if session is None:
            return self._login_page(visit, "Incorrect admin key.", 401)
        cookie = self._auth.set_cookie(session, secure=visit.secure)
        return redirect(safe_redirect(visit.form.get("next", "")), {"set-cookie": cookie})

    async def _logout(self, visit: PageRequest) -> HTTPResponse:
        await self._auth.logout(visit.session)
        return redirect(LOGIN_PAGE, {"set-cookie": auth.expired_cookie(secure=visit.secure)})


def safe_redirect(target: str) -> str:
    """Return the page after the login, restricted to paths of the dashboard."""
    inside = target == auth.PATH or target.startswith(f"{auth.PATH}/")
    plain = all(char.isalnum() or char in "/-_.~%" for char in target) and target.isascii()
    return target if inside and plain and ".." not in target else auth.PATH


async def _unknown_page(visit: PageRequest, name: str) -> HTTPResponse:
    """Reject the path of no page."""
    message = f"There is no page /dashboard/{name[:100]}."
    raise RequestError(message, status=404, code="unknown_url")
