"""The content of a delta or a whole message in OpenAI's shape, which DashScope's native responses share.

Everything that carries content is kept, in the order reasoning, text, calls; empty fields are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

from qproxy.wire import storable
from qproxy.wire.events import (
    JSON,
    EncryptedReasoning,
    Event,
    ExtraFields,
    RawToolCallDelta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    Usage,
)

_DELTA_FIELDS = frozenset((
    "role", "content", "reasoning_content", "reasoning", "encrypted_content", "refusal", "tool_calls",
    "function_call",
))  # fmt: skip
CHOICE_FIELDS = frozenset((
    "index", "delta", "message", "text", "finish_reason", "logprobs", "error", "content", "finishReason",
))  # fmt: skip
ANSWER_FIELDS = frozenset(("delta", "message", "text", "finish_reason", "content"))
"""Fields of a choice of which at least one is there, unless it is no choice."""
CHUNK_FIELDS = frozenset((
    "id", "object", "created", "model", "choices", "usage", "error", "candidates", "usageMetadata", "qproxy",
))  # fmt: skip
_OUTPUT_FIELDS = frozenset(("choices", "text", "finish_reason", "search_info"))
_USAGE_FIELDS = frozenset((
    "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens",
    "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
))  # fmt: skip
MAX_CHOICES = 128
"""The maximum of `n`, and so of a choice's index."""


def parse_delta(delta: dict[str, JSON], choice: int, logprobs: JSON = None) -> list[Event]:
    """Yield the events of a delta (or a whole message): reasoning, then text, then calls."""
    events: list[Event] = []
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if thought and isinstance(thought, str):
        events.append(ReasoningDelta(thought, choice))
    ciphertext = delta.get("encrypted_content")
    if ciphertext and isinstance(ciphertext, str):
        events.append(EncryptedReasoning(ciphertext, choice))
    content = delta.get("content")
    text = parse_text(content)
    if text:
        events.append(TextDelta(text, choice, None if logprobs is None else parse_logprobs(logprobs)))
    refusal = delta.get("refusal")
    if refusal and isinstance(refusal, str):
        events.append(RefusalDelta(refusal, choice))
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        for entry in calls:
            if isinstance(entry, dict):
                events.append(_parse_call(entry, entry.get("function"), choice))
    legacy = delta.get("function_call")
    if isinstance(legacy, dict) and not calls:  # beside calls it repeats them
        events.append(_parse_call({"index": 0}, legacy, choice))
    if not _DELTA_FIELDS.issuperset(delta) and (extra := _unknown_fields(delta, _DELTA_FIELDS)):
        events.append(ExtraFields(extra, "delta", choice))
    if text is not content and isinstance(content, list) and (extra := _other_parts(content)):
        events.append(ExtraFields(extra, "delta", choice))
    return events


def _other_parts(content: list[JSON]) -> dict[str, JSON]:
    """Return the parts that hold no text: sound as `audio`, any other in `content_parts`."""
    parts = [part for part in content if part and not (isinstance(part, dict) and "text" in part)]
    sounds = [part for part in parts if isinstance(part, dict) and isinstance(part.get("audio"), dict)]
    rest = [part for part in parts if part not in sounds]
    audio = {"audio": sounds[-1]["audio"]} if sounds else {}
    return {**audio, "content_parts": rest} if rest else audio


def parse_choice_extras(choice: dict[str, JSON], number: int) -> list[Event]:
    """Return the unknown fields of a choice, apart from its delta."""
    extra = _unknown_fields(choice, CHOICE_FIELDS)
    return [ExtraFields(extra, "choice", number)] if extra else []


class ChunkExtras:
    """The unknown fields of a stream's chunks; those that every chunk repeats are passed on once."""

    def __init__(self, *, native: bool = False) -> None:
        self._known = _OUTPUT_FIELDS if native else CHUNK_FIELDS
        self._sent: dict[str, JSON] = {}

    def feed(self, chunk: dict[str, JSON]) -> list[Event]:
        extra = _unknown_fields(chunk, self._known)
        fields = {name: extra[name] for name in extra if self._sent.get(name) != extra[name]}
        if not fields:
            return []
        self._sent.update(fields)
        return [ExtraFields(fields, "chunk")]


def _unknown_fields(data: dict[str, JSON], known: frozenset[str]) -> dict[str, JSON]:
    """Return the fields that are not in `known` and carry something."""
    return {
        name: value
        for name, value in data.items()
        if name not in known and value is not None and value not in ("", [], {})
    }


