"""The one vocabulary: what a client asks (`Turn`) and what a model answers (events).

Every endpoint decodes into a `Turn`, every upstream decodes into events, every endpoint encodes
events: N + M modules, never N x M.

The neutral shape of messages and tools is OpenAI's chat JSON (plain dicts and lists), because that
is what Qwen's servers speak: wrapping each message in a class of ours would copy every prompt twice
and know nothing more.  Whoever changes a message makes a new one; a `Turn` is never edited in place.

Events are plain slotted records, not frozen ones: one is made for every chunk of every stream, and
a frozen dataclass costs three times as much to make.  Treat them as immutable all the same.

`RawToolCallDelta` is what an upstream sent, whatever it was.  Only `tool_calls` may see it; what leaves
`tool_calls` obeys the contract written down in `qproxy.wire` and uses `ToolCallStart` and `ToolCallArgumentsDelta`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from qproxy.wire.errors import QproxyError

JSON: TypeAlias = Any
"""Whatever `json.loads` can return."""


@dataclass(frozen=True, slots=True)
class ServerToolRequest:
    """A client's request for a tool that this server runs: `{"type": "qproxy"}` or `{"type": "mcp"}` in `tools`."""

    path: str
    """Where it stands in the request (`tools[2]`), for errors."""
    name: str | None = None
    """One tool, by its name."""
    server: str | None = None
    """The tools of one MCP server, by its label."""
    allowed: frozenset[str] | None = None
    """Of a server's tools only these, by the names that the server gives them."""


@dataclass(frozen=True, slots=True)
class CompletionPrompt:
    """A turn that is no conversation: text to go on from, as `/v1/completions` asks for it."""

    prompts: tuple[str, ...]
    """What the model is given, each by itself; also a turn's messages, one for each."""
    echo: tuple[str, ...] = ()
    """What the answers repeat in front (`echo`); none when they do not."""
    choices: int = 1
    """How many answers to each prompt the client gets; `params["n"]` are made."""
    logprobs: bool = False
    """Whether the client wants to see probabilities."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request for one answer of a model, free of any endpoint's spelling.

    `id` and `created` (Unix seconds) are made by the server when the request arrives, so that
    everything below is a pure function of the turn and the upstream's bytes.
    """

    id: str
    created: int
    model: str
    """The model as the client wrote it: what answers echo."""
    messages: Sequence[JSON]
    tools: Sequence[JSON] = ()
    """OpenAI's nested tools: `{"type": "function", "function": {...}}` or `{"type": "custom", "custom": {...}}`."""
    tool_choice: JSON = None
    """None (not said), "none", "auto", "required", or `{"type": "function", "function": {"name": ...}}`."""
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Every other field, by OpenAI's or Qwen's name, zero values included."""
    stream: bool = False
    include_usage: bool = False
    legacy_functions: bool = False
    """The client spoke the deprecated `functions`/`function_call` and expects it back."""
    server_tools: tuple[ServerToolRequest, ...] = ()
    """The tools of this server that the client asks for."""
    include_tool_reports: bool = False
    """The client wants to see which tools of this server ran (`"qproxy": {"include": ["tools"]}`)."""
    completion: CompletionPrompt | None = None
    """The client wants text continued rather than a message answered."""
    raw_fields: Any = field(default=None, repr=False, compare=False)
    """How the client wrote its fields (`raw_json.RawFields`), where that is known."""
    ignored: tuple[str, ...] = ()
    """Request fields (dotted paths) that are not passed on, for `x-qproxy-ignored-params`."""
    request_id: str = ""
    """The id of the client's request, for an API whose errors name it in mid-stream."""
    endpoint_state: object = None
    """What else its endpoint wants to know of the request when it answers; nobody else looks at it."""

    @property
    def tools_enabled(self) -> bool:
        """Whether calls written as text are to be looked for (policy P1: tools offered and not forbidden)."""
        return bool(self.tools) and self.tool_choice != "none"

    def without_prompt(self) -> Turn:
        """For whom only the answer concerns: a prompt may be megabytes, and an answer may take minutes."""
        return replace(self, messages=(), raw_fields=None)

    def tool_names(self) -> list[str]:
        """The names of the declared functions, in the client's order."""
        return [tool["function"]["name"] for tool in self.tools if tool.get("type") == "function"]

    def call_id(self, choice: int, number: int | str) -> str:
        """An id for a call whose upstream sent none: `call_` and 24 hex digits, the same on every replay."""
        digest = hashlib.sha256(f"{self.id}/{choice}/{number}".encode()).hexdigest()
        return f"call_{digest[:24]}"


