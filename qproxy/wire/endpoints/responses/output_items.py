"""The kinds of output items: reasoning, a message, a call, a call of a tool of this server, a compaction.

`add` and `close` return pairs of an event's type (`response.output_text.delta`) and its fields; `item` is the
current item. A `done` event contains the sum of the deltas before it.

OpenAPI `OutputItem`, and the events between `ResponseOutputItemAddedEvent` and its `StreamDone`.
"""

from __future__ import annotations

from typing import Any

from qproxy.wire.endpoints.responses.input_items import encode_reasoning
from qproxy.wire.endpoints.responses.item_event import ItemEvent
from qproxy.wire.endpoints.responses.objects import SERVER_TOOLS
from qproxy.wire.endpoints.search_sources import url_citations
from qproxy.wire.events import (
    JSON,
    CompactionDelta,
    CompactionDone,
    EncryptedReasoning,
    Event,
    ReasoningDelta,
    RefusalDelta,
    ServerToolCall,
    ServerToolResult,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
)
from qproxy.wire.search_results import SearchResult
from qproxy.wire.tool_calls.json_state import JSONState


class ReasoningItem:
    """A reasoning item: the summary is the reasoning itself, or the model's own summary beside its
    ciphertext."""

    def __init__(self, id: str, index: int, sealed: bool) -> None:
        self._index = {"item_id": id, "output_index": index, "summary_index": 0}
        self._encrypted = sealed
        self._pieces: list[str] = []
        self._ciphertext: list[str] = []

    def accepts(self, event: Event) -> bool:
        return isinstance(event, ReasoningDelta | EncryptedReasoning)

    def add_complete(self) -> bool:
        return True

    def add(self, event: Any) -> list[ItemEvent]:
        if isinstance(event, EncryptedReasoning):
            self._ciphertext.append(event.text)
            return []
        first = [] if self._pieces else [self._part("added", "")]
        self._pieces.append(event.text)
        return [*first, ("response.reasoning_summary_text.delta", {**self._index, "delta": event.text})]

    def close(self) -> list[ItemEvent]:
        if not self._pieces:
            return []
        text = "".join(self._pieces)
        return [
            ("response.reasoning_summary_text.done", {**self._index, "text": text}),
            self._part("done", text),
        ]

    def _part(self, what: str, text: str) -> ItemEvent:
        part = {"type": "summary_text", "text": text}
        return f"response.reasoning_summary_part.{what}", {**self._index, "part": part}

    def item(self, status: str) -> JSON:
        text = "".join(self._pieces)
        summary = [{"type": "summary_text", "text": text}] if self._pieces else []
        item = {"id": self._index["item_id"], "type": "reasoning", "summary": summary, "status": status}
        if self._ciphertext:
            item["encrypted_content"] = "".join(self._ciphertext)
        elif self._encrypted:
            item["encrypted_content"] = encode_reasoning(text)
        return item


class MessageItem:
    """A message item: parts of text and of refusal."""

    def __init__(self, id: str, index: int, logprobs: bool, results: list[SearchResult]) -> None:
        """`results` is the list of what a web search found, which may grow."""
        self._index = {"item_id": id, "output_index": index}
        self._logprobs = logprobs
        self._results = results
        self._parts: list[_ContentPart] = []

    def accepts(self, event: Event) -> bool:
        return isinstance(event, TextDelta | RefusalDelta)

    def add_complete(self) -> bool:
        return True

    def add(self, event: Any) -> list[ItemEvent]:
        kind = "refusal" if isinstance(event, RefusalDelta) else "output_text"
        out: list[ItemEvent] = []
        if not self._parts or self._parts[-1].kind != kind:
            out = self.close()
            at = {**self._index, "content_index": len(self._parts)}
            self._parts.append(_ContentPart(kind, at, self._results))
            out.append(self._parts[-1].item_event("added"))
        chances = _logprob_objects(event.logprobs) if self._logprobs and isinstance(event, TextDelta) else []
        return [*out, *self._parts[-1].add(event.text, chances)]

    def close(self) -> list[ItemEvent]:
        return self._parts[-1].close() if self._parts else []

    def item(self, status: str) -> JSON:
        content = [part.part() for part in self._parts]
        id_ = self._index["item_id"]
        return {"id": id_, "type": "message", "status": status, "role": "assistant", "content": content}


class _ContentPart:
    """One content part of a message."""

    def __init__(self, kind: str, at: dict[str, JSON], results: list[SearchResult]) -> None:
        self.kind = kind
        self._index = at
        self._results = results
        self._annotations: list[JSON] = []
        self._pieces: list[str] = []
        self._logprob_events: list[JSON] = []

    def add(self, text: str, chances: list[JSON]) -> list[ItemEvent]:
        if not text:
            return []
        self._pieces.append(text)
        self._logprob_events += chances
        return [(f"response.{self.kind}.delta", {**self._index, "delta": text, **self._logprobs(chances)})]

    def close(self) -> list[ItemEvent]:
        text = "".join(self._pieces)
        message = {"refusal" if self.kind == "refusal" else "text": text}
        done = {**self._index, **message, **self._logprobs(self._logprob_events)}
        if self.kind == "output_text":
            self._annotations = url_citations(text, self._results)
        added = [
            (
                "response.output_text.annotation.added",
                {**self._index, "annotation_index": n, "annotation": one},
            )
            for n, one in enumerate(self._annotations)
        ]
        return [*added, (f"response.{self.kind}.done", done), self.item_event("done")]

    def _logprobs(self, chances: list[JSON]) -> dict[str, JSON]:
        return {} if self.kind == "refusal" else {"logprobs": [_without_top(chance) for chance in chances]}

    def item_event(self, what: str) -> ItemEvent:
        return f"response.content_part.{what}", {**self._index, "part": self.part()}

    def part(self) -> JSON:
        text = "".join(self._pieces)
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": self._annotations,
            "logprobs": list(self._logprob_events),
        }


