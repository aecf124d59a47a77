"""The few tiny things that are asked, of which model, and what the answers should hold.

Pure.  An answer is bounded by `max_tokens`: a model that thinks first may be cut in its thoughts, which is an answer too.
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
"""A call takes some thirty; a model that thinks may need the others."""
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
    "*embed*", "*rerank*", "*image*", "*tts*", "*asr*", "*audio*", "*-mt-*", "*ocr*", "*realtime*", "*translate*", "*omni*",
    "*video*", "*guard*",
)  # fmt: skip
"""Models that do not chat, or not by text, by their names' words."""
PARSER = "let the server parse calls (vLLM: --enable-auto-tool-choice --tool-call-parser hermes; llama.cpp: --jinja), or set render_tools"
"""What to do about a server whose model writes its calls as text."""
CHEAP_MODELS = ("*flash*", "*turbo*", "*mini*", "*lite*", "*")


def chat_model(names: Iterable[str], catalog: ModelCatalog = EMPTY) -> str | None:
    """The cheapest of these models to chat with, as far as their prices or else their names tell."""
    able = [name for name in names if _chats(name, catalog)]
    prices = {name: price for name in able if (price := _price(name, catalog)) is not None}
    if prices:
        return min(prices, key=prices.__getitem__)
    for pattern in CHEAP_MODELS:
        for name in able:
            if fnmatchcase(name.lower(), pattern):
                return name
    return None


def _chats(name: str, catalog: ModelCatalog) -> bool:
    if any(fnmatchcase(name.lower(), other) for other in NOT_CHAT):
        return False
    spec = catalog.find(name)
    return spec is None or (spec.is_for("chat") and spec.retires is None)


def _price(name: str, catalog: ModelCatalog) -> float | None:
    """What its output costs in the list's own currency."""
    spec = catalog.find(name)
    tiers = (spec.prices if spec is not None else None) or []
    return min(
        (tier["output"] for tier in tiers if "output" in tier and "currency" not in tier), default=None
    )


def embedding_model(names: Iterable[str], catalog: ModelCatalog = EMPTY) -> str | None:
    """A model among these that embeds."""
    return next(
        (name for name in names if catalog.get(name).is_for("embedding") or "embed" in name.lower()), None
    )


def tool_call_problem(calls: Sequence[tuple[str, str]], reasons: Sequence[str]) -> str | None:
    """What is wrong with the answer to the errand, if not its form."""
    if not calls:
        cut = "length" in reasons
        return "it was cut off before it called the tool" if cut else "the model answered in words"
    for name, text in calls:
        if name != TOOL:
            return f"the model called {name!r:.60}, which there is not"
        if (why := non_object_kind(text)) is not None:
            return f"the arguments are {why}"
        if '"city"' not in text:
            return "the arguments have no city, which is required"
    return None
