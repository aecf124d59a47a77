"""Checks of settings that `Config.check` makes: of the workers, the admin key, the certificate and URLs."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping

from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.config.urls import split_url

MAX_WORKERS = 256
MIN_ADMIN_KEY = 15
"""Minimum length of a single-factor secret (NIST SP 800-63B-4 3.1.1.2)."""
MIN_ADMIN_KEY_VARIETY = 6
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_server(workers: int, port: int) -> None:
    """Raise ConfigError for too many workers or an invalid port."""
    if workers > MAX_WORKERS:
        raise ConfigError(f"workers: must be at most {MAX_WORKERS}.")
    if port > 65535:
        raise ConfigError("port: must be at most 65535.")


def check_host(host: str) -> None:
    """Raise ConfigError if text is no host name or address (RFC 5890)."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ConfigError(f"host: {host!r:.80} is not a valid host name or address.") from None


def check_root_path(path: str) -> None:
    """Raise ConfigError unless text is a path without a slash at its end, or empty."""
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]++)*+", path):
        raise ConfigError(f"root_path: {path!r:.80} is not a path such as /qproxy.")


def check_admin_key(key: str | None) -> None:
    """Raise ConfigError if the admin_key is guessable."""
    if key is None or (len(key) >= MIN_ADMIN_KEY and len(set(key)) >= MIN_ADMIN_KEY_VARIETY):
        return
    raise ConfigError(
        f"admin_key: too easy to guess. Use at least {MIN_ADMIN_KEY} characters, "
        f"{MIN_ADMIN_KEY_VARIETY} of them different, such as the output of: openssl rand -base64 24"
    )


def check_certificate(certfile: str | None, keyfile: str | None) -> None:
    """Raise ConfigError unless both files are set and load, or neither is set."""
    if (certfile is None) != (keyfile is None):
        raise ConfigError("certfile and keyfile must be set together.")
    if certfile is None:
        return
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        is_read = isinstance(error, ssl.SSLError)
        reason = "not a certificate and its key in PEM form" if is_read else error.strerror
        raise ConfigError(f"certfile {certfile}, keyfile {keyfile}: {reason}.") from None


def check_identity_server(name: str, url: str) -> None:
    """Raise ConfigError unless the setting `name` is an https URL, or http on localhost."""
    parts = split_url(url)
    if parts is None or (parts.scheme != "https" and parts.hostname not in LOOPBACK):
        raise ConfigError(f"{name}: must be an https URL, or http on localhost.")


def base_url_notices(given: Mapping[str, str | None], resolved: Iterable[AccountConfig]) -> list[str]:
    """Return a notice for each account whose base URL, as it was given, was completed with /v1."""
    return [
        f"account {account.name!r}: base_url has no path; using {account.base_url}."
        for account in resolved
        if (url := given.get(account.name)) is not None and url.rstrip("/") != account.base_url
    ]
