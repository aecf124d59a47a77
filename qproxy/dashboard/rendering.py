"""What every page is made of: a template, the header fields that fence it in, and the two files it loads.

Templates escape whatever they are given; nothing here or in a template marks anything as safe but the drawing of a QR
code, which is ours.  The policy lets a page load from this server and nowhere else, and nothing inline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qproxy.dashboard import formatting as words
from qproxy.dashboard.auth import Visit
from qproxy.server.http_response import Reply
from qproxy.version import VERSION

HTML = "text/html; charset=utf-8"
FENCE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",  # with "no-referrer" a form's Origin field would say null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
KINDS = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The static files."""
PAGES = (
    ("/dashboard", "Overview"),
    ("/dashboard/requests", "Requests"),
    ("/dashboard/accounts", "Accounts"),
    ("/dashboard/keys", "Keys"),
    ("/dashboard/tools", "Tools"),
    ("/dashboard/connect", "Connect"),
)


class Pages:
    """Makes replies of templates."""

    def __init__(self) -> None:
        folder = files("qproxy.dashboard") / "static"
        self._static = {name: (folder / name).read_bytes() for name in KINDS}
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
            number=words.number, span=words.span, ms=words.milliseconds, moment=words.moment,
            money=words.money, ago=words.ago, ahead=words.ahead,
        )  # fmt: skip
        self._environment.globals.update(pages=PAGES, version=VERSION, mark=digest, plural=words.plural)

    def page(
        self, visit: Visit, template: str, status: int = 200, /, *, known: bool = True, **values: Any
    ) -> Reply:
        """A page; `known` says whether the visitor may see the others too."""
        text = self._environment.get_template(template).render(visit=visit, known=known, **values)
        return Reply(text.encode(), status, HTML, dict(FENCE))

    def static(self, name: str) -> Reply | None:
        """A static file; its address changes with what is in it."""
        if name not in self._static:
            return None
        fields = {"cache-control": "public, max-age=31536000, immutable"}
        return Reply(self._static[name], 200, KINDS[name], fields)


def redirect(path: str, fields: Mapping[str, str] | None = None) -> Reply:
    """On to another page of ours, by GET."""
    return Reply(b"", 303, HTML, {**FENCE, "location": path, **(fields or {})})
