"""The table of settings: one frozen `Config`.

The fields are the table: name, type, default and help.  The flags of `qproxy serve`, the `QPROXY_*` variables, the
keys of `qproxy.toml` and `docs/configuration.md` are all derived from it (`parsing`).  A field of the type
`tuple[Record, ...]` is an array of tables in the file, such as `[[accounts]]`; it has no flag and no variable.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from qproxy.config.accounts import AccountConfig, ConfigError, key_warnings, resolve_account
from qproxy.config.tools import McpServerConfig, ToolConfig, ToolRuleConfig
from qproxy.system.exposure import exposed_without_keys_message, is_loopback
from qproxy.wire.models import ModelRow

MAX_WORKERS = 256
MIN_ADMIN_KEY = 15
"""Characters of a secret that stands alone (NIST SP 800-63B-4 3.1.1.2)."""
MIN_ADMIN_KEY_VARIETY = 6
SERVER_SETTINGS = ("host", "port", "workers", "certfile", "keyfile")
"""The settings that only `qproxy serve`, and `qproxy.serve` in a program, can honor."""
NO_LEDGER = "none"
"""Value of the setting `ledger` for no ledger."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def setting(default: Any, help: str, *, secret: bool = False) -> Any:
    """A field of the table."""
    metadata = {"help": help}
    if isinstance(default, dict | list | tuple):
        return field(default_factory=lambda: default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class PriceConfig:
    """A `[[prices]]` table: US dollars for a million tokens of one model."""

    model: str
    input: float
    output: float
    cached: float | None = None


@dataclass(frozen=True)
class Config:
    """Every setting.  Times are in seconds."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8787, "port to listen on; 0 takes a free one")
    workers: int = setting(1, "processes that serve (`qproxy serve` only); 0 is one for each core")
    certfile: str | None = setting(None, "TLS certificate chain (PEM); with it HTTPS and HTTP/2 by ALPN")
    keyfile: str | None = setting(None, "the certificate's private key (PEM)")
    upstream: str | None = setting(None, "base URL of an OpenAI-compatible Qwen server, as one account")
    upstream_key: str | None = setting(None, "the key for `upstream`", secret=True)
    region: str = setting("singapore", "where DASHSCOPE_API_KEY belongs: singapore, beijing, us or hongkong")
    default_model: str | None = setting(None, "model for requests that name none")
    aliases: dict[str, str] = setting(
        {}, "model names and patterns (`gpt-*`, `*`) that clients may use, and what they stand for"
    )
    models: list[str] = setting([], "further models to list; in the file also [[models]] tables")
    retired_models: Literal["error", "successor"] = setting(
        "error",
        "response to requests for a retired model: a 404 that names its successor, or the successor's",
    )
    models_cache_seconds: float = setting(300.0, "how long the servers' lists of models are kept")
    proxy: str | None = setting(
        None,
        "outbound proxy for all upstreams, `http[s]://` or `socks5[h]://`; else HTTPS_PROXY, http_proxy, ALL_PROXY",
        secret=True,
    )
    no_proxy: str = setting(
        "",
        "hosts that are reached without a proxy, comma-separated; beside NO_PROXY where a variable names the proxy",
    )
    ca_bundle: str | None = setting(None, "certificates to trust (PEM) instead of the system's")
    upstream_connect_timeout: float = setting(10.0, "to reach an upstream, TLS included")
    upstream_write_timeout: float = setting(30.0, "for an upstream to take a piece of the request")
    upstream_first_byte_timeout: float = setting(300.0, "for an upstream to begin its answer")
    upstream_read_timeout: float = setting(120.0, "of silence within an upstream's answer")
    upstream_total_timeout: float = setting(0.0, "for an upstream's whole answer; 0 is no limit")
    pool_timeout: float = setting(
        5.0, "waiting for a connection to an upstream that is at max_upstream_connections"
    )
    pool_idle_timeout: float = setting(60.0, "how long an unused connection to an upstream is kept")
    max_upstream_connections: int = setting(5000, "connections at once to one upstream host")
    queue_timeout: float = setting(
        1.0, "waiting for a place when max_requests are taken, or for an account at its limits"
    )
    client_write_timeout: float = setting(30.0, "for a client to take a piece of its answer")
    client_body_timeout: float = setting(60.0, "for a client to send its request's body")
    client_request_timeout: float = setting(
        3600.0, "for a client's whole request, from its first byte to its last; 0 is no limit"
    )
    keep_alive_interval: float = setting(
        15.0, "of silence in a stream before a comment is sent; 0 sends none"
    )
    graceful_timeout: float = setting(30.0, "for running requests to end after a signal to stop")
    client_idle_timeout: float = setting(60.0, "how long a client's connection is kept without a request")
    max_client_connection_age: float = setting(
        900.0,
        "after which a client is asked to go on with another connection, give or take a tenth: a GOAWAY over HTTP/2, "
        "`Connection: close` over HTTP/1.1; 0 is no limit",
    )
    max_client_connections: int = setting(6000, "connections of clients at once; more are turned away")
    max_requests: int = setting(5000, "requests to models at once; more wait in line for queue_timeout")
    max_queue_size: int = setting(100, "requests waiting in line at once; more are refused at once")
    max_header_bytes: int = setting(64 * 1024, "largest head of a request")
    max_body_bytes: int = setting(64 * 1024 * 1024, "largest request body")
    max_json_depth: int = setting(128, "deepest nesting of a request body")
    max_messages: int = setting(10_000, "most messages in one request")
    api_keys: list[str] = setting(
        [], "keys that clients must use (or their SHA-256 in hex); none: any key is taken", secret=True
    )
    keys_file: str | None = setting(
        None, "the keys made by `qproxy keys`; by default keys.json in the data directory"
    )
    account_state_file: str | None = setting(
        None,
        "what is known of the accounts, shared by all processes; by default accounts.db in the data directory",
    )
    rate_limits_file: str | None = setting(
        None,
        "what client keys have left of their requests and tokens a minute, shared by all processes; by default meters in "
        "the data directory",
    )
    admin_key: str | None = setting(
        None,
        "the key for the admin routes; none: only programs on this machine, when it listens on loopback",
        secret=True,
    )
    wrong_keys_per_minute: int = setting(
        10,
        "wrong client keys, and wrong admin keys, that an address may show a minute; then it waits, but not with keys that "
        "were accepted from it before; 0 is no limit",
    )
    wrong_keys_file: str | None = setting(
        None,
        "what addresses have left of their wrong keys a minute, shared by all processes; by default wrong_keys in the data "
        "directory",
    )
    access_file: str | None = setting(
        None,
        "the digests of the dashboard's sessions and of accepted keys, shared by all processes; by default access.sqlite3 in "
        "the data directory",
    )
    trusted_proxies: list[str] = setting(
        [],
        "addresses and networks (10.0.0.0/8) of proxies whose X-Forwarded-For and Forwarded fields say who asks; `unix` is "
        "the peer of a Unix socket",
    )
    insecure_no_auth: bool = setting(False, "serve other machines without api_keys")
    allowed_hosts: list[str] = setting(
        [], "further names by which requests to loopback may call the server when it has no keys; * is any"
    )
    cors_origins: list[str] = setting([], "origins whose pages may use the server; * is any")
    strict_params: bool = setting(
        False, "refuse parameters without a meaning for Qwen instead of ignoring them"
    )
    forced_tool_choice: Literal["thinking-off", "auto"] = setting(
        "thinking-off", "what gives way when a forced tool meets thinking"
    )
    stream_upstream: Literal["always", "requested"] = setting(
        "always", "whether whole answers are streamed from DashScope and assembled here"
    )
    max_embedding_requests: int = setting(
        8, "requests to models' servers that one request for embeddings makes at once"
    )
    rules: dict[str, bool] = setting({}, "rules switched on or off by name")
    implied_think_models: list[str] = setting([], "patterns of models whose answers begin inside a thought")
    bare_json_models: list[str] = setting(
        [], "further patterns of models that write calls as bare JSON or in a JSON fence"
    )
    react_models: list[str] = setting([], "patterns of models that write calls as Action and Action Input")
    cumulative_models: list[str] = setting(
        [], "patterns of models whose servers repeat the whole text in each event"
    )
    oauth_device_url: str = setting(
        "https://chat.qwen.ai/api/v1/oauth2/device/code", "where a sign-in to a Qwen account begins"
    )
    oauth_token_url: str = setting(
        "https://chat.qwen.ai/api/v1/oauth2/token", "where tokens of Qwen accounts come from"
    )
    oauth_client_id: str = setting("f0304373b74a44d2b584a3fb70ca9e56", "who signs in (a public client's id)")
    oauth_scope: str = setting("openid profile email model.completion", "what a sign-in asks for")
    oauth_hosts: list[str] = setting(
        [
            *("portal.qwen.ai", "chat.qwen.ai", "dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
            *("dashscope-us.aliyuncs.com", "cn-hongkong.dashscope.aliyuncs.com"),
        ],
        "hosts that may see the tokens of Qwen accounts, by https; `*` stands within one label; a whole origin "
        "(http://127.0.0.1:8788) is also one",
    )
    oauth_interval: float = setting(
        5.0, "between two questions whether a sign-in is approved, unless told otherwise"
    )
    oauth_timeout: float = setting(30.0, "for the identity server to answer")
    oauth_refresh_margin: float = setting(
        1200.0,
        "before its end at which a token is renewed, give or take a quarter; at the latest 30 s before it",
    )
    encrypt_credentials: bool = setting(
        False, "encrypt the tokens on disk with a key in the system's keyring (pip install 'qproxy[keyring]')"
    )
    store_responses: bool = setting(
        True, "keep responses, for previous_response_id and GET /v1/responses/{id}"
    )
    responses_file: str | None = setting(
        None, "where responses are kept; by default responses.sqlite3 in the data directory"
    )
    responses_max_age: float = setting(30 * 86400.0, "after which a response that is not used is discarded")
    responses_max_bytes: int = setting(
        1024**3, "of responses that are kept; the longest unused are discarded"
    )
    store_timeout: float = setting(5.0, "for the store of responses to keep or find one")
    realtime_timeout: float = setting(3600.0, "for a whole realtime session; 0 is no limit")
    realtime_idle_timeout: float = setting(
        600.0, "of silence from both ends of a realtime session; 0 is no limit"
    )
    realtime_ping_interval: float = setting(
        20.0, "of silence before an end of a realtime session is asked whether it is there; 0 never asks"
    )
    realtime_max_message_bytes: int = setting(
        16 * 1024 * 1024, "largest event of a realtime session, from either end"
    )
    realtime_voices: dict[str, str] = setting(
        {},
        "what clients may call voices, and Qwen's names for them; OpenAI's own names that are not here are left out",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "least level to log")
    log_format: Literal["auto", "json", "text"] = setting("auto", "log lines; auto is text on a terminal")
    log_bodies: bool = setting(
        False, "log what clients ask and get, without secrets and pictures: everybody's conversations"
    )
    metrics_access: Literal["admin", "key", "open"] = setting(
        "admin", "who may read /metrics: as admin_key says, any client's key, or anybody"
    )
    ledger: str | None = setting(
        None, "the file of the usage ledger; by default ledger.sqlite3 in the data directory, `none` for none"
    )
    ledger_retention_days: int = setting(90, "how long the ledger keeps requests, in days; 0 is for ever")
    tracing: bool = setting(
        False, "send OpenTelemetry traces where the OTEL_* variables say; needs qproxy[otel]"
    )
    max_tool_rounds: int = setting(
        8, "rounds in which this server's tools run for one answer; then one without"
    )
    max_tool_processes: int = setting(
        16, "commands that run at once for all clients; more wait their turn, within their time limit"
    )
    tool_round_cache_seconds: float = setting(
        3600.0, "how long the hidden calls of an answer that ended with the client's own calls are remembered"
    )
    accounts: tuple[AccountConfig, ...] = setting((), "ways into Qwen servers")
    tools: tuple[ToolConfig, ...] = setting((), "commands that models may call")
    mcp_servers: tuple[McpServerConfig, ...] = setting((), "MCP servers whose tools models may call")
    tool_rules: tuple[ToolRuleConfig, ...] = setting((), "which client keys and models get which tools")
    prices: tuple[PriceConfig, ...] = setting((), "prices of models, before those of the package")
    model_rows: tuple[ModelRow, ...] = setting((), "what is known of models, before what the package knows")

    def all_accounts(self) -> tuple[AccountConfig, ...]:
        """The accounts with `upstream` among them; ConfigError when there is none."""
        accounts = self.accounts
        if self.upstream is not None:
            extra = AccountConfig(
                "upstream", "openai_compatible", base_url=self.upstream, key=self.upstream_key
            )
            accounts = (extra, *accounts)
        if not accounts:
            raise ConfigError(
                "No account is configured. Set DASHSCOPE_API_KEY, or give --upstream URL for your own Qwen server, "
                "or write an [[accounts]] table into qproxy.toml. To try qproxy without any: qproxy demo"
            )
        return tuple(resolve_account(account) for account in accounts)

    def check(self, has_keys: Callable[[Config], bool]) -> None:
        """Raise ConfigError if the settings cannot be served together; `has_keys` reads whether there are API keys."""
        if self.workers > MAX_WORKERS:
            raise ConfigError(f"workers: at most {MAX_WORKERS}.")
        if (self.certfile is None) != (self.keyfile is None):
            raise ConfigError("certfile and keyfile go together.")
        if self.certfile is not None:
            self._check_certificate()
        if self.port > 65535:
            raise ConfigError("port: it is at most 65535.")
        self.check_address(self.host, has_keys)
        self.check_admin_key()
        for name in ("oauth_device_url", "oauth_token_url"):
            url = urlsplit(getattr(self, name))
            if url.scheme != "https" and (url.scheme != "http" or url.hostname not in LOOPBACK):
                raise ConfigError(f"{name}: it must be https, or http on this machine.")
        self.all_accounts()

    def for_app(self) -> Config:
        """The settings without those of a server, for an app that something else serves."""
        defaults: dict[str, Any] = {name: SETTINGS[name].default for name in SERVER_SETTINGS}
        return dataclasses.replace(self, **defaults)

    def check_address(self, host: str, has_keys: Callable[[Config], bool]) -> None:
        """Raise ConfigError if this host name or address may not be served without API keys, and there are none."""
        if not is_loopback(host) and not self.insecure_no_auth and not has_keys(self):
            raise ConfigError(exposed_without_keys_message(host))

    def check_admin_key(self) -> None:
        """ConfigError for an admin_key that can be guessed."""
        key = self.admin_key
        if key is None or (len(key) >= MIN_ADMIN_KEY and len(set(key)) >= MIN_ADMIN_KEY_VARIETY):
            return
        raise ConfigError(
            f"admin_key: it can be guessed. Choose one of at least {MIN_ADMIN_KEY} characters, "
            f"{MIN_ADMIN_KEY_VARIETY} of them different, such as the output of: openssl rand -base64 24"
        )

    def _check_certificate(self) -> None:
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(str(self.certfile), self.keyfile, password="")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"certfile {self.certfile}, keyfile {self.keyfile}: {reason}.") from None

    def secrets(self) -> set[str]:
        """Every value that no log may show: those of the fields that a repr hides."""
        return set(_secret(self))

    def warnings(self) -> list[str]:
        """What a person should know at the start."""
        found = [warning for account in self.all_accounts() for warning in key_warnings(account)]
        if self.log_bodies:
            found.append("log_bodies is on: the log has what everybody asks and is answered.")
        return found


def _secret(record: Any) -> Iterator[str]:
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            if dataclasses.is_dataclass(one):
                yield from _secret(one)
            elif not item.repr and isinstance(one, dict):
                yield from one.values()
            elif not item.repr and isinstance(one, str):
                yield one


TYPES: dict[str, Any] = get_type_hints(Config)
"""The type of every field."""


def _record(kind: Any) -> Any:
    """The record type of an array of tables; None for any other type."""
    arguments = get_args(kind)
    return arguments[0] if get_origin(kind) is tuple and dataclasses.is_dataclass(arguments[0]) else None


TABLES: dict[str, Any] = {name: _record(kind) for name, kind in TYPES.items() if _record(kind) is not None}
"""The arrays of tables, and what each of their tables is."""
TABLE_FIELDS = {"models" if name == "model_rows" else name: name for name in TABLES}
"""The arrays of tables as the file calls them, and their fields; `models` may also be a list of strings."""
SETTINGS = {item.name: item for item in dataclasses.fields(Config) if item.name not in TABLES}
