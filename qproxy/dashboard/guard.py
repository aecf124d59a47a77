"""Who may come in by a browser, and what a form must show.

With an `admin_key` whoever has typed it in, for as long as the session lasts; without one, browsers on the server's own
machine, as for the admin routes (`Door.admit_local`).  A form is taken only from a page of this server: the browser says
where it comes from (Origin, Sec-Fetch-Site), the session's cookie is not sent along from elsewhere (SameSite), and the
form repeats the session's token.

Guesses at the admin_key wait, and each address has few of them a minute.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlsplit

import trio

from qproxy.bucket import Bucket
from qproxy.dashboard import sessions
from qproxy.dashboard.sessions import Session
from qproxy.server import current
from qproxy.server.parts import Parts
from qproxy.wire.errors import RequestError

COOKIE = "qproxy_dashboard"
PATH = "/dashboard"
GUESSES = 5
"""A minute, from one address."""
GUESS_SECONDS = 0.5
"""How long a wrong one waits for its answer."""
MAX_ADDRESSES = 1000
MAX_FIELDS = 50
FORM_TYPE = "application/x-www-form-urlencoded"


class LoginNeededError(Exception):
    """The page is for somebody who has signed in."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request by a browser."""

    session: Session
    secure: bool
    """Whether it came over TLS, as far as can be told."""
    query: Mapping[str, str]
    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    here: str = ""
    """The path that was asked for."""
    origin: str = ""
    """This server's, as the browser knows it."""


class Guard:
    """Of one server."""

    def __init__(self, parts: Parts, *, wall: Callable[[], float] = time.time) -> None:
        self._parts = parts
        self._wall = wall
        self._ended: dict[str, int] = {}
        """Sessions that were logged out before their end."""
        self._guesses: dict[str, Bucket] = {}

    def __repr__(self) -> str:
        return f"<Guard {len(self._ended)} logged out, {len(self._guesses)} addresses with guesses>"

    @property
    def key(self) -> str | None:
        """The admin_key now."""
        return self._parts.door.admin_key

    def visit(self) -> Visit:
        """The request being served."""
        scope, headers = current.scope(), current.headers()
        host = headers.get("host") or ""
        forwarded = (headers.get("x-forwarded-proto") or "").strip().lower()
        secure = scope["scheme"] == "https" or forwarded == "https"
        query = _fields(scope["query_string"])
        origin = f"{'https' if secure else 'http'}://{host}"
        return Visit(self._session(headers.get("cookie") or ""), secure, query, {}, scope["path"], origin)

    def admit(self, visit: Visit) -> None:
        """LoginNeededError or a RequestError unless the visitor runs the server."""
        check_origin()
        if self.key is None:
            self._parts.door.admit_local(current.headers(), current.scope())
        elif not visit.session.signed_in:
            raise LoginNeededError

    def check_form(self, visit: Visit) -> None:
        """RequestError unless the form was sent from a page that this session was given."""
        check_origin()
        if current.headers().get("sec-fetch-site", "same-origin") != "same-origin":
            raise _foreign("it was sent from another site")
        shown = visit.form.get("token", "")
        if not hmac.compare_digest(shown.encode(), visit.session.token.encode()):
            raise _foreign("it is too old: open the page again")

    async def login(self, shown: str) -> Session | None:
        """A session for whoever shows the admin_key; None for a wrong one, RequestError for too many."""
        key, guesses = self.key, self._bucket()
        if wait := guesses.wait(1, trio.current_time()):
            raise RequestError(
                f"Too many wrong keys from your address: wait {wait:.0f} s.",
                status=429, code="too_many_attempts", retry_after=wait,
            )  # fmt: skip
        guesses.take(1, trio.current_time())
        if key is not None and hmac.compare_digest(shown.strip().encode(), key.encode()):
            guesses.put(GUESSES, trio.current_time())
            return sessions.begin(key, self._wall())
        await trio.sleep(GUESS_SECONDS)
        return None

    def logout(self, session: Session) -> None:
        """The session's cookie is worth nothing any more."""
        now = self._wall()
        self._ended = {name: ends for name, ends in self._ended.items() if ends > now}
        self._ended[session.name] = session.ends

    def set_cookie(self, session: Session, *, secure: bool) -> str:
        """The header field that gives a browser its session."""
        value = sessions.cookie(session, self.key if session.signed_in else None)
        left = max(0, session.ends - int(self._wall()))
        return _cookie(value, left, secure=secure)

    def _session(self, text: str) -> Session:
        """The session that the browser names, or a new one for somebody who has not signed in."""
        value, now = _named(text), self._wall()
        for key in (None,) if self.key is None else (self.key, None):
            session = sessions.read(value, key, now)
            if session is not None and session.name not in self._ended:
                return session
        return sessions.begin(None, now)

    def _bucket(self) -> Bucket:
        address = str((current.scope().get("client") or ("", 0))[0])
        bucket = self._guesses.pop(address, None) or Bucket(GUESSES, trio.current_time())
        self._guesses[address] = bucket
        if len(self._guesses) > MAX_ADDRESSES:  # the one that guessed longest ago
            del self._guesses[next(iter(self._guesses))]
        return bucket


def check_origin() -> None:
    """RequestError for a request by a page of another origin, also one that may use the API (`cors_origins`)."""
    headers = current.headers()
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
        raise _foreign("it was sent from another site, or a proxy changes the Host field")


def form_of(body: bytes, content_type: str) -> dict[str, str]:
    """The fields of a form's body; RequestError when it is none."""
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        raise RequestError(f"A form is sent as {FORM_TYPE}.", status=415, code="unsupported_media_type")
    return _fields(body)


def _fields(data: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise RequestError("The fields of the request cannot be read.", code="invalid_form") from None
    return dict(pairs)


def no_cookie(*, secure: bool) -> str:
    """The header field that takes a browser's session away."""
    return _cookie("", 0, secure=secure)


def _cookie(value: str, left: int, *, secure: bool) -> str:
    flags = f"; Path={PATH}; Max-Age={left}; HttpOnly; SameSite=Strict"
    return f"{COOKIE}={value}{flags}{'; Secure' if secure else ''}"


def _named(text: str) -> str:
    """The value of our cookie among a browser's cookies."""
    try:
        morsel = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _foreign(why: str) -> RequestError:
    return RequestError(
        f"The request was not taken: {why}.", status=403, type="permission_error", code="form_refused"
    )
