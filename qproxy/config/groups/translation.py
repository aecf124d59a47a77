"""The translation of requests and responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qproxy.config.setting import setting


@dataclass(frozen=True)
class TranslationSettings:
    """The translation of requests and responses."""

    strict_params: bool = setting(
        False, "reject parameters that Qwen does not support, instead of ignoring them"
    )
    forced_tool_choice: Literal["thinking-off", "auto"] = setting(
        "thinking-off", "whether a forced tool_choice disables thinking or is downgraded to auto"
    )
    stream_upstream: Literal["always", "requested"] = setting(
        "always", "whether non-streamed responses are streamed from DashScope and assembled by qproxy"
    )
    prompt_cache: Literal["auto", "markers", "off"] = setting(
        "markers",
        "placement of the breakpoints of models' prompt caches: by measured reuse and prices (auto), by "
        "clients alone (markers), or none at all, those of clients removed (off)",
    )
    prompt_cache_models: dict[str, str] = setting(
        {}, "prompt_cache of single models, by pattern of their names"
    )
    prompt_cache_1h: bool = setting(
        False, "let prompt_cache auto keep prompts for an hour before a server's usage has shown that it can"
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
