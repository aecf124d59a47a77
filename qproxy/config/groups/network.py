"""Listening, models, and connections to upstreams and clients.

Names end in what they limit: `_timeout` and `_interval` in seconds, `_bytes` in bytes, `max_` in counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qproxy.config.setting import setting


@dataclass(frozen=True)
class NetworkSettings:
    """Listening, models, and connections to upstreams and clients."""

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
    result_hosts: list[str] = setting(
        ["dashscope-result-*.oss-*.aliyuncs.com", "dashscope-result-*.oss-accelerate.aliyuncs.com"],
        "hosts from which the files that a response links to (sound, pictures) are downloaded, over HTTPS; "
        "`*` stands for one label, an origin (http://127.0.0.1:8788) is allowed as well",
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
    flex_timeout: float = setting(
        3600.0, "maximum seconds until the batch host responds to a request of the flex tier"
    )
    flex_promotion_after: float = setting(
        0.0, "seconds after which a waiting flex request moves to the usual tier, at its price; 0 is never"
    )
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
    max_upload_bytes: int = setting(
        512 * 1024 * 1024, "maximum bytes of a request that uploads files, which are kept on disk meanwhile"
    )
    max_json_depth: int = setting(128, "maximum nesting of a request body, in levels")
    max_messages: int = setting(10_000, "maximum messages per request")