@dataclass(slots=True)
class TextDelta:
    """A piece of the visible answer."""

    text: str
    choice: int = 0
    logprobs: JSON = None


@dataclass(slots=True)
class ReasoningDelta:
    """A piece of the model's thoughts."""

    text: str
    choice: int = 0
    inline: bool = False
    """The server had left it in the text."""


@dataclass(slots=True)
class RefusalDelta:
    """A piece of OpenAI's `refusal` text."""

    text: str
    choice: int = 0


@dataclass(slots=True)
class RawToolCallDelta:
    """One `tool_calls` entry exactly as an upstream sent it; None where a key was absent or null."""

    index: int | None = None
    id: str | None = None
    name: str | None = None
    arguments: JSON = None
    choice: int = 0
    from_text: bool = False
    """Read from a call that the model wrote as text: `id` is ours, and the pieces are exact."""


@dataclass(slots=True)
class ToolCallStart:
    """A call begins.  `index` is ours: dense from 0 per choice; `id` is unique in the answer."""

    index: int
    id: str
    name: str
    choice: int = 0
    custom: bool = False
    """OpenAI's `custom` tool: what follows is its free-form input, not JSON."""


@dataclass(slots=True)
class ToolCallArgumentsDelta:
    """A piece of the JSON text of call `index`'s arguments (of a custom call's input)."""

    index: int
    text: str
    choice: int = 0


@dataclass(slots=True)
class ServerToolCall:
    """The model called a tool that this server runs; it starts now.

    A chat client does not see it; in the Responses API it is an `mcp_call` item.  Text and reasoning of the next
    round follow after the results.
    """

    id: str
    """Unique in the answer."""
    name: str
    """As the model knows it: `server__tool` for an MCP server's."""
    arguments: str
    """JSON text, as the model wrote it."""
    server: str | None = None
    """The MCP server's label."""
    tool: str = ""
    """The name that the MCP server gives it; else `name`."""


@dataclass(slots=True)
class ServerToolResult:
    """What came of a `ServerToolCall`: every call has one, unless the answer fails or the client leaves first."""

    id: str
    name: str
    output: str
    """What the model reads: the result, or what went wrong."""
    ok: bool
    seconds: float


@dataclass(slots=True)
class SearchInfo:
    """What the model's server found on the web for the answer; a later one replaces an earlier one."""

    info: dict[str, JSON]
    """As it wrote it: DashScope's `{"search_results": [{"index", "title", "url", ...}]}`."""


@dataclass(slots=True)
class Usage:
    """Token counts of the whole answer so far; a later one replaces an earlier one."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_details: dict[str, JSON] = field(default_factory=dict)
    completion_details: dict[str, JSON] = field(default_factory=dict)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the server had in its cache."""
        return _count(self.prompt_details.get("cached_tokens"))

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the answer that were thoughts."""
        return _count(self.completion_details.get("reasoning_tokens"))


def _count(value: JSON) -> int:
    return value if type(value) is int and value > 0 else 0


@dataclass(slots=True)
class ChoiceFinished:
    """A choice ends.  From an upstream: any string; after `tool_calls`: stop, length, tool_calls, content_filter."""

    reason: str
    choice: int = 0


@dataclass(slots=True)
class StreamDone:
    """The upstream said that its stream is whole (`data: [DONE]`, or the end of a whole body)."""


@dataclass(slots=True)
class StreamFailed:
    """The answer failed; nothing follows."""

    error: QproxyError


Event: TypeAlias = (
    TextDelta
    | ReasoningDelta
    | RefusalDelta
    | RawToolCallDelta
    | ToolCallStart
    | ToolCallArgumentsDelta
    | ServerToolCall
    | ServerToolResult
    | SearchInfo
    | Usage
    | ChoiceFinished
    | StreamDone
    | StreamFailed
)
