"""The admin routes that log an account in, for a server without a terminal.

    POST   /admin/accounts/NAME/login   start (201), or return the one in progress (200)
    GET    /admin/accounts/NAME/login   its progress; finished ones for five minutes
    DELETE /admin/accounts/NAME/login   cancel it

A response holds what a person needs (the page, the code, their lifetime), never the device code or the
verifier.
"""

from __future__ import annotations

from collections.abc import Iterator

from qproxy.auth import OAuthSource
from qproxy.auth.device_flow import LoginProgress
from qproxy.server import request_context
from qproxy.server.authentication import Access
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.telemetry.audit import AuditEntry
from qproxy.wire.errors import RequestError

PATH = "/admin/accounts/<name>/login"


class AdminLoginRoutes:
    """Start, show and cancel logins."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        for method, view in (("POST", self._start), ("GET", self._progress), ("DELETE", self._cancel)):
            yield Route(PATH, (method,), view, Access.ADMIN, versioned=False)

    async def _start(self, name: str) -> HTTPResponse:
        state = self._server.state
        progress, new = await state.login_sessions.start(oauth_source(state, name))
        if new:
            await state.audit.record(AuditEntry(_actor(), "account.login", name, "started"))
        return _answer(name, progress, 201 if new else 200)

    async def _progress(self, name: str) -> HTTPResponse:
        oauth_source(self._server.state, name)
        return _answer(name, await self._server.state.login_sessions.progress(name))

    async def _cancel(self, name: str) -> HTTPResponse:
        oauth_source(self._server.state, name)
        progress = await self._server.state.login_sessions.cancel(name)
        if progress is not None:
            await self._server.state.audit.record(AuditEntry(_actor(), "account.login", name, "cancelled"))
        return _answer(name, progress)


def _actor() -> str:
    return f"admin API {request_context.record().client or 'in process'}"


def oauth_source(state: ServerState, name: str) -> OAuthSource:
    """Return the account's credential source.  Raises RequestError when it has no login."""
    found = [account for account in state.relay.accounts.accounts if account.name == name]
    if not found:
        raise RequestError(f"Unknown account {name[:200]!r}.", status=404, code="account_not_found")
    source = found[0].source
    if not isinstance(source, OAuthSource):
        message = f'Account {name!r} uses an API key; only accounts of kind "oauth" log in.'
        raise RequestError(message, code="account_uses_api_key")
    return source


def _answer(name: str, progress: LoginProgress | None, status: int = 200) -> HTTPResponse:
    if progress is None:
        message = f"Account {name!r} has no login in progress or recently finished."
        raise RequestError(message, status=404, code="login_not_found")
    body = {
        "account": name,
        "state": progress.state,
        "message": progress.message,
        "user_code": progress.user_code or None,
        "verification_uri": progress.verification_uri or None,
        "expires_in": round(progress.seconds_left),
    }
    return json_response(body, status)
