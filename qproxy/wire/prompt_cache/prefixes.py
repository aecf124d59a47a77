"""The prefixes of a request: its tools, then message after message, each prefix known by a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.prompt_cache import markers
from qproxy.wire.token_ratios import TOKENS_PER_IMAGE

DIGEST_BYTES = 12
MEDIA_BYTES = 4096
"""A part without text of more bytes is a picture or sound."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt up to the end of one message."""

    digest: bytes
    tokens: int
    message: int
    """The number of that message."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The prefixes of a request at which a breakpoint is possible, from short to long."""

    steps: tuple[Prefix, ...]
    has_root: bool
    """Whether the first one is of the tools and the system messages."""

    @property
    def root(self) -> Prefix | None:
        """Return the prefix of the tools and the system messages."""
        return self.steps[0] if self.has_root else None


def read_prefixes(scope: str, messages: Sequence[JSON], tools: Sequence[JSON], ratio: float) -> Prefixes:
    """Return the prefixes of a request; `ratio` is tokens per byte.

    `scope` is what shares a cache: an account and a model. Breakpoints are no part of a prefix.
    """
    digest = hashlib.blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES)
    steps: list[Prefix] = []
    tokens, roots, leading = 0.0, 0, True
    for tool in tools:
        text = json_codec.dumps(markers.unmarked(tool) if isinstance(tool, dict) else tool)
        digest.update(text)
        tokens += len(text) * ratio
    for number, message in enumerate(messages):
        plain = markers.unmarked(message)
        if isinstance(plain.get("content"), str):  # a text means the same as one part of text
            plain["content"] = [{"type": "text", "text": plain["content"]}]
        text = json_codec.dumps(plain)
        digest.update(text)
        tokens += _tokens(plain, len(text), ratio)
        leading = leading and message.get("role") in ("system", "developer")
        if markers.is_markable(message):
            if leading and steps:
                steps.pop()  # the root is the last of the leading system messages
            roots += leading
            steps.append(Prefix(digest.digest(), int(tokens), number))
    return Prefixes(tuple(steps), has_root=roots > 0)


def _tokens(message: JSON, size: int, ratio: float) -> float:
    """Return about how many tokens a message has; pictures and sound are not measured by their bytes."""
    parts = message.get("content")
    if size <= MEDIA_BYTES or not isinstance(parts, list):
        return size * ratio
    media = [part for part in parts if isinstance(part, dict) and part.get("type") != "text"]
    heavy = [length for part in media if (length := len(json_codec.dumps(part))) > MEDIA_BYTES]
    return (size - sum(heavy)) * ratio + len(heavy) * TOKENS_PER_IMAGE
