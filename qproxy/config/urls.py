"""URLs in settings and arguments."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

HTTP = ("http", "https")


def split_url(url: str, schemes: Collection[str] = HTTP) -> SplitResult | None:
    """Return the parts of an absolute URL, or None if its scheme, host or port is missing or invalid.

    A query, a fragment or a user name is invalid, too: base URLs have none.
    """
    try:
        parts = urlsplit(url)
        url.encode("ascii")
        has_valid_port = parts.port is None or parts.port > 0
    except ValueError:  # an unclosed bracket, a port above 65535, characters to be encoded
        return None
    if parts.scheme not in schemes or not parts.hostname or not has_valid_port or " " in url:
        return None
    return None if parts.query or parts.fragment or "@" in parts.netloc else parts


def complete_base_url(url: str) -> str:
    """Return a valid base URL without a trailing slash, and with /v1 if it has no path."""
    parts = urlsplit(url)
    return f"{url.rstrip('/')}{'' if parts.path.strip('/') else '/v1'}"
