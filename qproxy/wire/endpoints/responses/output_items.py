"""The kinds of output items, each while it grows: a thought, a message, a call, a call of a tool of this server.

`add` and `close` give happenings, pairs of an event's type (`response.output_text.delta`) and its fields; `item` is
the item as it looks now.  What a `done` event says is what the deltas before it added up to.

OpenAPI `OutputItem`, and the events between `ResponseOutputItemAddedEvent` and its `Done`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from qproxy.wire.endpoints.responses.input_items import sealed
from qproxy.wire.endpoints.responses.objects import OWN_TOOLS
from qproxy.wire.events import (
    JSON,
    Arguments,
    Event,
    Reasoning,
    Refusal,
    ServerCall,
    ServerResult,
    Text,
    ToolCall,
)
from qproxy.wire.tool_calls.json_state import JSONState

Happening: TypeAlias = tuple[str, dict[str, JSON]]


class Thought:
    """A reasoning item, whose summary is the thought itself: Qwen hides none."""

    def __init__(self, id: str, index: int, sealed: bool) -> None:
        self._at = {"item_id": id, "output_index": index, "summary_index": 0}
        self._sealed = sealed
        self._pieces: list[str] = []

    def takes(self, event: Event) -> bool:
        return isinstance(event, Reasoning)

    def whole(self) -> bool:
        return True

    def add(self, event: Any) -> list[Happening]:
        first = [] if self._pieces else [self._part("added", "")]
        self._pieces.append(event.text)
        return [*first, ("response.reasoning_summary_text.delta", {**self._at, "delta": event.text})]

    def close(self) -> list[Happening]:
        text = "".join(self._pieces)
        return [
            ("response.reasoning_summary_text.done", {**self._at, "text": text}),
            self._part("done", text),
        ]

    def _part(self, what: str, text: str) -> Happening:
        part = {"type": "summary_text", "text": text}
        return f"response.reasoning_summary_part.{what}", {**self._at, "part": part}

    def item(self, status: str) -> JSON:
        text = "".join(self._pieces)
        summary = [{"type": "summary_text", "text": text}] if self._pieces else []
        item = {"id": self._at["item_id"], "type": "reasoning", "summary": summary, "status": status}
        return {**item, "encrypted_content": sealed(text)} if self._sealed else item


class Message:
    """A message item: parts of text and, where the model says no, of refusal."""

    def __init__(self, id: str, index: int, logprobs: bool) -> None:
        self._at = {"item_id": id, "output_index": index}
        self._logprobs = logprobs
        self._parts: list[_Part] = []

    def takes(self, event: Event) -> bool:
        return isinstance(event, Text | Refusal)

    def whole(self) -> bool:
        return True

    def add(self, event: Any) -> list[Happening]:
        kind = "refusal" if isinstance(event, Refusal) else "output_text"
        out: list[Happening] = []
        if not self._parts or self._parts[-1].kind != kind:
            out = self.close()
            self._parts.append(_Part(kind, {**self._at, "content_index": len(self._parts)}))
            out.append(self._parts[-1].happening("added"))
        chances = _chances(event.logprobs) if self._logprobs and isinstance(event, Text) else []
        return [*out, *self._parts[-1].add(event.text, chances)]

    def close(self) -> list[Happening]:
        return self._parts[-1].close() if self._parts else []

    def item(self, status: str) -> JSON:
        content = [part.part() for part in self._parts]
        id_ = self._at["item_id"]
        return {"id": id_, "type": "message", "status": status, "role": "assistant", "content": content}


class _Part:
    """One content part of a message."""

    def __init__(self, kind: str, at: dict[str, JSON]) -> None:
        self.kind = kind
        self._at = at
        self._pieces: list[str] = []
        self._chances: list[JSON] = []

    def add(self, text: str, chances: list[JSON]) -> list[Happening]:
        if not text:
            return []
        self._pieces.append(text)
        self._chances += chances
        return [(f"response.{self.kind}.delta", {**self._at, "delta": text, **self._logprobs(chances)})]

    def close(self) -> list[Happening]:
        said = {"refusal" if self.kind == "refusal" else "text": "".join(self._pieces)}
        done = {**self._at, **said, **self._logprobs(self._chances)}
        return [(f"response.{self.kind}.done", done), self.happening("done")]

    def _logprobs(self, chances: list[JSON]) -> dict[str, JSON]:
        return {} if self.kind == "refusal" else {"logprobs": [_brief(chance) for chance in chances]}

    def happening(self, what: str) -> Happening:
        return f"response.content_part.{what}", {**self._at, "part": self.part()}

    def part(self) -> JSON:
        text = "".join(self._pieces)
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._chances)}


def _chances(logprobs: JSON) -> list[JSON]:
    """Chat's log probabilities of a piece of text, each with the keys that a response demands."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [
        {**_chance(entry), "top_logprobs": [_chance(top) for top in entry.get("top_logprobs") or ()]}
        for entry in content or ()
    ]


