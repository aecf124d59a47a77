"""Reasoning of the emulated model: efforts, and summaries whose ciphertext must come back unchanged.

Which of these a model has is known from the catalog. A ciphertext is the reasoning with a digest of it, so a
changed one is recognized; with `preserve_thinking` the model answers how many earlier thoughts it has read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import bad_request
from qproxy.emulator.unverified import NATURAL, Unverified
from qproxy.wire.models import ModelSpec

OFF = ("none", "off")


def validate(body: Any, spec: ModelSpec, facts: Unverified = NATURAL) -> None:
    """Raise the refusal of thinking's parameters, of a forced tool beside it, or of a changed ciphertext."""
    effort = body.get("reasoning_effort")
    if effort is not None and spec.efforts and effort not in (*spec.efforts, *(spec.effort_map or ())):
        words = ", ".join(f"'{word}'" for word in spec.efforts)
        raise bad_request(f"'reasoning_effort' must be one of: {words}")
    if effort is not None and spec.effort_xor_budget and "thinking_budget" in body:
        raise bad_request("'reasoning_effort' and 'thinking_budget' cannot be set together")
    if spec.encrypted_thinking:
        _validate_unverified(body, facts)
    forced = body.get("tool_choice") not in (None, "auto", "none")
    takes_forced = spec.forced_tool == "unknown" and facts.forced_tool_while_thinking
    if forced and is_on(body) and not takes_forced:
        raise bad_request(
            "The tool_choice parameter does not support being set to required or object in thinking mode"
        )
    for number, message in enumerate(body["messages"]):
        ciphertext = message.get("encrypted_content")
        if ciphertext is not None and decrypt(ciphertext) is None:
            raise bad_request(f"'messages.{number}.encrypted_content' is invalid")


def _validate_unverified(body: Any, facts: Unverified) -> None:
    effort, switch = body.get("reasoning_effort"), body.get("enable_thinking")
    if "thinking_budget" in body and not facts.budget:
        raise bad_request("'thinking_budget' is not supported")
    contradictory = isinstance(switch, bool) and effort is not None and switch is (effort in OFF)
    if contradictory and not facts.effort_against_switch:
        raise bad_request("'reasoning_effort' and 'enable_thinking' contradict each other")


def is_on(body: Any) -> bool:
    """Return whether the model thinks: always when asked to, and by default if it can summarize its
    thoughts."""
    if isinstance(body.get("enable_thinking"), bool):
        return bool(body["enable_thinking"])
    return _encrypts(body) and body.get("reasoning_effort") not in OFF


def shown(body: Any, thought: str) -> tuple[str, str]:
    """Return the visible reasoning and its ciphertext, which is "" unless a summary was asked for."""
    if not thought or body.get("thinking_display") != "summarized" or not _encrypts(body):
        return thought, ""
    return f"Summary of {len(thought.split())} words.", encrypt(thought)


def insert_ciphertext(
    deltas: Iterable[dict[str, Any]], ciphertext: str, facts: Unverified
) -> Iterator[dict[str, Any]]:
    """Yield the deltas with the ciphertext where `facts` expects it, always after the reasoning."""
    before: list[dict[str, Any]] = []
    rest = list(deltas)
    while rest and ciphertext and not (rest[0].get("content") or rest[0].get("tool_calls") or len(rest) == 1):
        before.append(rest.pop(0))
    if not ciphertext:
        pieces: list[dict[str, Any]] = []
    elif facts.ciphertext_delta in ("next", "finish"):
        number = 0 if facts.ciphertext_delta == "next" else -1
        rest[number] = {**rest[number], "encrypted_content": ciphertext}
        pieces = []
    else:
        middle = len(ciphertext) // 2 if facts.ciphertext_delta == "pieces" else 0
        parts = [ciphertext[:middle], ciphertext[middle:]]
        pieces = [{"content": None, "encrypted_content": part} for part in parts if part]
    yield from (*before, *pieces, *rest)


def memory(body: Any) -> str:
    """Return a sentence about the earlier thoughts that the model has read."""
    if not body.get("preserve_thinking") or not _encrypts(body):
        return ""
    thoughts = [message for message in body["messages"] if message.get("encrypted_content")]
    return f" I remember {len(thoughts)} thoughts." if thoughts else ""


def encrypt(thought: str) -> str:
    """Return the reasoning as a ciphertext."""
    data = base64.b64encode(thought.encode("utf-8", "surrogatepass")).decode()
    return f"emu4.{data}.{_digest(data)}"


def decrypt(ciphertext: Any) -> str | None:
    """Return the reasoning in a ciphertext; None for a changed one."""
    prefix, _, rest = ciphertext.partition(".") if isinstance(ciphertext, str) else ("", "", "")
    data, _, digest = rest.partition(".")
    if prefix != "emu4" or digest != _digest(data):
        return None
    return base64.b64decode(data).decode("utf-8", "surrogatepass")


def _digest(data: str) -> str:
    return hashlib.sha256(f"emulator {data}".encode()).hexdigest()[:16]


def _encrypts(body: Any) -> bool:
    return bool(package_catalog().get(str(body["model"])).encrypted_thinking)
