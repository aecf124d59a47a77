"""Upstream accounts as the configuration declares them, and the base URLs that Alibaba publishes.

`resolve_account` turns a preset into a base URL, a plan and a key; `key_warnings` detects keys that are
likely wrong before the first request. Sources: Model Studio's region and plan pages, qwen-code's provider
presets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from qproxy.config.urls import complete_base_url, split_url
from qproxy.limits.windows import WINDOWS
from qproxy.wire import realtime

_TERMS = (
    "is sold for interactive use in coding tools only; "
    "scripts and application back ends are against its terms."
)


FREE_TIER_ENDED = (
    "Alibaba ended the free tier behind Qwen accounts on 2026-04-15: login may work while chat is refused."
)


class ConfigError(Exception):
    """The configuration is invalid; the message names the fault and its place."""


@dataclass(frozen=True, slots=True)
class AccountPreset:
    """A base URL that Alibaba publishes."""

    base_url: str
    plan: str = "payg"
    terms: str = ""


BATCH_URL = "https://batch.dashscope.aliyuncs.com/compatible-mode/v1"
"""Of Model Studio in Beijing, for the flex tier."""
PRESETS: dict[str, AccountPreset] = {
    "singapore": AccountPreset("https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    "beijing": AccountPreset("https://dashscope.aliyuncs.com/compatible-mode/v1"),
    "us": AccountPreset("https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
    "hongkong": AccountPreset("https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1"),
    "workspace": AccountPreset("https://{workspace}.{region}.maas.aliyuncs.com/compatible-mode/v1"),
    "coding-plan-cn": AccountPreset("https://coding.dashscope.aliyuncs.com/v1", "coding",
        f"The Coding Plan {_TERMS}"),
    "coding-plan-intl": AccountPreset("https://coding-intl.dashscope.aliyuncs.com/v1", "coding",
        f"The Coding Plan {_TERMS}"),
    "token-plan-cn": AccountPreset("https://token-plan.cn-beijing.maas.aliyuncs.com/compatible-mode/v1",
        "token", f"The Token Plan {_TERMS}"),
    "token-plan-sg": AccountPreset("https://token-plan.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1",
        "token", f"The Token Plan {_TERMS}"),
}  # fmt: skip
EMBEDDING_BATCHES = {"payg": 10, "open": 32}
"""Maximum texts per embeddings request, by plan: DashScope rejects more than 10; 32 suits other servers.
Coding plans, token plans and logins have no embeddings."""
COMPLETIONS: dict[str, list[str] | None] = {"payg": None, "open": ["*"]}
"""Models that the upstream's own `/completions` accepts, by plan; None: those marked so in the model
catalog."""
TASKS = (
    "rerank", "speech", "transcription", "image", "multimodal_embedding", "moderation", "decision", "file",
    "batch",
)  # fmt: skip
"""Tasks that an account serves, or not, beside chat, embeddings and realtime sessions."""
LOGIN_RPM = 60
"""Requests per minute that a login was allowed while there was a free tier."""
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
    """key: a DashScope API key; openai_compatible: any other server; oauth: a login by `qproxy login`."""
    preset: str | None = None
    base_url: str | None = None
    workspace: str | None = None
    region: str | None = None
    """Region of the workspace."""
    key: str | None = field(default=None, repr=False)
    key_env: str | None = None
    key_file: str | None = None
    credentials: str | None = None
    """Directory or file of a login's tokens (`~/.qwen` shares qwen-code's); None: the data directory."""
    plan: str | None = None
    models: list[str] = field(default_factory=lambda: ["*"])
    weight: float = 1.0
    max_in_flight: int | None = None
    rpm: int | None = None
    """Requests per minute; 0 is no limit. A login defaults to 60."""
    tpm: int | None = None
    """Tokens per minute, input and output; 0 is no limit."""
    allowance: dict[str, int] = field(default_factory=dict)
    """Requests that its plan allows, by window (`limits.windows`); shown on the dashboard, not enforced."""
    rules: dict[str, bool] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    dialect: Literal["compatible", "dashscope"] = "compatible"
    """compatible: OpenAI's format; dashscope: the native API."""
    tool_schema: Literal["openai", "function_declarations"] = "openai"
    """Format of function declarations, in either dialect."""
    render_tools: Literal["", "auto", "hermes", "coder"] = ""
    """Format in which tools are written into the prompt, for an upstream without a tool parser."""
    completions: list[str] | None = None
    """Patterns of the models that the upstream's own `/completions` accepts; others are sent as a chat."""
    embedding_batch: int | None = None
    """Maximum texts per embeddings request; 0 if the account has no embeddings."""
    realtime_url: str | None = None
    """URL of its realtime models; None: Model Studio's on the same host for pay-as-you-go keys; "" for
    none."""
    flex_url: str | None = None
    """Base URL of its synchronous batch host for the flex tier; None: Model Studio's for pay-as-you-go keys
    of Beijing; "" for none."""
    tasks: list[str] | None = None
    """Tasks beside chat, embeddings and realtime sessions that it serves: rerank, speech, transcription,
    image, multimodal_embedding, moderation, decision, file, batch; None: all of them, and none for plans and
    logins."""

    @property
    def identity(self) -> str:
        """Return a digest that identifies the account on disk; another key or base URL is another account."""
        kind = "open" if self.kind == "openai_compatible" else self.kind  # its name in the first files
        source = "\n".join((kind, self.name, self.base_url or "", self.key or ""))
        return hashlib.blake2b(source.encode(), digest_size=16).hexdigest()


