"""Accounts as an operator writes them down, and the base URLs that Alibaba publishes.

`resolve_account` turns a preset into a base URL, a plan and a key; `key_warnings` says what is likely wrong about a key
before a request finds out.  Sources: Model Studio's region and plan pages, qwen-code's provider presets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from qproxy.limits.windows import WINDOWS
from qproxy.wire import realtime

_TERMS = "is sold for interactive use in coding tools only; scripts and application back ends are against its terms."


FREE_TIER_ENDED = "Alibaba ended the free tier behind Qwen accounts on 2026-04-15: signing in may work while chat is refused."


class ConfigError(Exception):
    """The configuration cannot be used; the message says why and where."""


@dataclass(frozen=True, slots=True)
class AccountPreset:
    """A base URL that Alibaba publishes."""

    base_url: str
    plan: str = "payg"
    terms: str = ""


PRESETS: dict[str, AccountPreset] = {
    "singapore": AccountPreset("https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    "beijing": AccountPreset("https://dashscope.aliyuncs.com/compatible-mode/v1"),
    "us": AccountPreset("https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
    "hongkong": AccountPreset("https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1"),
    "workspace": AccountPreset("https://{workspace}.{region}.maas.aliyuncs.com/compatible-mode/v1"),
    "coding-plan-cn": AccountPreset("https://coding.dashscope.aliyuncs.com/v1", "coding", f"The Coding Plan {_TERMS}"),
    "coding-plan-intl": AccountPreset("https://coding-intl.dashscope.aliyuncs.com/v1", "coding", f"The Coding Plan {_TERMS}"),
    "token-plan-cn": AccountPreset("https://token-plan.cn-beijing.maas.aliyuncs.com/compatible-mode/v1", "token", f"The Token Plan {_TERMS}"),
    "token-plan-sg": AccountPreset("https://token-plan.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1", "token", f"The Token Plan {_TERMS}"),
}  # fmt: skip
EMBEDDING_BATCHES = {"payg": 10, "open": 32}
"""By plan: DashScope refuses more than ten texts, other servers take what was seen to suit them; who has bought a coding
or token plan, or has logged in, cannot embed."""
COMPLETIONS: dict[str, list[str] | None] = {"payg": None, "open": ["*"]}
"""By plan: the models that the server's own `/completions` takes; None: those of which that is known.  vLLM, SGLang,
llama.cpp and Ollama have it for all."""
LOGIN_RPM = 60
"""What a login was allowed a minute, when there were free ones."""
WORKSPACE_REGIONS = (
    "cn-beijing",
    "ap-southeast-1",
    "cn-hongkong",
    "us-east-1",
    "eu-central-1",
    "ap-northeast-1",
)


@dataclass(frozen=True, slots=True)
class AccountConfig:
    """One `[[accounts]]` table."""

    name: str
    kind: Literal["key", "openai_compatible", "oauth"] = "key"
    """An API key; a server of your own; an account that `qproxy login` signs in."""
    preset: str | None = None
    base_url: str | None = None
    workspace: str | None = None
    region: str | None = None
    """Of the workspace."""
    key: str | None = field(default=None, repr=False)
    key_env: str | None = None
    key_file: str | None = None
    credentials: str | None = None
    """Where the tokens of a signed-in account are, if not in our own directory: `~/.qwen` shares qwen-code's."""
    plan: str | None = None
    models: list[str] = field(default_factory=lambda: ["*"])
    weight: float = 1.0
    max_in_flight: int | None = None
    rpm: int | None = None
    """Requests a minute; 0 is no limit.  A login has 60 unless told otherwise."""
    tpm: int | None = None
    """Tokens a minute, in and out; 0 is no limit."""
    allowance: dict[str, int] = field(default_factory=dict)
    """Requests that its plan allows, by window (`qproxy.limits.windows`): the dashboard shows how many are used."""
    rules: dict[str, bool] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    dialect: Literal["compatible", "dashscope"] = "compatible"
    """"dashscope" is the native API."""
    tool_schema: Literal["openai", "function_declarations"] = "openai"
    """How its server speaks of functions, in either dialect."""
    render_tools: Literal["", "auto", "hermes", "coder"] = ""
    """Write tools into the prompt, for a server without a tool parser."""
    completions: list[str] | None = None
    """Patterns of the models that the server's own `/completions` takes; others are asked in a chat."""
    embedding_batch: int | None = None
    """The most texts in one request for embeddings; 0 for an account that cannot embed."""
    realtime_url: str | None = None
    """Where its realtime models are; by default Model Studio's place on the same host, for pay-as-you-go keys; "" for
    an account that has none."""

    @property
    def identity(self) -> str:
        """What tells it from others on disk, where its key is not: another key or server is another account."""
        kind = "open" if self.kind == "openai_compatible" else self.kind  # its name in the first files
        what = "\n".join((kind, self.name, self.base_url or "", self.key or ""))
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def load_key(account: AccountConfig, environ: Mapping[str, str]) -> AccountConfig:
    """The account with its key read from `key_env` or `key_file`."""
    return replace(account, key=account.key or _resolve_key(account, environ, f"account {account.name!r}"))


