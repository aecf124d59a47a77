"""The small test requests, the choice of a model for them, and the check of tool calls. Pure.

`max_tokens` bounds a response: that of a reasoning model may be truncated in its reasoning, which still
counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from qproxy.wire.conformance.chat import non_object_kind
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import EMPTY

CHAT_PROMPT: Any = [{"role": "user", "content": "Say hello."}]
CHAT_PROMPT_TOKENS = 24
TOOL_PROMPT: Any = [
    {"role": "user", "content": "What is the weather in Hangzhou? Call the tool to find out."}
]
TOOL_PROMPT_TOKENS = 512
"""A call takes about 30 tokens; a reasoning model may need the rest."""
TOOL = "get_weather"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
TEXTS = ("one", "two")

NOT_CHAT = (
    "*embed*", "*rerank*", "*image*", "*tts*", "*asr*", "*audio*", "*-mt-*", "*ocr*", "*realtime*",
    "*translate*", "*omni*", "*video*", "*guard*",
)  # fmt: skip
"""Patterns of models without text chat."""
PARSER = (
    "enable the server's tool parser (vLLM: --enable-auto-tool-choice --tool-call-parser hermes; "
    "llama.cpp: --jinja), or set render_tools"
)
"""Advice for a server whose model writes its calls as text."""
CHEAP_MODELS = ("*flash*", "*turbo*", "*mini*", "*lite*", "*")


def chat_model(names: Iterable[str], catalog: ModelCatalog = EMPTY) -> str | None:
    """Return the chat model that is cheapest by its price, otherwise by its name, or None."""
    candidates = [name for name in names if _chats(name, catalog)]
    prices = {name: price for name in candidates if (price := _price(name, catalog)) is not None}
    if prices:
        return min(prices, key=prices.__getitem__)
    for pattern in CHEAP_MODELS:
        for name in candidates:
            if fnmatchcase(name.lower(), pattern):
                return name
    return None


def _chats(name: str, catalog: ModelCatalog) -> bool:
    if any(fnmatchcase(name.lower(), other) for other in NOT_CHAT):
        return False
    spec = catalog.find(name)
    return spec is None or (spec.is_for("chat") and spec.retires is None)


def _price(name: str, catalog: ModelCatalog) -> float | None:
    """Return the price of its output in the currency of the list, or None."""
    spec = catalog.find(name)
    tiers = (spec.prices if spec is not None else None) or []
    return min(
        (tier["output"] for tier in tiers if "output" in tier and "currency" not in tier), default=None
    )


def embedding_model(names: Iterable[str], catalog: ModelCatalog = EMPTY) -> str | None:
    """Return the first embedding model, None if there is none."""
    return next(
        (name for name in names if catalog.get(name).is_for("embedding") or "embed" in name.lower()), None
    )


def tool_call_problem(calls: Sequence[tuple[str, str]], reasons: Sequence[str]) -> str | None:
    """Return what is wrong with the calls of a response to TOOL_PROMPT, None if nothing is."""
    if not calls:
        is_truncated = "length" in reasons
        return "truncated before the tool call" if is_truncated else "the model did not call the tool"
    for name, text in calls:
        if name != TOOL:
            return f"the model called the unknown tool {name!r:.60}"
        if (kind := non_object_kind(text)) is not None:
            return f"the arguments are {kind}"
        if '"city"' not in text:
            return "the required argument city is missing"
    return None
