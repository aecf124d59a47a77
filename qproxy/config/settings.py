"""The table of settings: one frozen `Config`.

The fields are the table: name, type, default and help; `groups` has them by theme. The flags of
`qproxy serve`, the `QPROXY_*` variables, the keys of `qproxy.toml` and `docs/configuration.md` are all
derived from it (`parsing`). A field of the type `tuple[Record, ...]` is an array of tables in the file, such
as `[[accounts]]`; it has no flag and no variable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from qproxy.config import checks
from qproxy.config.accounts import (
    AccountConfig,
    ConfigError,
    key_warnings,
    resolve_accounts,
)
from qproxy.config.groups import (
    AccessSettings,
    LoginSettings,
    NetworkSettings,
    ResponseSettings,
    SharedStateSettings,
    TelemetrySettings,
    ToolSettings,
    TranslationSettings,
)
from qproxy.config.ledger import check_ledger
from qproxy.config.prices import PriceConfig
from qproxy.config.secret_values import secret_values
from qproxy.config.setting import record_type, setting
from qproxy.config.tools import McpServerConfig, ToolConfig, ToolRuleConfig
from qproxy.system.exposure import exposed_without_keys_message, is_loopback
from qproxy.wire.models import ModelRow

SERVER_SETTINGS = ("host", "port", "workers", "certfile", "keyfile")
"""Settings that only `qproxy serve`, and `qproxy.serve` in a program, apply."""


@dataclass(frozen=True)
class Config(
    ToolSettings,
    SharedStateSettings,
    TelemetrySettings,
    ResponseSettings,
    LoginSettings,
    TranslationSettings,
    AccessSettings,
    NetworkSettings,
):
    """All settings; times are in seconds. The fields of the last base come first."""

<<<<<<< HEAD
=======
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8787, "port to listen on; 0 selects a free one")
    workers: int = setting(1, "number of worker processes (`qproxy serve` only); 0 is one per CPU core")
    certfile: str | None = setting(
        None, "TLS certificate chain (PEM file); enables HTTPS and, by ALPN, HTTP/2"
    )
    keyfile: str | None = setting(None, "private key of certfile (PEM file)")
    root_path: str = setting(
        "", "path under which a reverse proxy serves this server (`/qproxy`), whether or not it removes it"
    )
    upstream: str | None = setting(
        None, "base URL of an OpenAI-compatible Qwen server, added as the account `upstream`"
    )
    upstream_key: str | None = setting(None, "API key for upstream", secret=True)
    region: str = setting("singapore", "region of the DASHSCOPE_API_KEY: singapore, beijing, us or hongkong")
    default_model: str | None = setting(None, "model for requests that name none")
    aliases: dict[str, str] = setting(
        {}, "model names and patterns (`gpt-*`, `*`) that clients may use, and the models they stand for"
    )
    models: list[str] = setting([], "further model names to list; in the file also [[models]] tables")
    retired_models: Literal["error", "successor"] = setting(
        "error",
        "response to requests for a retired model: a 404 that names its successor, or the successor's "
        "response",
    )
    models_cache_seconds: float = setting(300.0, "seconds to cache the upstreams' model lists")
    proxy: str | None = setting(
        None,
        "outbound proxy for all upstreams, `http[s]://` or `socks5[h]://`; otherwise HTTPS_PROXY, "
        "http_proxy, ALL_PROXY",
        secret=True,
    )
    no_proxy: str = setting(
        "",
        "hosts to reach without a proxy, comma-separated; in addition to NO_PROXY if a variable names the "
        "proxy",
    )
    ca_bundle: str | None = setting(None, "trusted CA certificates (PEM file), instead of the system's")
    upstream_connect_timeout: float = setting(
        10.0, "seconds to establish an upstream connection, including TLS"
    )
    upstream_write_timeout: float = setting(
        30.0, "maximum seconds for an upstream to accept more of a request"
    )
    upstream_first_byte_timeout: float = setting(300.0, "maximum seconds until an upstream response starts")
    upstream_read_timeout: float = setting(120.0, "maximum seconds between two reads of an upstream response")
    upstream_total_timeout: float = setting(
        0.0, "maximum seconds for a whole upstream response; 0 is no limit"
    )
    pool_timeout: float = setting(
        5.0, "maximum seconds to wait for a connection to an upstream that is at max_upstream_connections"
    )
    pool_idle_timeout: float = setting(60.0, "seconds to keep an unused upstream connection open")
    max_upstream_connections: int = setting(5000, "concurrent connections to one upstream host")
    tokenize_timeout: float = setting(
        2.0,
        "maximum seconds for your own server (vLLM, llama.cpp, SGLang) to count tokens, which are otherwise "
        "estimated; 0 never asks one",
    )
    queue_timeout: float = setting(
        1.0, "maximum seconds to queue for max_requests, or for an account at its limits"
    )
    client_write_timeout: float = setting(30.0, "maximum seconds for a client to accept more of its response")
    client_body_timeout: float = setting(
        60.0, "maximum seconds of silence within a request body, and for its first part"
    )
    client_min_body_rate: int = setting(
        1024, "minimum bytes per second of a request body after client_body_timeout; 0 is no limit"
    )
    linger_bytes: int = setting(
        128 * 1024 * 1024,
        "bytes of a request that are discarded after its response, so that the client can read it; 0 closes "
        "the connection at once, as do servers that run out of connections",
    )
    linger_timeout: float = setting(30.0, "maximum seconds to discard them")
    client_request_timeout: float = setting(
        3600.0,
        "maximum seconds for a whole request, from its first byte to the last of its response; 0 is no limit",
    )
    keep_alive_interval: float = setting(
        15.0, "seconds of silence in a stream before a keep-alive comment is sent; 0 sends none"
    )
    graceful_timeout: float = setting(30.0, "maximum seconds for in-flight requests to finish at shutdown")
    client_idle_timeout: float = setting(60.0, "seconds to keep a client connection open without a request")
    max_client_connection_age: float = setting(
        900.0,
        "seconds after which a client connection is closed between requests (GOAWAY over HTTP/2, "
        "`Connection: close` over HTTP/1.1), with 10 % jitter; 0 is no limit",
    )
    max_client_connections: int = setting(6000, "concurrent client connections; further ones are refused")
    max_requests: int = setting(5000, "concurrent requests to models; further ones queue for queue_timeout")
    probe_interval: float = setting(
        60.0,
        "maximum seconds between two probes (small requests) of a failing account; 0 sends none, and nothing "
        "else but for clients",
    )
    max_queue_size: int = setting(100, "queued requests; further ones are refused at once")
    max_header_bytes: int = setting(64 * 1024, "maximum bytes of a request head")
    max_body_bytes: int = setting(64 * 1024 * 1024, "maximum bytes of a request body, also when decompressed")
    max_json_depth: int = setting(128, "maximum nesting of a request body, in levels")
    max_messages: int = setting(10_000, "maximum messages per request")
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
    strict_params: bool = setting(
        False, "reject parameters that Qwen does not support, instead of ignoring them"
    )
    forced_tool_choice: Literal["thinking-off", "auto"] = setting(
        "thinking-off", "whether a forced tool_choice disables thinking or is downgraded to auto"
    )
    stream_upstream: Literal["always", "requested"] = setting(
        "always", "whether non-streamed responses are streamed from DashScope and assembled by qproxy"
    )
    max_embedding_requests: int = setting(8, "concurrent upstream requests per embeddings request")
    rules: dict[str, bool] = setting({}, "request rules switched on or off, by name")
    implied_think_models: list[str] = setting(
        [], "patterns of models whose responses start inside a reasoning block"
    )
    bare_json_models: list[str] = setting(
        [], "further patterns of models that write tool calls as bare JSON or in a JSON code block"
    )
    react_models: list[str] = setting(
        [], "patterns of models that write tool calls as Action and Action Input"
    )
    cumulative_models: list[str] = setting(
        [], "patterns of models whose upstreams repeat the whole text in each event"
    )
    oauth_device_url: str = setting(
        "https://chat.qwen.ai/api/v1/oauth2/device/code", "device authorization endpoint of Qwen accounts"
    )
    oauth_token_url: str = setting(
        "https://chat.qwen.ai/api/v1/oauth2/token", "token endpoint of Qwen accounts"
    )
    oauth_client_id: str = setting(
        "f0304373b74a44d2b584a3fb70ca9e56", "client ID for logins (a public client)"
    )
    oauth_scope: str = setting("openid profile email model.completion", "scope of logins")
    oauth_hosts: list[str] = setting(
        [
            *("portal.qwen.ai", "chat.qwen.ai", "dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
            *("dashscope-us.aliyuncs.com", "cn-hongkong.dashscope.aliyuncs.com"),
        ],
        "hosts that may receive the tokens of Qwen accounts, over HTTPS; `*` stands for one label; an "
        "origin (http://127.0.0.1:8788) is allowed as well",
    )
    oauth_interval: float = setting(
        5.0, "seconds between polls of the device-code endpoint, unless the identity server sets its own"
    )
    oauth_timeout: float = setting(30.0, "maximum seconds for a response of the identity server")
    oauth_refresh_margin: float = setting(
        1200.0,
        "seconds before its expiry at which a token is refreshed, with 25 % jitter; at the latest 30 s "
        "before",
    )
    encrypt_credentials: bool = setting(
        False, "encrypt the tokens on disk with a key in the system keyring (requires the extra `keyring`)"
    )
    store_responses: bool = setting(
        True, "store responses, for previous_response_id and GET /v1/responses/{id}"
    )
    responses_file: str | None = setting(
        None, "file of the stored responses; default responses.sqlite3 in the data directory"
    )
    responses_max_age: float = setting(
        30 * 86400.0, "seconds after which an unused stored response is deleted"
    )
    responses_max_bytes: int = setting(
        1024**3, "maximum bytes of stored responses; the least recently used are deleted"
    )
    store_timeout: float = setting(5.0, "maximum seconds to store or load a response")
    realtime_timeout: float = setting(3600.0, "maximum seconds for a realtime session; 0 is no limit")
    realtime_idle_timeout: float = setting(
        600.0, "maximum seconds of silence from both ends of a realtime session; 0 is no limit"
    )
    realtime_ping_interval: float = setting(
        20.0, "seconds of silence before a realtime peer is pinged; 0 sends no pings"
    )
    realtime_max_message_bytes: int = setting(
        16 * 1024 * 1024, "maximum bytes of a realtime event, in either direction"
    )
    realtime_voices: dict[str, str] = setting(
        {},
        "voice names that clients may use, and Qwen's names for them; OpenAI's own names that are not "
        "listed are omitted",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "minimum level to log")
    log_format: Literal["auto", "json", "text"] = setting(
        "auto", "format of log lines; auto is text on a terminal, JSON otherwise"
    )
    log_bodies: bool = setting(
        False,
        "log request and response texts, without secrets and images: this includes everyone's conversations",
    )
    metrics_access: Literal["admin", "key", "open"] = setting(
        "admin", "who may read /metrics: the admin (see admin_key), any API key, or anyone"
    )
    ledger: str | None = setting(
        None,
        "file of the usage ledger, or the postgresql:// URL of one for several machines; default "
        "ledger.sqlite3 in the data directory, `none` disables it",
        secret="url",
    )
    ledger_password_file: str | None = setting(
        None, "file with the password for the ledger's database, instead of a password in the URL"
    )
    ledger_spool_file: str | None = setting(
        None,
        "file of the requests that the ledger's database has not taken yet; default ledger-spool.sqlite3 in "
        "the data directory",
    )
    ledger_timeout: float = setting(
        3.0, "maximum seconds to connect to the ledger's database, and for a statement there"
    )
    ledger_retention_days: int = setting(
        90, "days to keep requests in the usage ledger; 0 keeps them forever"
    )
    shared_state: str | None = setting(
        None,
        "URL of a Valkey or Redis server (redis://, rediss://, unix://) that holds the limits and budgets of "
        "API keys for several machines; requires the extra `redis`",
        secret="url",
    )
    shared_state_password_file: str | None = setting(None, "file with the password for shared_state")
    shared_state_key_file: str | None = setting(None, "file with keys, one a line, to encrypt shared secrets")
    shared_state_prefix: str = setting("q", "prefix of the keys that this installation has in shared_state")
    shared_state_policy: Literal["share", "closed", "open"] = setting(
        "share", "while shared_state cannot be used: a share of the limits, 503 (closed), no limits (open)"
    )
    shared_state_timeout: float = setting(0.25, "maximum seconds that a request waits for shared_state")
    shared_state_connect_timeout: float = setting(1.0, "maximum seconds without a reply of shared_state")
    tracing: bool = setting(
        False, "export OpenTelemetry traces as the OTEL_* variables say; requires the extra `otel`"
    )
    max_tool_rounds: int = setting(
        8, "maximum rounds of server-side tool calls per response, before a final one without tools"
    )
    max_tool_processes: int = setting(
        16, "concurrent tool processes for all clients; further calls queue, within their timeout"
    )
    tool_round_cache_seconds: float = setting(
        3600.0,
        "seconds to cache the hidden tool rounds of a response that ended with the client's own tool calls",
    )
    reasoning_cache_seconds: float = setting(3600.0, "seconds to cache encrypted reasoning; 0 disables it")
>>>>>>> 7d1ec35 (backends: encrypt secrets of shared state with keys of a file)
    accounts: tuple[AccountConfig, ...] = setting((), "upstream accounts")
    tools: tuple[ToolConfig, ...] = setting((), "commands that models may call")
    mcp_servers: tuple[McpServerConfig, ...] = setting((), "MCP servers whose tools models may call")
    tool_rules: tuple[ToolRuleConfig, ...] = setting((), "which API keys and models get which tools")
    prices: tuple[PriceConfig, ...] = setting((), "model prices that override the built-in list")
    model_rows: tuple[ModelRow, ...] = setting((), "model data that overrides the built-in catalog")

    def all_accounts(self) -> tuple[AccountConfig, ...]:
        """Return the accounts, `upstream` first. Raises ConfigError if there are none."""
        accounts = self.accounts
        if self.upstream is not None:
            extra = AccountConfig(
                "upstream", "openai_compatible", base_url=self.upstream, key=self.upstream_key
            )
            accounts = (extra, *accounts)
        return resolve_accounts(accounts)

    def check(self, has_keys: Callable[[Config], bool]) -> None:
        """Raise ConfigError if the settings conflict; `has_keys` reads whether there are API keys."""
        checks.check_server(self.workers, self.port)
        checks.check_root_path(self.root_path)
        checks.check_certificate(self.certfile, self.keyfile)
        self.check_address(self.host, has_keys)
        checks.check_admin_key(self.admin_key)
        check_ledger(self.ledger)
        for name in ("oauth_device_url", "oauth_token_url"):
            checks.check_identity_server(name, getattr(self, name))
        self.all_accounts()

    def for_app(self) -> Config:
        """Return the settings with the server's own at their defaults, for an app under another server."""
        defaults: dict[str, Any] = {name: SETTINGS[name].default for name in SERVER_SETTINGS}
        return dataclasses.replace(self, **defaults)

    def check_address(self, host: str, has_keys: Callable[[Config], bool]) -> None:
        """Raise ConfigError if listening on this name or address requires API keys and there are none."""
        checks.check_host(host)
        if not is_loopback(host) and not self.insecure_no_auth and not has_keys(self):
            raise ConfigError(exposed_without_keys_message(host))

    def secrets(self) -> set[str]:
        """Return every value that no log may show: those of the fields that a repr hides."""
        return set(secret_values(self))

    def base_url_notices(self) -> list[str]:
        """Return a notice for each account whose base_url was completed with /v1."""
        given = {"upstream": self.upstream, **{account.name: account.base_url for account in self.accounts}}
        return checks.base_url_notices(given, self.all_accounts())

    def warnings(self) -> list[str]:
        """Return warnings to log at startup."""
        warnings = [warning for account in self.all_accounts() for warning in key_warnings(account)]
        warnings += self.base_url_notices()
        if self.log_bodies:
            warnings.append("log_bodies is on: the log contains everyone's conversations.")
        return warnings


TYPES: dict[str, Any] = get_type_hints(Config)
"""The type of each field."""


TABLES: dict[str, Any] = {name: record for name, kind in TYPES.items() if (record := record_type(kind))}
"""The arrays of tables, with the record type of each."""
TABLE_FIELDS = {"models" if name == "model_rows" else name: name for name in TABLES}
"""Fields of the arrays of tables, by their names in the file; `models` may also be a list of strings."""
SETTINGS = {item.name: item for item in dataclasses.fields(Config) if item.name not in TABLES}
