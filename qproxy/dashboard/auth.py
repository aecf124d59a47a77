"""Authentication of browsers, and protection of forms.

With an `admin_key`, a login creates a session; without one, only browsers on the server's machine have
access, as for the admin routes (`host_policy.require_local`). A form is accepted only from a page of this
server: the browser sends the origin (Origin, Sec-Fetch-Site), the session cookie is SameSite, and the form
contains the session's token.

Wrong admin keys are delayed and count against their address together with those of other routes
(`secret_limiter`).
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

import trio

from qproxy.access.grants import GrantStore, GrantStoreError
from qproxy.dashboard import sessions
from qproxy.dashboard.sessions import DashboardSession
from qproxy.server import request_context
from qproxy.server.host_policy import require_local
from qproxy.server.state import StateHolder
from qproxy.system.exposure import origin_authority
from qproxy.wire.errors import AuthenticationError, RequestError

COOKIE = "qproxy_dashboard"
PATH = "/dashboard"
GRANT_KIND = "dashboard session"
"""Kind of the grants of sessions."""
GUESS_SECONDS = 0.5
"""Seconds before the response to a wrong admin key."""
MAX_FIELDS = 50
FORM_TYPE = "application/x-www-form-urlencoded"
log = logging.getLogger("qproxy.dashboard")


class LoginRequired(Exception):
    """The page requires a login."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request of a browser."""

    session: DashboardSession
    secure: bool
    """Whether it came over TLS, if known."""
    query: Mapping[str, str]
    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: str = ""
    """The requested path."""
    origin: str = ""
    """The server's origin as the browser knows it."""
    actor: str = "dashboard"
    """Who it is in the audit log."""


class DashboardAuth:
    """The authentication of one server's dashboard."""

    def __init__(self, server: StateHolder, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._server = server
        self._wall_clock = wall_clock
        self._epoch = ""
        """Epoch of the admin key whose sessions this process has retained."""

    def __repr__(self) -> str:
        return f"<DashboardAuth {'without' if self.key is None else 'with'} an admin_key>"

    @property
    def key(self) -> str | None:
        """Return the current admin key."""
        return self._server.state.authentication.admin_key

    async def open_request(self) -> PageRequest:
        """Return the current request with its session. Raises GrantStoreError if sessions cannot be read."""
        scope, headers = request_context.scope(), request_context.headers()
        host = headers.get("host") or ""
        forwarded = (headers.get("x-forwarded-proto") or "").strip().lower()
        secure = scope["scheme"] == "https" or forwarded == "https"
        query = _fields(scope["query_string"])
        origin = f"{'https' if secure else 'http'}://{host}"
        session = await self._load_session(headers.get("cookie") or "")
        actor = f"dashboard {request_context.record().client or 'in process'}"
        return PageRequest(session, secure, query, {}, scope["path"], origin, actor)

    def require_login(self, visit: PageRequest) -> None:
        """Raise LoginRequired or a RequestError unless the visitor may administer the server."""
        check_origin()
        if self.key is None:
            require_local(request_context.headers(), request_context.scope())
        elif not visit.session.created:
            raise LoginRequired

    def check_form(self, visit: PageRequest) -> None:
        """Raise a RequestError unless the form was sent from a page of this session."""
        check_origin()
        if request_context.headers().get("sec-fetch-site", "same-origin") != "same-origin":
            raise _is_foreign("it was sent from another site")
        shown = visit.form.get("token", "")
        if not hmac.compare_digest(shown.encode(), visit.session.token.encode()):
            raise _is_foreign("it is too old: open the page again")

    async def login(self, shown: str) -> DashboardSession | None:
        """Return a session for the admin key, None for a wrong key. Raises a RequestError after too many."""
        state, key, shown = self._server.state, self.key, shown.strip()
        address = request_context.record().client or ""
        try:
            await state.admin_keys.verify(
                shown, address, partial(state.authentication.check_admin_key, shown)
            )
        except AuthenticationError:
            await trio.sleep(GUESS_SECONDS)
            return None
        session = sessions.new_session(key, self._wall_clock())
        await state.grants.add(
            GRANT_KIND,
            sessions.session_digest(session, key),
            session.expires,
            epoch=sessions.admin_key_epoch(key),
        )
        return session

    async def logout(self, session: DashboardSession) -> None:
        """Revoke the session in every process. Raises GrantStoreError."""
        if session.created:
            await self._server.state.grants.revoke(GRANT_KIND, sessions.session_digest(session, self.key))

    async def revoke_other_epochs(self) -> None:
        """Revoke the sessions of all other admin keys, even if one of those is set again."""
        epoch = _epoch(self.key)
        if epoch != self._epoch:
            await self._server.state.grants.retain(GRANT_KIND, epoch)
            self._epoch = epoch

    def set_cookie(self, session: DashboardSession, *, secure: bool) -> str:
        """Return the header that sets the session cookie."""
        value = sessions.to_cookie(session, self.key if session.created else None)
        left = max(0, session.expires - int(self._wall_clock()))
        return _cookie(value, left, secure=secure)

    async def _load_session(self, text: str) -> DashboardSession:
        """Return the session of the cookie, or a new one without a login."""
        value, now, key = _named(text), self._wall_clock(), self.key
        if key is not None:
            await self.revoke_other_epochs()
            session = sessions.from_cookie(value, key, now)
            if session and await self._server.state.grants.has(
                GRANT_KIND, sessions.session_digest(session, key)
            ):
                return session
        return sessions.from_cookie(value, None, now) or sessions.new_session(None, now)


async def end_stale_sessions(grants: GrantStore, admin_key: str | None) -> None:
    """Revoke the sessions of earlier admin keys when the server starts."""
    if admin_key is None:
        return
    try:
        await grants.retain(GRANT_KIND, _epoch(admin_key))
    except GrantStoreError as error:  # the first visit tries again, and reports it
        log.warning("cannot end the sessions of earlier admin keys: %s", error)


def _epoch(admin_key: str | None) -> str:
    """Return the epoch of an admin key's sessions; "" without a key, when there are no sessions."""
    return "" if admin_key is None else sessions.admin_key_epoch(admin_key)


def check_origin() -> None:
    """Raise a RequestError for a page of another origin, even one in `cors_origins`."""
    headers = request_context.headers()
    origin = headers.get("origin")
    if origin is not None and origin_authority(origin) != (headers.get("host") or None):
        raise _is_foreign("it was sent from another site, or a proxy changes the Host header")


def parse_form(body: bytes, content_type: str) -> dict[str, str]:
    """Parse the fields of a form. Raises a RequestError."""
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        raise RequestError(f"A form is sent as {FORM_TYPE}.", status=415, code="unsupported_media_type")
    return _fields(body)


def _fields(data: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise RequestError("The form fields cannot be parsed.", code="invalid_form") from None
    return dict(pairs)


def expired_cookie(*, secure: bool) -> str:
    """Return the header that deletes the session cookie."""
    return _cookie("", 0, secure=secure)


def _cookie(value: str, left: int, *, secure: bool) -> str:
    flags = f"; Path={request_context.root_path()}{PATH}; Max-Age={left}; HttpOnly; SameSite=Strict"
    return f"{COOKIE}={value}{flags}{'; Secure' if secure else ''}"


def _named(text: str) -> str:
    """Return the value of the session cookie among the browser's cookies."""
    try:
        morsel = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _is_foreign(why: str) -> RequestError:
    return RequestError(
        f"The form was rejected: {why}.", status=403, type="permission_error", code="form_rejected"
    )
