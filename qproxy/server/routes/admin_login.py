"""The admin routes that sign an account in, for a server without a terminal.

    POST   /admin/accounts/NAME/login   begin (201), or attach to the one under way (200)
    GET    /admin/accounts/NAME/login   how it stands; finished ones for five minutes
    DELETE /admin/accounts/NAME/login   cancel it

An answer has what the person needs (the page, the code, how long they last) and never the device code or the verifier.
"""

from __future__ import annotations

from collections.abc import Iterator

from qproxy.auth import OAuthSource
from qproxy.auth.device_flow import LoginProgress
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_policy import Access
from qproxy.server.state import Route, ServerState
from qproxy.wire.errors import RequestError

PATH = "/admin/accounts/<name>/login"


class AdminLoginRoutes:
    """The views and their routes."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> Iterator[Route]:
        for method, view in (("POST", self._start), ("GET", self._progress), ("DELETE", self._cancel)):
            yield Route(PATH, (method,), view, Access.ADMIN, versioned=False)

    async def _start(self, name: str) -> HTTPResponse:
        progress, new = await self._state.login_sessions.start(oauth_source(self._state, name))
        return _answer(name, progress, 201 if new else 200)

    async def _progress(self, name: str) -> HTTPResponse:
        oauth_source(self._state, name)
        return _answer(name, self._state.login_sessions.progress(name))

    async def _cancel(self, name: str) -> HTTPResponse:
        oauth_source(self._state, name)
        return _answer(name, await self._state.login_sessions.cancel(name))


def oauth_source(state: ServerState, name: str) -> OAuthSource:
    """The account's source; RequestError when it cannot be signed in."""
    found = [account for account in state.relay.accounts.accounts if account.name == name]
    if not found:
        raise RequestError(f"There is no account {name[:200]!r}.", status=404, code="account_not_found")
    source = found[0].source
    if not isinstance(source, OAuthSource):
        message = f'The account {name!r} has a key; only accounts of the kind "oauth" are signed in.'
        raise RequestError(message, code="account_has_a_key")
    return source


def _answer(name: str, progress: LoginProgress | None, status: int = 200) -> HTTPResponse:
    if progress is None:
        message = f"No sign-in of the account {name!r} is under way or has just ended."
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
