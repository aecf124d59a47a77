"""Rendering of pages: templates, security headers and static files.

Templates escape every value; only the generated SVG of a QR code is marked as safe. The
Content-Security-Policy allows resources of this server only, and nothing inline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qproxy.dashboard import formatting
from qproxy.dashboard.auth import PageRequest
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.version import VERSION

HTML = "text/html; charset=utf-8"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",  # with "no-referrer" a form's Origin header would be null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
CONTENT_TYPES = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Media types of the static files."""
PAGES = (
    ("/dashboard", "Overview"),
    ("/dashboard/requests", "Requests"),
    ("/dashboard/accounts", "Accounts"),
    ("/dashboard/keys", "Keys"),
    ("/dashboard/tools", "Tools"),
    ("/dashboard/connect", "Connect"),
)


class PageRenderer:
    """Renders templates as responses."""

    def __init__(self) -> None:
        folder = files("qproxy.dashboard") / "static"
        self._static = {name: (folder / name).read_bytes() for name in CONTENT_TYPES}
        digest = hashlib.sha256(b"".join(self._static.values())).hexdigest()[:12]
        self._environment = Environment(
            loader=PackageLoader("qproxy.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(
            number=formatting.format_number, span=formatting.format_duration,
            ms=formatting.format_milliseconds, moment=formatting.format_moment,
            money=formatting.format_money, ago=formatting.format_ago, ahead=formatting.format_ahead,
        )  # fmt: skip
        self._environment.globals.update(
            root=request_context.root_path,
            pages=PAGES,
            version=VERSION,
            mark=digest,
            plural=formatting.plural,
        )

    def page(
        self, visit: PageRequest, template: str, status: int = 200, /, *, known: bool = True, **values: Any
    ) -> HTTPResponse:
        """Render a page; `known`: whether the visitor may see the other pages."""
        text = self._environment.get_template(template).render(visit=visit, known=known, **values)
        return HTTPResponse(text.encode(), status, HTML, dict(PAGE_HEADERS))

    def static(self, name: str) -> HTTPResponse | None:
        """Return a static file; its URL changes with its content."""
        if name not in self._static:
            return None
        fields = {"cache-control": "public, max-age=31536000, immutable"}
        return HTTPResponse(self._static[name], 200, CONTENT_TYPES[name], fields)


@cache
def page_renderer() -> PageRenderer:
    """Return the renderer of this process: the apps have the same templates, which are compiled once."""
    return PageRenderer()


def redirect(path: str, fields: Mapping[str, str] | None = None) -> HTTPResponse:
    """Redirect to another page of the dashboard, by GET."""
    location = request_context.root_path() + path
    return HTTPResponse(b"", 303, HTML, {**PAGE_HEADERS, "location": location, **(fields or {})})