def _logprob_objects(logprobs: JSON) -> list[JSON]:
    """Return chat's log probabilities of a delta, each with the keys that a response requires."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [
        {
            **_logprob_object(entry),
            "top_logprobs": [_logprob_object(top) for top in entry.get("top_logprobs") or ()],
        }
        for entry in content or ()
    ]


def _without_top(chance: JSON) -> JSON:
    """Return a log probability as the events of a text have it: without bytes."""
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in chance["top_logprobs"]]
    return {"token": chance["token"], "logprob": chance["logprob"], "top_logprobs": top}


def _logprob_object(entry: JSON) -> dict[str, JSON]:
    token = entry.get("token", "")
    spelt = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob", 0.0),
        "bytes": list(token.encode("utf-8", "surrogatepass")) if spelt is None else spelt,
    }


class FunctionCallItem:
    """A call of a function, or of a custom tool with its free-form input."""

    def __init__(
        self, id: str, index: int, kind: str, call: ToolCallStart, group: tuple[str, str] | None = None
    ) -> None:
        self._index = {"item_id": id, "output_index": index}
        self._kind = kind
        self._call = call
        self._name = {"name": call.name} if group is None else {"namespace": group[0], "name": group[1]}
        self._key = "input" if call.custom else "arguments"
        self._pieces: list[str] = []
        self._json: JSONState | None = None

    def accepts(self, event: Event) -> bool:
        return isinstance(event, ToolCallArgumentsDelta) and event.index == self._call.index

    def add_complete(self) -> bool:
        """Return whether the arguments are complete; for a free-form input that is unknown before the end."""
        if self._call.custom:
            return False
        if self._json is None:  # only a call that other events wait for is scanned while it streams
            self._json = JSONState()
            self._json.feed("".join(self._pieces))
        return self._json.is_complete

    def add(self, event: Any) -> list[ItemEvent]:
        if not isinstance(event, ToolCallArgumentsDelta) or not event.text:
            return []
        self._pieces.append(event.text)
        if self._json is not None:
            self._json.feed(event.text)
        return [(f"response.{self._kind}_{self._key}.delta", {**self._index, "delta": event.text})]

    def close(self) -> list[ItemEvent]:
        done = {**self._index, self._key: "".join(self._pieces)}
        if not self._call.custom:  # OpenAI's schema requires it, its SDK ignores it
            done["name"] = self._name["name"]
        return [(f"response.{self._kind}_{self._key}.done", done)]

    def item(self, status: str) -> JSON:
        message = {
            "call_id": self._call.id,
            **self._name,
            self._key: "" if status == "in_progress" else "".join(self._pieces),
        }
        item = {"id": self._index["item_id"], "type": self._kind, **message}
        return item if self._call.custom else {**item, "status": status}


class McpCallItem:
    """A call of a tool of this server: open until its result is there."""

    def __init__(self, id: str, index: int, call: ServerToolCall) -> None:
        self._index = {"item_id": id, "output_index": index}
        self._call = call
        self._result: ServerToolResult | None = None

    def accepts(self, event: Event) -> bool:
        return isinstance(event, ServerToolResult) and event.id == self._call.id

    def add_complete(self) -> bool:
        return self._result is not None

    def add(self, event: Any) -> list[ItemEvent]:
        if isinstance(event, ServerToolResult):
            self._result = event
            return [(f"response.mcp_call.{'completed' if event.ok else 'failed'}", dict(self._index))]
        arguments = self._call.arguments
        return [
            ("response.mcp_call.in_progress", dict(self._index)),
            ("response.mcp_call_arguments.delta", {**self._index, "delta": arguments}),
            ("response.mcp_call_arguments.done", {**self._index, "arguments": arguments}),
        ]

    def close(self) -> list[ItemEvent]:
        return []

    def item(self, status: str) -> JSON:
        result = self._result
        failed = result is not None and not result.ok
        content = [{"type": "text", "text": result.output}] if result is not None else []
        return {
            "id": self._index["item_id"],
            "type": "mcp_call",
            "status": "failed" if failed else status,
            "server_label": self._call.server or SERVER_TOOLS,
            "name": self._call.tool or self._call.name,
            "arguments": "" if status == "in_progress" else self._call.arguments,
            "output": result.output if result is not None and result.ok else None,
            "error": {"type": "mcp_tool_execution_error", "content": content} if failed else None,
            "approval_request_id": self._call.approval,
        }


class CompactionItem:
    """A summary that replaces the conversation: open until it is complete."""

    def __init__(self, id: str, index: int) -> None:
        self._index = {"item_id": id, "output_index": index}
        self._sealed: str | None = None

    def accepts(self, event: Event) -> bool:
        return isinstance(event, CompactionDelta | CompactionDone)

    def add_complete(self) -> bool:
        return self._sealed is not None

    def add(self, event: Any) -> list[ItemEvent]:
        if isinstance(event, CompactionDone):
            self._sealed = event.sealed
            return []
        return [("response.compaction.compacting", dict(self._index))]

    def close(self) -> list[ItemEvent]:
        return []

    def item(self, status: str) -> JSON:
        return {"id": self._index["item_id"], "type": "compaction", "encrypted_content": self._sealed or ""}