def chat_logprobs(value: JSON) -> JSON:
    """Return a completion's log probabilities in chat's shape."""
    if not isinstance(value, dict) or not isinstance(value.get("tokens"), list):
        return value
    count = len(value["tokens"])
    logprobs = _of_length(value.get("token_logprobs"), count)
    tops = _of_length(value.get("top_logprobs"), count)
    entries = zip(value["tokens"], logprobs, tops, strict=True)
    return {"content": [_entry(token, logprob, top) for token, logprob, top in entries], "refusal": None}


def _of_length(value: JSON, count: int) -> list[JSON]:
    return value if isinstance(value, list) and len(value) == count else [None] * count


def _entry(token: JSON, logprob: JSON, top: JSON) -> JSON:
    rest = [
        {"token": name, "logprob": number, "bytes": None}
        for name, number in (top.items() if isinstance(top, dict) else ())
    ]
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": rest}


def choice_index(choice: dict[str, JSON], position: int) -> int:
    """Return the index of a choice, or its position if it has no valid index."""
    index = choice.get("index")
    return index if type(index) is int and 0 <= index < MAX_CHOICES else position


def parse_logprobs(logprobs: JSON) -> JSON:
    """Return the log probabilities in OpenAI's shape, entry by entry; None for another shape."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not all(map(_is_logprob, content)):
        return None
    tops = (entry.get("top_logprobs") or [] for entry in content)
    return logprobs if all(isinstance(top, list) and all(map(_is_logprob, top)) for top in tops) else None


def _is_logprob(entry: JSON) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("token"), str)
        and storable.is_finite_number(entry.get("logprob"))
        and isinstance(entry.get("bytes"), list | None)
    )


def parse_text(content: JSON) -> str:
    """Return the text of a content: a string, or (vision models) a list of `{"text": ...}` parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _parse_call(entry: dict[str, JSON], function: JSON, choice: int) -> RawToolCallDelta:
    if not isinstance(function, dict):
        function = {}
    index, id_, name = entry.get("index"), entry.get("id"), function.get("name")
    return RawToolCallDelta(
        index if type(index) is int and abs(index) <= storable.MAX_COUNT else None,
        id_ if isinstance(id_, str) else None,
        name if isinstance(name, str) else None,
        function.get("arguments"),
        choice,
    )


def _parse_details(counts: dict[str, JSON], *names: str) -> dict[str, JSON]:
    """Return the first object of these, with counts for its numbers."""
    found = (counts.get(name) for name in names)
    details = next((value for value in found if value and isinstance(value, dict)), {})
    return {name: _detail(name, value) for name, value in details.items()}


def _detail(name: str, value: JSON) -> JSON:
    """Return a detail of usage: a count if it is a number or named as one, otherwise the value itself."""
    counts = name.endswith("_tokens") or (isinstance(value, int | float) and not isinstance(value, bool))
    return storable.parse_count(value) if counts and value is not None else value


def parse_usage(counts: dict[str, JSON]) -> Usage:
    """Return usage from OpenAI's or Qwen's names; null is 0; a missing total is the sum."""
    prompt = storable.parse_count(counts.get("prompt_tokens")) or storable.parse_count(
        counts.get("input_tokens")
    )
    completion = storable.parse_count(counts.get("completion_tokens")) or storable.parse_count(
        counts.get("output_tokens")
    )
    prompt_details = _parse_details(counts, "prompt_tokens_details", "input_tokens_details")
    if "cached_tokens" not in prompt_details and storable.parse_count(counts.get("cached_tokens")):
        prompt_details["cached_tokens"] = storable.parse_count(counts["cached_tokens"])
    completion_details = _parse_details(counts, "completion_tokens_details", "output_tokens_details")
    return Usage(
        prompt,
        completion,
        storable.parse_count(counts.get("total_tokens")) or prompt + completion,
        prompt_details,
        completion_details,
        _unknown_fields(counts, _USAGE_FIELDS),
    )


def index_calls(events: Iterable[Event]) -> None:
    """Return the calls of a whole message, where each entry is a call of its own, whatever its index."""
    counts: dict[int, int] = {}
    for event in events:
        if isinstance(event, RawToolCallDelta):
            event.index = counts.get(event.choice, 0)
            counts[event.choice] = event.index + 1
