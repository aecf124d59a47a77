"""The emulated context cache: prefixes of prompts, written at breakpoints; the longest stored one is read.

A prompt is a sequence of content blocks: its tools, then the parts of its messages and their calls. A prefix
is stored for one key and one model, for its time to live, which every read renews by that of its request.

explicit   a breakpoint at a content block (`cache_control`, Qwen4's `prompt_cache_breakpoint`), or at the end
           of the prompt (`prompt_cache_options` unless its mode is `explicit`)
implicit   every block, for a request without cache parameters; a cache of its own

Sources: Model Studio, "Context cache" and "Explicit cache of Qwen4". `Unverified` has what they leave open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import bad_request
from qproxy.emulator.unverified import NATURAL, Unverified

MAX_ENTRIES = 10_000
SECONDS = (300.0, 3600.0)
MARKERS = ("cache_control", "prompt_cache_breakpoint")
OPTIONS = "prompt_cache_options"
MESSAGE_TOKENS = 4
"""What a message costs besides its words."""

_Key: TypeAlias = "tuple[str, str, str, bytes]"


@dataclass(frozen=True, slots=True)
class Block:
    """The prefix of a prompt that ends with a content block."""

    digest: bytes
    tokens: int
    marked: bool
    """Whether the block has an explicit breakpoint."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """The tokens that a request has read from the cache and written to it."""

    read: int = 0
    written: int = 0
    long: bool = False
    """Whether it was written for an hour."""
    explicit: bool = False

    def details(self) -> dict[str, Any]:
        """Return `prompt_tokens_details` of the request's usage."""
        if not self.explicit:
            return {"cached_tokens": self.read}
        written = {"ephemeral_5m_input_tokens": 0 if self.long else self.written}
        if self.long:
            written["ephemeral_1h_input_tokens"] = self.written
        return {
            "cached_tokens": self.read,
            "cache_creation_input_tokens": self.written,
            "cache_creation": written,
            "cache_type": "ephemeral",
        }


NOT_CACHED = CacheUse()


class PromptCache:
    """The cached prefixes of all keys."""

    def __init__(self, clock: Callable[[], float], facts: Unverified = NATURAL) -> None:
        self._clock = clock
        self._facts = facts
        self._expiries: dict[_Key, float] = {}

    def __repr__(self) -> str:
        return f"<PromptCache of {len(self._expiries)} prefixes>"

    def use(self, key: str, body: Any) -> CacheUse:
        """Read the longest cached prefix of a chat request, and write what its breakpoints ask for."""
        kind = package_catalog().get(str(body["model"])).cache
        blocks = list(prompt_blocks(body))
        options = body.get(OPTIONS) if kind == "options" else None
        marked = [number for number, block in enumerate(blocks) if block.marked]
        if kind in ("explicit", "options") and (marked or options is not None):
            if options is not None and options.get("mode") != "explicit":
                marked = sorted({*marked, len(blocks) - 1})
            return self._use_explicit(key, body, blocks, marked[-self._facts.cache_breakpoints :])
        if kind in (None, "none") or not self._facts.implicit_cache:
            return NOT_CACHED
        return self._use_implicit(key, body, blocks)

    def _use_explicit(self, key: str, body: Any, blocks: list[Block], breakpoints: list[int]) -> CacheUse:
        def stored(number: int) -> _Key:
            return ("explicit", key, body["model"], blocks[number].digest)

        words = self._facts.cache_ttls.split()
        long = (body.get(OPTIONS) or {}).get("ttl", words[0]) != words[0]
        reach = self._facts.cache_lookback
        places = {n for mark in breakpoints for n in range(max(0, mark - reach + 1), mark + 1)}
        hit = max((n for n in places if self._is_alive(stored(n))), default=-1)
        new = [n for n in breakpoints if n > hit and blocks[n].tokens >= self._facts.cache_minimum]
        for number in [hit, *new] if hit >= 0 else new:
            self._write(stored(number), SECONDS[long])
        read = blocks[hit].tokens if hit >= 0 else 0
        return CacheUse(read, blocks[new[-1]].tokens - read if new else 0, long, explicit=True)

    def _use_implicit(self, key: str, body: Any, blocks: list[Block]) -> CacheUse:
        long_enough = [block for block in blocks if block.tokens >= self._facts.implicit_minimum]
        keys = [("implicit", key, str(body["model"]), block.digest) for block in long_enough]
        alive = [
            block.tokens for block, entry in zip(long_enough, keys, strict=True) if self._is_alive(entry)
        ]
        for entry in keys:
            self._write(entry, SECONDS[0])
        return CacheUse(max(alive, default=0))

    def _is_alive(self, entry: _Key) -> bool:
        return self._expiries.get(entry, 0.0) > self._clock()

    def _write(self, entry: _Key, seconds: float) -> None:
        """Store a prefix, or renew its life."""
        expiry = max(self._expiries.pop(entry, 0.0), self._clock() + seconds)
        self._expiries[entry] = expiry
        while len(self._expiries) > MAX_ENTRIES:
            del self._expiries[next(iter(self._expiries))]


def validate(body: Any, facts: Unverified = NATURAL) -> None:
    """Raise the refusal of cache options that Qwen4 does not know; older models ignore all of them."""
    options = body.get(OPTIONS)
    if options is None or package_catalog().get(str(body["model"])).cache != "options":
        return
    for name, words in (("mode", ["implicit", "explicit"]), ("ttl", facts.cache_ttls.split())):
        if name in options and options[name] not in words:
            listed = ", ".join(f"'{word}'" for word in words)
            raise bad_request(f"'{OPTIONS}.{name}' must be one of: {listed}")


def prompt_blocks(body: Any) -> Iterator[Block]:
    """Yield the prefixes of a prompt, block by block."""
    kind = package_catalog().get(str(body["model"])).cache
    markers = MARKERS if kind == "options" else MARKERS[:1]
    digest, tokens = b"", 0
    for cost, block in _blocks(body):
        marked = any(block.get(marker) for marker in markers)
        plain = {name: value for name, value in block.items() if name not in MARKERS}
        digest = hashlib.sha256(digest + json.dumps(plain, sort_keys=True).encode()).digest()
        tokens += cost
        yield Block(digest, tokens, marked)


def _blocks(body: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (tokens, block) for each tool, each part of a message and each of its calls."""
    for tool in body.get("tools") or ():
        yield len(json.dumps(tool).split()), tool
    thoughts = ("reasoning_content", "encrypted_content") if body.get("preserve_thinking") else ()
    for message in body["messages"]:
        head = {name: message.get(name) for name in ("role", "tool_call_id", *thoughts) if message.get(name)}
        cost = MESSAGE_TOKENS
        for part in [*_parts(message.get("content")), *(message.get("tool_calls") or ())] or [{}]:
            yield cost + len(str(part.get("text") or "").split()), {**part, **head}
            cost = 0


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return [part for part in content if isinstance(part, dict)]
    return [{"type": "text", "text": content}] if content else []
