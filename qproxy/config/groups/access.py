"""API keys, the admin, and which pages and proxies are trusted."""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.config.setting import setting


@dataclass(frozen=True)
class AccessSettings:
    """API keys, the admin, and which pages and proxies are trusted."""

    api_keys: list[str] = setting(
        [],
        "API keys that clients must send (or their SHA-256 in hex); without any, every key is accepted",
        secret=True,
    )
    keys_file: str | None = setting(
        None, "file of the API keys that `qproxy keys` creates; default keys.json in the data directory"
    )
    account_state_file: str | None = setting(
        None,
        "file of the accounts' state, shared by all processes; default accounts.db in the data directory",
    )
    rate_limits_file: str | None = setting(
        None,
        "file of the API keys' remaining requests and tokens per minute, shared by all processes; default "
        "meters in the data directory",
    )
    admin_key: str | None = setting(
        None,
        "key for the admin routes; without one they are only available from localhost, if the server "
        "listens on loopback",
        secret=True,
    )
    admin_key_file: str | None = setting(None, "file with the admin_key, instead of admin_key")
    wrong_keys_per_minute: int = setting(
        10,
        "wrong API keys and wrong admin keys that a client address may send per minute; above that it must "
        "wait, except with keys accepted from it before; 0 is no limit",
    )
    wrong_keys_file: str | None = setting(
        None,
        "file of the client addresses' remaining wrong keys per minute, shared by all processes; default "
        "wrong_keys in the data directory",
    )
    access_file: str | None = setting(
        None,
        "file of the digests of dashboard sessions and accepted keys, shared by all processes; default "
        "access.sqlite3 in the data directory",
    )
    audit_file: str | None = setting(
        None,
        "file of changes of keys, accounts and settings, with who made them; default audit.jsonl in the data "
        "directory",
    )
    trusted_proxies: list[str] = setting(
        [],
        "addresses and networks (10.0.0.0/8) of reverse proxies whose X-Forwarded-For and Forwarded headers "
        "are trusted; `unix` is the peer of a Unix socket",
    )
    insecure_no_auth: bool = setting(False, "listen on non-loopback addresses without api_keys")
    allowed_hosts: list[str] = setting(
        [], "further Host names to accept on loopback when there are no API keys; `*` is any"
    )
    cors_origins: list[str] = setting([], "origins whose web pages may use the server; `*` is any")