def load_key(account: AccountConfig, environ: Mapping[str, str]) -> AccountConfig:
    """Return the account with its key read from `key_env` or `key_file`. Raises ConfigError."""
    return replace(account, key=account.key or _resolve_key(account, environ, f"account {account.name!r}"))


def resolve_account(account: AccountConfig) -> AccountConfig:
    """Return the account with its base URL, plan and key filled in. Raises ConfigError."""
    where = f"account {account.name!r}"
    base_url, plan = account.base_url, account.plan
    unknown = account.allowance.keys() - WINDOWS.keys()
    if unknown:
        raise ConfigError(
            f"{where}: unknown window {min(unknown)!r} in allowance. Known windows: {', '.join(WINDOWS)}."
        )
    if account.preset is not None:
        if account.preset not in PRESETS:
            raise ConfigError(
                f"{where}: unknown preset {account.preset!r}. Known presets: {', '.join(PRESETS)}."
            )
        preset = PRESETS[account.preset]
        base_url, plan = base_url or _with_defaults(account, preset, where), plan or preset.plan
    if account.kind == "oauth":
        _check_name(account.name, where)
        base_url, plan = base_url or PRESETS["beijing"].base_url, plan or "oauth"
    if base_url is None:
        raise ConfigError(f"{where}: set a preset or a base_url.")
    if split_url(base_url) is None:
        raise ConfigError(
            f"{where}: base_url must be http(s)://host[:port]/path, without a query or password."
        )
    if account.tool_schema != "openai" and account.render_tools:
        raise ConfigError(
            f"{where}: tool_schema and render_tools exclude each other: tools go either into the request or "
            "into the prompt. Remove one."
        )
    if account.weight <= 0:
        raise ConfigError(f"{where}: weight must be greater than 0.")
    key = account.key
    if key is not None:
        key = key.strip()
        if not key.isascii() or any(char.isspace() for char in key):
            raise ConfigError(f"{where}: the key contains whitespace or non-ASCII characters.")
    if account.kind == "key" and not key:
        raise ConfigError(f"{where}: set key, key_env or key_file.")
    plan = plan or ("open" if account.kind == "openai_compatible" else "payg")
    if account.kind == "openai_compatible":
        base_url = complete_base_url(base_url)
    return replace(
        account, base_url=base_url.rstrip("/"), plan=plan, key=key, **_capabilities(account, plan, base_url)
    )


def _capabilities(account: AccountConfig, plan: str, base_url: str) -> dict[str, Any]:
    """Return the fields that default by plan. Raises ConfigError for invalid ones."""
    realtime_url = account.realtime_url
    if realtime_url and split_url(realtime_url, ("http", "https", "ws", "wss")) is None:
        raise ConfigError(f"account {account.name!r}: realtime_url must be ws(s):// or http(s)://.")
    batch, completions = account.embedding_batch, account.completions
    if batch is not None and batch < 0:
        raise ConfigError(f"account {account.name!r}: embedding_batch must be 0 or more.")
    flex_url = account.flex_url
    if flex_url and split_url(flex_url) is None:
        raise ConfigError(f"account {account.name!r}: flex_url must be http(s)://host[:port]/path.")
    unknown = set(account.tasks or ()).difference(TASKS)
    if unknown:
        known = ", ".join(TASKS)
        raise ConfigError(f"account {account.name!r}: tasks: {min(unknown)!r} is none of {known}.")
    return {
        "tasks": [] if account.tasks is None and plan not in ("payg", "open") else account.tasks,
        "realtime_url": realtime.default_realtime_url(base_url)
        if plan == "payg" and realtime_url is None
        else realtime_url or "",
        "flex_url": _default_flex_url(plan, base_url) if flex_url is None else flex_url.rstrip("/"),
        "embedding_batch": EMBEDDING_BATCHES.get(plan, 0) if batch is None else batch,
        "completions": COMPLETIONS.get(plan, []) if completions is None else completions,
        "rpm": LOGIN_RPM if account.rpm is None and plan == "oauth" else account.rpm,
    }


