"""URLs of realtime models."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

PATH = "/api-ws/v1/realtime"


def default_realtime_url(base_url: str) -> str:
    """Return Model Studio's realtime URL on the host of an account's base URL."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}{PATH}"


def session_url(realtime_url: str, model: str) -> str:
    """Return the URL of a session with a model; ws(s) is http(s) until it is upgraded."""
    web = realtime_url.replace("ws", "http", 1) if realtime_url.startswith("ws") else realtime_url
    return f"{web}{'&' if '?' in web else '?'}model={quote(model, safe='')}"
