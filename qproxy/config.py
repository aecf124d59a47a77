"""Configuration: one frozen `Config` from defaults < TOML < environment < flags.

The fields of `Config` are the table of settings: name, type, default and help.  The flags of `qproxy serve`, the
`QPROXY_*` variables, the keys of `qproxy.toml` and `docs/configuration.md` are all derived from it.  What is
unknown or of the wrong type is refused with the place where it stands and what was probably meant.

This is the only room that reads the environment.  Accounts and their presets are in `presets`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from qproxy import keys
from qproxy.presets import AccountConfig, ConfigError, key_warnings, resolve, with_key, zero_configuration

FILE = "qproxy.toml"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def setting(default: Any, help: str, *, secret: bool = False) -> Any:
    """A field of the table."""
    metadata = {"help": help}
    if isinstance(default, dict | list | tuple):
        return field(default_factory=lambda: default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class Config:
    """Every setting.  Times are in seconds."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8787, "port to listen on; 0 takes a free one")
    certfile: str | None = setting(None, "TLS certificate chain (PEM); with it HTTPS and HTTP/2 by ALPN")
    keyfile: str | None = setting(None, "the certificate's private key (PEM)")
    upstream: str | None = setting(None, "base URL of an OpenAI-compatible Qwen server, as one account")
    upstream_key: str | None = setting(None, "the key for `upstream`", secret=True)
    region: str = setting("singapore", "where DASHSCOPE_API_KEY belongs: singapore, beijing, us or hongkong")
    default_model: str | None = setting(None, "model for requests that name none")
    aliases: dict[str, str] = setting({}, "model names that clients may use, and what they stand for")
    models: list[str] = setting([], "further models to list")
    models_cache_seconds: float = setting(300.0, "how long the servers' lists of models are kept")
    proxy: str | None = setting(
        None, "outbound proxy for all upstreams; else HTTPS_PROXY, ALL_PROXY", secret=True
    )
    no_proxy: str = setting("", "hosts that `proxy` is not for, comma-separated")
    ca_bundle: str | None = setting(None, "certificates to trust (PEM) instead of the system's")
    connect_timeout: float = setting(10.0, "to reach an upstream, TLS included")
    write_timeout: float = setting(30.0, "for an upstream to take a piece of the request")
    first_byte_timeout: float = setting(300.0, "for an upstream to begin its answer")
    idle_timeout: float = setting(120.0, "of silence within an upstream's answer")
    total_timeout: float = setting(0.0, "for an upstream's whole answer; 0 is no limit")
    pool_timeout: float = setting(5.0, "waiting for a connection to an upstream that is at max_connections")
    pool_idle: float = setting(60.0, "how long an unused connection to an upstream is kept")
    max_connections: int = setting(1000, "connections at once to one upstream host")
    queue_timeout: float = setting(
        1.0, "waiting for a place when max_requests are taken, or for an account at its max_in_flight"
    )
    client_write_timeout: float = setting(30.0, "for a client to take a piece of its answer")
    body_timeout: float = setting(60.0, "for a client to send its request's body")
    request_timeout: float = setting(
        3600.0, "for a client's whole request, from its first byte to its last; 0 is no limit"
    )
    keep_alive_interval: float = setting(
        15.0, "of silence in a stream before a comment is sent; 0 sends none"
    )
    graceful_timeout: float = setting(30.0, "for running requests to end after a signal to stop")
    client_idle_timeout: float = setting(60.0, "how long a client's connection is kept without a request")
    max_clients: int = setting(5000, "connections of clients at once; more are turned away")
    max_requests: int = setting(1000, "requests to models at once; more wait in line for queue_timeout")
    max_waiting: int = setting(100, "requests waiting in line at once; more are refused at once")
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
    insecure_no_auth: bool = setting(False, "serve other machines without api_keys")
    allowed_hosts: list[str] = setting(
        [], "further names by which requests to loopback may call the server when it has no keys; * is any"
    )
    cors_origins: list[str] = setting([], "origins whose pages may use the server; * is any")
    strict_params: bool = setting(
        False, "refuse parameters without a meaning for Qwen instead of ignoring them"
    )
    forced_tools: Literal["thinking-off", "auto"] = setting(
        "thinking-off", "what gives way when a forced tool meets thinking"
    )
    stream_upstream: Literal["always", "asked"] = setting(
        "always", "whether whole answers are streamed from DashScope and assembled here"
    )
    rules: dict[str, bool] = setting({}, "rules switched on or off by name")
    implied_think: list[str] = setting([], "patterns of models whose answers begin inside a thought")
    bare_json: list[str] = setting(
        ["*qwen2.5-coder*", "*qwen2_5-coder*"],
        "patterns of models that write calls as bare JSON or in a JSON fence",
    )
    react: list[str] = setting([], "patterns of models that write calls as Action and Action Input")
    cumulative: list[str] = setting(
        [], "patterns of models whose servers repeat the whole text in each event"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "least level to log")
    log_format: Literal["auto", "json", "text"] = setting("auto", "log lines; auto is text on a terminal")
    accounts: tuple[AccountConfig, ...] = field(default=(), metadata={"help": "the [[accounts]] tables"})

    def all_accounts(self) -> tuple[AccountConfig, ...]:
        """The accounts with `upstream` among them; ConfigError when there is none."""
        accounts = self.accounts
        if self.upstream is not None:
            extra = AccountConfig("upstream", "open", base_url=self.upstream, key=self.upstream_key)
            accounts = (extra, *accounts)
        if not accounts:
            raise ConfigError(
                "No account is configured. Set DASHSCOPE_API_KEY, or give --upstream URL for your own Qwen server, "
                "or write an [[accounts]] table into qproxy.toml. To try qproxy without any: qproxy demo"
            )
        return tuple(resolve(account) for account in accounts)

    def check(self) -> None:
        """ConfigError when the settings cannot be served together."""
        if (self.certfile is None) != (self.keyfile is None):
            raise ConfigError("certfile and keyfile go together.")
        if self.host not in LOOPBACK and not self.insecure_no_auth and not self._has_keys():
            raise ConfigError(
                f"Serving on {self.host} without keys would let everyone use your accounts. Make one with "
                "`qproxy keys create`, or set api_keys, or say insecure_no_auth = true (--insecure-no-auth)."
            )
        self.all_accounts()

    def _has_keys(self) -> bool:
        try:
            return bool(self.api_keys or (self.keys_file and keys.read(Path(self.keys_file))))
        except keys.KeyFileError as error:
            raise ConfigError(str(error)) from None

    def warnings(self) -> list[str]:
        """What a person should know at the start."""
        return [warning for account in self.all_accounts() for warning in key_warnings(account)]