def _default_flex_url(plan: str, base_url: str) -> str:
    """Return the batch host of pay-as-you-go keys of Beijing, "" for others."""
    is_beijing = base_url.rstrip("/") == PRESETS["beijing"].base_url
    return BATCH_URL if plan == "payg" and is_beijing else ""


def _check_name(name: str, where: str) -> None:
    """Raise ConfigError unless the name of a login can be that of a directory."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", name):
        raise ConfigError(
            f"{where}: the name of an oauth account may only have letters, digits and _ . @ - (at most 64)."
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
            raise ConfigError(f"{where}: environment variable {account.key_env} is not set.")
        return environ[account.key_env]
    if account.key_file is not None:
        try:
            return Path(account.key_file).expanduser().read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{where}: cannot read {account.key_file} ({error.strerror}).") from None
    return None


def accounts_from_env(environ: Mapping[str, str], region: str) -> tuple[AccountConfig, ...]:
    """Return the accounts of the customary variables. Raises ConfigError for an unknown region."""
    accounts = []
    if environ.get("DASHSCOPE_API_KEY"):
        if region not in ("singapore", "beijing", "us", "hongkong"):
            raise ConfigError(f"region: must be one of singapore, beijing, us, hongkong, got {region!r}.")
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
    """Return the accounts that `qproxy login` created, by their directories. Raises ConfigError."""
    try:
        names = sorted(path.parent.name for path in folder.glob("*/oauth_creds.json"))
    except OSError as error:
        raise ConfigError(f"cannot read {folder} ({error.strerror}).") from None
    return tuple(AccountConfig(name, kind="oauth") for name in names)


def key_warnings(account: AccountConfig) -> list[str]:
    """Return warnings about a resolved account: a key that is likely wrong, and its plan's terms."""
    key, url = account.key or "", account.base_url or ""
    host = urlsplit(url).hostname or ""
    where = f"account {account.name!r}"
    warnings = []
    if account.tool_schema != "openai" and host.endswith("aliyuncs.com"):
        warnings.append(
            f"{where}: {host} accepts tools in OpenAI's format only; it will reject {account.tool_schema}."
        )
    if account.kind == "oauth":
        return [*warnings, f"{where}: {FREE_TIER_ENDED}"]
    coding = host.startswith("coding") and host.endswith("dashscope.aliyuncs.com")
    token = host.startswith("token-plan.")
    if coding and not key.startswith("sk-sp-"):
        warnings.append(f"{where}: {host} accepts Coding Plan keys (sk-sp-...); it will reject this one.")
    elif key.startswith("sk-sp-") and not coding and host.endswith("aliyuncs.com"):
        warnings.append(f"{where}: this is a Coding Plan key (sk-sp-...); {host} will reject it.")
    elif token and key.startswith("sk-"):
        warnings.append(
            f"{where}: {host} accepts Token Plan keys; a key that starts with sk- is of another kind."
        )
    elif not coding and not token and host.endswith("aliyuncs.com") and not key.startswith("sk-"):
        warnings.append(f"{where}: {host} accepts keys that start with sk-; it will reject this one.")
    if key and url.startswith("http://") and host not in ("127.0.0.1", "::1", "localhost"):
        warnings.append(f"{where}: the key is sent to {host} unencrypted.")
    terms = PRESETS[account.preset].terms if account.preset else ""
    return [*warnings, f"{where}: {terms}"] if terms else warnings


def resolve_accounts(accounts: Sequence[AccountConfig]) -> tuple[AccountConfig, ...]:
    """Return the accounts as their upstreams see them. Raises ConfigError if there are none."""
    if not accounts:
        raise ConfigError(
            "No account is configured. Set DASHSCOPE_API_KEY, pass --upstream URL for your own Qwen server, "
            "or add an [[accounts]] table to qproxy.toml. To try qproxy without an account: qproxy demo"
        )
    return tuple(resolve_account(account) for account in accounts)