def resolve_account(account: AccountConfig) -> AccountConfig:
    """The account with its base URL, plan and key filled in; ConfigError names what is missing."""
    where = f"account {account.name!r}"
    base_url, plan = account.base_url, account.plan
    unknown = account.allowance.keys() - WINDOWS.keys()
    if unknown:
        raise ConfigError(
            f"{where}: allowance has no window {min(unknown)!r}; there are {', '.join(WINDOWS)}."
        )
    if account.preset is not None:
        if account.preset not in PRESETS:
            raise ConfigError(
                f"{where}: there is no preset {account.preset!r}; there are {', '.join(PRESETS)}."
            )
        preset = PRESETS[account.preset]
        base_url, plan = base_url or _with_defaults(account, preset, where), plan or preset.plan
    if account.kind == "oauth":
        _check_name(account.name, where)
        base_url, plan = base_url or PRESETS["beijing"].base_url, plan or "oauth"
    if base_url is None:
        raise ConfigError(f"{where}: set a preset or a base_url.")
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(
            f"{where}: base_url must be http(s)://host[:port]/path without a query or a password."
        )
    if account.tool_schema != "openai" and account.render_tools:
        raise ConfigError(
            f"{where}: tool_schema and render_tools exclude each other: either the request declares tools or the prompt "
            "describes them. Leave one out."
        )
    if account.weight <= 0:
        raise ConfigError(f"{where}: weight must be above 0.")
    key = account.key
    if key is not None:
        key = key.strip()
        if not key.isascii() or any(char.isspace() for char in key):
            raise ConfigError(f"{where}: the key has characters that no key has.")
    if account.kind == "key" and not key:
        raise ConfigError(f"{where}: set key, key_env or key_file.")
    plan = plan or ("open" if account.kind == "openai_compatible" else "payg")
    return replace(
        account, base_url=base_url.rstrip("/"), plan=plan, key=key, **_capabilities(account, plan, base_url)
    )


def _capabilities(account: AccountConfig, plan: str, base_url: str) -> dict[str, Any]:
    """What an account can do: as it says, else as its plan lets one expect."""
    given = account.realtime_url
    if given and urlsplit(given).scheme not in ("http", "https", "ws", "wss"):
        raise ConfigError(f"account {account.name!r}: realtime_url must be ws(s):// or http(s)://.")
    batch, completions = account.embedding_batch, account.completions
    if batch is not None and batch < 0:
        raise ConfigError(f"account {account.name!r}: embedding_batch must be 0 or more.")
    return {
        "realtime_url": realtime.default_realtime_url(base_url)
        if plan == "payg" and given is None
        else given or "",
        "embedding_batch": EMBEDDING_BATCHES.get(plan, 0) if batch is None else batch,
        "completions": COMPLETIONS.get(plan, []) if completions is None else completions,
        "rpm": LOGIN_RPM if account.rpm is None and plan == "oauth" else account.rpm,
    }


