"""A small browser for the dashboard's tests: it keeps its cookie, fills in forms, and parses HTML."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode, urlsplit

from qproxy.server.asgi_client import InProcessClient

ADMIN_KEY = "the-admin's-key"
VOID = {"meta", "link", "input", "img", "br", "path", "rect"}


class Page(HTMLParser):
    """A response: its text, its elements (tag, attributes), its forms by their action."""

    def __init__(self, status, headers, body):
        super().__init__()
        self.status, self.headers, self.html = status, headers, body
        self.elements, self.words, self.forms = [], [], {}
        self.open, self.unclosed = [], []
        self._form = None
        self.feed(body)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "form":
            self._form = self.forms[values["action"]] = {}
        elif tag in ("input", "select", "textarea") and self._form is not None and "name" in values:
            self._form[values["name"]] = values.get("value") or ""

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            self.unclosed.append(tag)
        if tag == "form":
            self._form = None

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [values for name, values in self.elements if name == tag]

    @property
    def token(self):
        return next(form["token"] for form in self.forms.values() if "token" in form)


@dataclass
class Browser:
    """The browser of one user; `server` and `peer` are the addresses that the app sees."""

    app: Any
    server: str = "in-process"
    peer: str = "127.0.0.1"
    host: str = "in-process"
    scheme: str = "http"
    cookie: str = ""
    sent: list = field(default_factory=list)

    async def get(self, path, headers=()):
        return await self.ask("GET", path, headers)

    async def post(self, path, fields, headers=None):
        more = [(b"origin", f"{self.scheme}://{self.host}".encode())] if headers is None else list(headers)
        kind = (b"content-type", b"application/x-www-form-urlencoded")
        return await self.ask("POST", path, [kind, *more], urlencode(fields).encode())

    async def fill(self, page, action, **fields):
        """Send a form of a page."""
        return await self.post(action, {**page.forms[action], **fields})

    async def ask(self, method, path, headers=(), body=b""):
        request_headers = [(b"host", self.host.encode()), *headers]
        if self.cookie:
            request_headers.append((b"cookie", self.cookie.encode()))
        client = InProcessClient(self._app)
        async with client.request(method, path, headers=request_headers, body=body) as response:
            data = await response.read()
        fields = {name.decode().lower(): value.decode() for name, value in response.headers}
        if "set-cookie" in fields:
            self.cookie = fields["set-cookie"].partition(";")[0]
        return Page(response.status, fields, data.decode())

    async def _app(self, scope, receive, send):
        host = [pair for pair in scope["headers"] if pair != (b"host", b"in-process")]
        fields = host if self.host != "in-process" else scope["headers"]
        place = {"server": (self.server, 1), "client": (self.peer, 1), "scheme": self.scheme}
        await self.app({**scope, **place, "headers": fields}, receive, send)

    async def login(self, key=ADMIN_KEY):
        """Log in and return the page that follows."""
        form = await self.get("/dashboard/login")
        answer = await self.fill(form, "/dashboard/login", key=key)
        if answer.status != 303:
            return answer
        return await self.get(urlsplit(answer.headers["location"]).path)
