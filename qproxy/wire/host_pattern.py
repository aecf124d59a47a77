"""Patterns of the hosts that may receive a request: a closed list, never a guess.

A host is reached by https; a whole origin (`http://127.0.0.1:8090`) allows anything else. A `*` in a host
stands for characters of one label, as in a certificate (RFC 9525 6.3): under a cloud's domain the deeper
names belong to its tenants, such as `BUCKET.oss-cn-beijing.aliyuncs.com`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from re import fullmatch
from urllib.parse import SplitResult, urlsplit


def split_url(url: str) -> SplitResult | None:
    """Return the parts of an absolute URL with a plain host; None for any other text."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.fragment or parts.username is not None or not fullmatch(r"[a-z0-9.:-]+", host):
        return None
    return parts if parts.scheme in ("http", "https") else None


def is_allowed(parts: SplitResult, patterns: Iterable[str]) -> bool:
    """Return whether a pattern allows the scheme, the host and the port of a URL."""
    return any(
        _allows(pattern, parts.scheme, parts.hostname or "", parts.netloc.lower()) for pattern in patterns
    )


def _allows(pattern: str, scheme: str, host: str, netloc: str) -> bool:
    if "://" in pattern:
        return f"{scheme}://{netloc}" == pattern.lower().rstrip("/")
    return scheme == "https" and netloc in (host, f"{host}:443") and _matches(pattern.lower(), host)


def _matches(pattern: str, host: str) -> bool:
    """Return whether the pattern matches the host, label by label."""
    labels, wanted = host.split("."), pattern.split(".")
    return len(labels) == len(wanted) and all(map(fnmatchcase, labels, wanted))