SETTINGS = {item.name: item for item in dataclasses.fields(Config) if item.name != "accounts"}
_TYPES = get_type_hints(Config)
_ACCOUNT_TYPES = get_type_hints(AccountConfig)


def type_of(name: str) -> Any:
    return _TYPES[name]


def load(
    *,
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of this process; ConfigError says what is wrong and where."""
    environ = os.environ if environ is None else environ
    chosen = path or environ.get("QPROXY_CONFIG") or (FILE if Path(FILE).is_file() else None)
    values = read_toml(chosen) if chosen else {}
    values |= read_environment(environ)
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    values.setdefault("keys_file", str(home(environ) / "keys.json"))
    config = Config(**values)
    accounts = tuple(with_key(account, environ) for account in config.accounts)
    config = dataclasses.replace(config, accounts=accounts)
    if not config.accounts and config.upstream is None:
        config = dataclasses.replace(config, accounts=zero_configuration(environ, config.region))
    return config


def home(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory: $QPROXY_HOME, or the platform's custom."""
    environ = os.environ if environ is None else environ
    if environ.get("QPROXY_HOME"):
        return Path(environ["QPROXY_HOME"])
    data = environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "qproxy"


def proxy_environment(environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The variables in which an outbound proxy may be named."""
    return dict(os.environ if environ is None else environ)


def read_toml(path: str) -> dict[str, Any]:
    """The values of a TOML file, checked."""
    try:
        text = Path(path).read_text("utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    values: dict[str, Any] = {}
    for name, value in table.items():
        where = f"{path}, line {_line(text, name)}"
        if name == "accounts":
            values[name] = tuple(
                _account(entry, f"{path}, [[accounts]] {n + 1}") for n, entry in enumerate(value)
            )
        else:
            values[name] = checked(_known(name, [*SETTINGS, "accounts"], where), value, where)
    return values


def _line(text: str, key: str) -> int:
    match = re.search(rf"^\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=\].]", text, re.MULTILINE)
    return text.count("\n", 0, match.end() - 1) + 1 if match else 1


def _known(name: str, known: Iterable[str], where: str) -> str:
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{where}: there is no setting {name!r}.{hint}")


def _account(entry: Any, where: str) -> AccountConfig:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected a table.")
    values = {}
    for name, value in entry.items():
        _known(name, _ACCOUNT_TYPES, where)
        values[name] = _checked(_ACCOUNT_TYPES[name], value, f"{where}, {name}")
    if "name" not in values:
        raise ConfigError(f"{where}: an account needs a name.")
    return AccountConfig(**values)


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of QPROXY_* variables; lists are comma-separated, tables `a=b,c=d`."""
    values = {}
    for variable, text in environ.items():
        name = variable.removeprefix("QPROXY_").lower()
        if not variable.startswith("QPROXY_") or name in ("config", "home"):
            continue
        _known(name, SETTINGS, variable)
        values[name] = parse(name, text, variable)
    return values


def parse(name: str, text: str, where: str) -> Any:
    """A setting's value from the words of a variable or flag."""
    kind = type_of(name)
    origin = get_origin(kind)
    value: Any = text
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        if kind is bool:
            value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.lower()
            ]
        elif kind in (int, float):
            value = kind(text)
        elif origin is list:
            value = words
        elif origin is dict:
            pairs = [word.partition("=")[::2] for word in words]
            value = {key: parse_bool(item) if kind == dict[str, bool] else item for key, item in pairs}
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: {text!r} is not {_words(kind)}.") from None
    return _checked(kind, value, where)


def parse_bool(text: str) -> bool:
    return {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}[text.lower()]


def checked(name: str, value: Any, where: str) -> Any:
    """A setting's value if it has the setting's type."""
    return _checked(type_of(name), value, f"{where}, {name}")


def _checked(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not _is(kind, value):
        raise ConfigError(f"{where}: expected {_words(kind)}, but it is {value!r:.80}.")
    if kind in (int, float) and value < 0:
        raise ConfigError(f"{where}: it cannot be negative.")
    return value


def _is(kind: Any, value: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_is(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(arguments[1], item) for item in value.values())
    if arguments:  # X | None
        return any(_is(item, value) for item in arguments)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(get_args(kind))
    if origin is list:
        return "a list of strings"
    if origin is dict:
        return "a table of true and false" if kind == dict[str, bool] else "a table of strings"
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind) or next(names[item] for item in get_args(kind) if item in names)


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


def table() -> str:
    """The settings as a Markdown table, for docs/configuration.md."""
    rows = ["| setting | type | default | what it is |", "| --- | --- | --- | --- |"]
    blank = Config()
    for name, item in SETTINGS.items():
        default = getattr(blank, name)
        shown = (
            ""
            if default in (None, "", [], {})
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{name}` | {_words(type_of(name))} | {shown} | {item.metadata['help']} |")
    return "\n".join(rows) + "\n"
