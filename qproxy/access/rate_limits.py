"""What a client key has left of its requests and tokens a minute.

Two buckets a key, refilled evenly: a minute's worth at most.  A request reserves one request and an estimate of its
tokens before it is sent; when it is over, the estimate is exchanged for what was used (a client that left pays for
what it got), and a request that reached no model costs nothing.

No clock and no I/O: whoever asks says what time it is.  A `Shelf` is where the buckets stand between two uses, for all
processes that serve the same keys; the embedded member is a file (`meter_file`).  Without one a meter is this
process's own.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from qproxy.access.api_keys import ApiKey
from qproxy.limits.token_bucket import TokenBucket
from qproxy.wire import json_codec
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON, Turn

TOKENS_PER_IMAGE = 1000
BYTES_PER_TOKEN = 4


@dataclass(eq=False, slots=True)
class RateLimitReservation:
    """What one request has taken and may get back."""

    limiter: KeyRateLimiter
    tokens: int
    settled: bool = False

    def settle(self, used: int, now: float, *, counts: bool = True) -> None:
        """Exchange the estimate for `used` tokens; `counts` says whether the request itself stays taken.  Once."""
        if not self.settled:
            self.settled = True
            self.limiter.refund(self.tokens - used, 0 if counts else 1, now)


Buckets: TypeAlias = tuple[TokenBucket | None, TokenBucket | None]
"""Of requests and of tokens."""


class RateLimitStore(Protocol):
    """Where the buckets of all keys stand, for several processes."""

    def transaction(self, identity: bytes, buckets: Buckets, now: float) -> AbstractContextManager[None]:
        """The buckets are as everybody left them and nobody else's for the block, and left for others after it.

        An error in the block leaves them as they were.
        """
        ...


class KeyRateLimiter:
    """The two buckets of one key."""

    def __init__(self, key: ApiKey, now: float, store: RateLimitStore | None = None) -> None:
        self._name = key.label
        self._store = store
        self._identity = hashlib.sha256(f"{key.digest} {key.rpm} {key.tpm}".encode()).digest()
        self.requests = TokenBucket(key.rpm, now) if key.rpm else None
        self.tokens = TokenBucket(key.tpm, now) if key.tpm else None

    def _buckets(self, now: float) -> AbstractContextManager[None]:
        if self._store is None:
            return nullcontext()
        return self._store.transaction(self._identity, (self.requests, self.tokens), now)

    def reserve(self, tokens: int, now: float) -> RateLimitReservation:
        """Take one request and so many tokens.  RequestError 429 when that must wait; then nothing is taken."""
        with self._buckets(now):
            self._check(1, tokens, now)
            if self.tokens:
                tokens = min(tokens, self.tokens.capacity)
            self._acquire(tokens, 1, now)
        return RateLimitReservation(self, tokens)

    def consume(self, tokens: int, requests: int, now: float) -> None:
        """What a request that goes on has used since; RequestError 429 when that was more than there was."""
        with self._buckets(now):
            self._acquire(tokens, requests, now)
        with self._buckets(now):  # on its own: an error in a block takes back what the block took
            self._check(0, 0, now)

    def _check(self, requests: int, tokens: int, now: float) -> None:
        for bucket, count, what in ((self.requests, requests, "requests"), (self.tokens, tokens, "tokens")):
            wait = bucket.wait(count, now) if bucket else 0.0
            if bucket and wait > 0:
                raise RequestError(
                    f"The API key {self._name!r} is limited to {bucket.capacity} {what} a minute. "
                    f"Try again in {wait:.1f} s.",
                    status=429,
                    type="rate_limit_error",
                    code="rate_limit_exceeded",
                    retry_after=wait,
                )

    def refund(self, tokens: int, requests: int, now: float) -> None:
        with self._buckets(now):
            self._acquire(-tokens, -requests, now)

    def _acquire(self, tokens: int, requests: int, now: float) -> None:
        for bucket, count in ((self.tokens, tokens), (self.requests, requests)):
            if bucket:
                bucket.acquire(count, now)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's x-ratelimit-* fields, as of this process's last use."""
        fields = {}
        for bucket, what in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket:
                fields[f"x-ratelimit-limit-{what}"] = str(bucket.capacity)
                fields[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.available(now))))
                fields[f"x-ratelimit-reset-{what}"] = format_duration(bucket.wait(bucket.capacity, now))
        return fields


class KeyRateLimiters:
    """The meters of all keys, made as they come.  A key whose limits have changed begins anew."""

    def __init__(self, store: RateLimitStore | None = None) -> None:
        self._store = store
        self._by_key: dict[ApiKey, KeyRateLimiter] = {}

    def for_key(self, key: ApiKey | None, now: float) -> KeyRateLimiter | None:
        """The key's meter; None for a key without limits."""
        if key is None or not (key.rpm or key.tpm):
            return None
        if key not in self._by_key:
            self._by_key = {known: limiter for known, limiter in self._by_key.items() if known.id != key.id}
            self._by_key[key] = KeyRateLimiter(key, now, self._store)
        return self._by_key[key]


def format_duration(seconds: float) -> str:
    """A duration as OpenAI writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, cooldown = divmod(seconds, 60)
    return f"{int(minutes)}m{round(cooldown)}s" if minutes else f"{cooldown:.3g}s"


def estimate(turn: Turn) -> tuple[int, int]:
    """About how many tokens a turn's prompt is, and at most how many its answer was asked to be."""
    text = sum(_text_size(message.get("content")) for message in turn.messages if isinstance(message, dict))
    tools = _text_of(turn) // BYTES_PER_TOKEN if turn.tools else 0
    limit = turn.params.get("max_completion_tokens") or turn.params.get("max_tokens") or 0
    return text + tools + 1, int(limit) if isinstance(limit, int | float) and limit > 0 else 0


def _text_of(turn: Turn) -> int:
    """How many bytes the tools are as text."""
    text = None if turn.raw_fields is None else turn.raw_fields.text(turn.tools)
    return len(json_codec.dumps(list(turn.tools)) if text is None else text)


def estimate_texts(request: EmbeddingInput) -> int:
    """About how many tokens the texts of a request for embeddings are."""
    return sum(map(_text_size, request.texts)) + 1


def _text_size(content: JSON) -> int:
    if isinstance(content, str):
        size = len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
        return size // BYTES_PER_TOKEN
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return sum(_text_size(text) if isinstance(text, str) else TOKENS_PER_IMAGE for text in texts)
    return 0