def _check_name(name: str, where: str) -> None:
    """The name of a signed-in account is that of a directory."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", name):
        raise ConfigError(
            f"{where}: the name of an account that is signed in has letters, digits and _ . @ - only."
        )


def _with_defaults(account: AccountConfig, preset: AccountPreset, where: str) -> str:
    if "{workspace}" not in preset.base_url:
        return preset.base_url
    if not account.workspace or account.region not in WORKSPACE_REGIONS:
        raise ConfigError(f"{where}: set workspace, and region to one of {', '.join(WORKSPACE_REGIONS)}.")
    return preset.base_url.format(workspace=account.workspace, region=account.region)


def _resolve_key(account: AccountConfig, environ: Mapping[str, str], where: str) -> str | None:
    if account.key_env is not None:
        if not environ.get(account.key_env):
            raise ConfigError(f"{where}: the variable {account.key_env} is not set.")
        return environ[account.key_env]
    if account.key_file is not None:
        try:
            return Path(account.key_file).expanduser().read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{where}: {account.key_file} cannot be read ({error.strerror}).") from None
    return None


def accounts_from_env(environ: Mapping[str, str], region: str) -> tuple[AccountConfig, ...]:
    """Accounts for the customary variables."""
    accounts = []
    if environ.get("DASHSCOPE_API_KEY"):
        if region not in ("singapore", "beijing", "us", "hongkong"):
            raise ConfigError(f"region: {region!r} is none of singapore, beijing, us, hongkong.")
        accounts.append(AccountConfig("dashscope", preset=region, key=environ["DASHSCOPE_API_KEY"]))
    china = "cn" if region == "beijing" else None
    for variable, name, abroad in (
        ("BAILIAN_CODING_PLAN_API_KEY", "coding-plan", "intl"),
        ("BAILIAN_TOKEN_PLAN_API_KEY", "token-plan", "sg"),
    ):
        if environ.get(variable):
            accounts.append(AccountConfig(name, preset=f"{name}-{china or abroad}", key=environ[variable]))
    return tuple(accounts)


def logged_in_accounts(folder: Path) -> tuple[AccountConfig, ...]:
    """The accounts that `qproxy login` has signed in, by their directories."""
    try:
        names = sorted(path.parent.name for path in folder.glob("*/oauth_creds.json"))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error.strerror}).") from None
    return tuple(AccountConfig(name, kind="oauth") for name in names)


def key_warnings(account: AccountConfig) -> list[str]:
    """What is likely wrong about a resolved account's key, and its plan's terms."""
    key, url = account.key or "", account.base_url or ""
    host = urlsplit(url).hostname or ""
    where = f"account {account.name!r}"
    warnings = []
    if account.tool_schema != "openai" and host.endswith("aliyuncs.com"):
        warnings.append(
            f"{where}: {host} takes tools in OpenAI's form only; it will reject {account.tool_schema}."
        )
    if account.kind == "oauth":
        return [*warnings, f"{where}: {FREE_TIER_ENDED}"]
    coding = host.startswith("coding") and host.endswith("dashscope.aliyuncs.com")
    token = host.startswith("token-plan.")
    if coding and not key.startswith("sk-sp-"):
        warnings.append(f"{where}: {host} takes Coding Plan keys (sk-sp-...); it will refuse this one.")
    elif key.startswith("sk-sp-") and not coding and host.endswith("aliyuncs.com"):
        warnings.append(f"{where}: this is a Coding Plan key (sk-sp-...); {host} will refuse it.")
    elif token and key.startswith("sk-"):
        warnings.append(
            f"{where}: {host} takes Token Plan keys; a key that begins with sk- is of another kind."
        )
    elif not coding and not token and host.endswith("aliyuncs.com") and not key.startswith("sk-"):
        warnings.append(f"{where}: {host} takes keys that begin with sk-; it will refuse this one.")
    if key and url.startswith("http://") and host not in ("127.0.0.1", "::1", "localhost"):
        warnings.append(f"{where}: the key goes to {host} unencrypted.")
    terms = PRESETS[account.preset].terms if account.preset else ""
    return [*warnings, f"{where}: {terms}"] if terms else warnings