def _brief(chance: JSON) -> JSON:
    """As the events of a text tell it: without bytes."""
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in chance["top_logprobs"]]
    return {"token": chance["token"], "logprob": chance["logprob"], "top_logprobs": top}


def _chance(entry: JSON) -> dict[str, JSON]:
    token = entry.get("token", "")
    spelt = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob", 0.0),
        "bytes": list(token.encode("utf-8", "surrogatepass")) if spelt is None else spelt,
    }


class Call:
    """A call of a function, or of a custom tool with its free-form input."""

    def __init__(
        self, id: str, index: int, kind: str, call: ToolCall, group: tuple[str, str] | None = None
    ) -> None:
        self._at = {"item_id": id, "output_index": index}
        self._kind = kind
        self._call = call
        self._name = {"name": call.name} if group is None else {"namespace": group[0], "name": group[1]}
        self._key = "input" if call.custom else "arguments"
        self._pieces: list[str] = []
        self._json: JSONState | None = None

    def takes(self, event: Event) -> bool:
        return isinstance(event, Arguments) and event.index == self._call.index

    def whole(self) -> bool:
        """Whether nothing more can come; of a free-form input nobody knows before the end."""
        if self._call.custom:
            return False
        if self._json is None:  # only a call that something waits for is read as it comes
            self._json = JSONState()
            self._json.feed("".join(self._pieces))
        return self._json.complete

    def add(self, event: Any) -> list[Happening]:
        if not isinstance(event, Arguments) or not event.text:
            return []
        self._pieces.append(event.text)
        if self._json is not None:
            self._json.feed(event.text)
        return [(f"response.{self._kind}_{self._key}.delta", {**self._at, "delta": event.text})]

    def close(self) -> list[Happening]:
        done = {**self._at, self._key: "".join(self._pieces)}
        return [(f"response.{self._kind}_{self._key}.done", done)]

    def item(self, status: str) -> JSON:
        said = {
            "call_id": self._call.id,
            **self._name,
            self._key: "" if status == "in_progress" else "".join(self._pieces),
        }
        item = {"id": self._at["item_id"], "type": self._kind, **said}
        return item if self._call.custom else {**item, "status": status}


class OwnCall:
    """A tool that this server runs: open until its result is there."""

    def __init__(self, id: str, index: int, call: ServerCall) -> None:
        self._at = {"item_id": id, "output_index": index}
        self._call = call
        self._result: ServerResult | None = None

    def takes(self, event: Event) -> bool:
        return isinstance(event, ServerResult) and event.id == self._call.id

    def whole(self) -> bool:
        return self._result is not None

    def add(self, event: Any) -> list[Happening]:
        if isinstance(event, ServerResult):
            self._result = event
            return [(f"response.mcp_call.{'completed' if event.ok else 'failed'}", dict(self._at))]
        arguments = self._call.arguments
        return [
            ("response.mcp_call.in_progress", dict(self._at)),
            ("response.mcp_call_arguments.delta", {**self._at, "delta": arguments}),
            ("response.mcp_call_arguments.done", {**self._at, "arguments": arguments}),
        ]

    def close(self) -> list[Happening]:
        return []

    def item(self, status: str) -> JSON:
        result = self._result
        failed = result is not None and not result.ok
        content = [{"type": "text", "text": result.output}] if result is not None else []
        return {
            "id": self._at["item_id"],
            "type": "mcp_call",
            "status": "failed" if failed else status,
            "server_label": self._call.server or OWN_TOOLS,
            "name": self._call.tool or self._call.name,
            "arguments": "" if status == "in_progress" else self._call.arguments,
            "output": result.output if result is not None and result.ok else None,
            "error": {"type": "mcp_tool_execution_error", "content": content} if failed else None,
            "approval_request_id": None,
        }
