"""The one vocabulary: what a client requests (`Turn`) and what a model responds (events).

Every endpoint decodes into a `Turn`, every upstream decodes into events, every endpoint encodes events: N + M
modules, never N x M.

Messages and tools have the shape of OpenAI's chat JSON (plain dicts and lists), because Qwen's servers use
it: wrapping each message in a class would copy every prompt twice and add nothing. Code that changes a
message creates a new one; a `Turn` is never edited in place.

Events are plain slotted records, not frozen ones: one is made for every chunk of every stream, and a frozen
dataclass costs three times as much to make. Treat them as immutable anyway.

`RawToolCallDelta` is whatever an upstream sent. Only `tool_calls` may see it; what leaves `tool_calls` obeys
the contract in `qproxy.wire` and uses `ToolCallStart` and `ToolCallArgumentsDelta`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from qproxy.wire.errors import QproxyError
from qproxy.wire.server_tools import ApprovedCall, ServerToolRequest, WebSearchRequest
from qproxy.wire.token_ratios import TokenEstimate

JSON: TypeAlias = Any
"""Any value that `json.loads` can return."""


@dataclass(frozen=True, slots=True)
class CompletionPrompt:
    """The text to continue of a turn that is not a conversation (`/v1/completions`)."""

    prompts: tuple[str, ...]
    """The prompts, each by itself; also a turn's messages, one for each."""
    echo: tuple[str, ...] = ()
    """Text that the responses repeat in front (`echo`); empty if they do not."""
    choices: int = 1
    """Number of responses to each prompt that the client gets; `params["n"]` are generated."""
    logprobs: bool = False
    """Whether the client wants log probabilities."""


@dataclass(frozen=True, slots=True)
class ContextPolicy:
    """The treatment of a conversation that is too long for the model, as the client permits or wants it."""

    only_summary: bool = False
    """Whether the response is a summary that replaces the conversation, and nothing else."""
    compacts: bool = False
    """Whether a response may begin with such a summary: above the threshold, or where the prompt does not
    fit."""
    threshold: int | None = None
    """Tokens of a prompt above which it is summarized; None is a share of the model's context."""
    truncates: bool = False
    """Whether the oldest messages may be dropped where the prompt does not fit."""
    is_stored: bool = False
    """Whether the conversation is stored here, so that the client cannot shorten it."""
    settings: tuple[JSON, ...] = ()
    """The endpoint's items that are no messages and stay in effect after a summary."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request for one response of a model, independent of any endpoint.

    `id` and `created` (Unix seconds) are set by the server when the request arrives, so that everything below
    is a pure function of the turn and the upstream's bytes.
    """

    id: str
    created: int
    model: str
    """The model as the client wrote it; responses echo it."""
    messages: Sequence[JSON]
    tools: Sequence[JSON] = ()
    """OpenAI's nested tools: `{"type": "function", "function": {...}}` or `{"type": "custom", "custom":
    {...}}`.
    """
    tool_choice: JSON = None
    """None (unset), "none", "auto", "required", or `{"type": "function", "function": {"name": ...}}`."""
    params: Mapping[str, JSON] = field(default_factory=dict)
    """Every other field, under OpenAI's or Qwen's name, including zero values."""
    stream: bool = False
    include_usage: bool = False
    store: bool = True
    """Whether parts of the response may be kept for the next turn."""
    summarize_reasoning: bool = False
    """Whether the client wants a summary of the reasoning, and its ciphertext, where a model has them."""
    preserve_reasoning: bool = False
    """Whether the client's API keeps the reasoning of earlier responses in the prompt."""
    legacy_functions: bool = False
    """Whether the client used the deprecated `functions`/`function_call` and expects it back."""
    server_tools: tuple[ServerToolRequest, ...] = ()
    """The server tools that the client requests."""
    approved_calls: tuple[ApprovedCall, ...] = ()
    """Calls to run before the model continues."""
    listed_servers: frozenset[str] = frozenset()
    """The MCP servers whose tools the client knows from the conversation."""
    web_search: WebSearchRequest | None = None
    """The web search that the client requests."""
    prior_text: str = ""
    """Text of earlier rounds of the same response, with which the client's message begins."""
    separates_rounds: bool = False
    """Whether the client gets the reasoning of each round of server tools apart."""
    include_tool_reports: bool = False
    """Whether the client wants reports of server tools (`"qproxy": {"include": ["tools"]}`)."""
    completion: CompletionPrompt | None = None
    """The text to continue, if the client wants no message."""
    max_tool_calls: int | None = None
    """Maximum calls of this server's tools in the response; None is no limit of the client's."""
    context: ContextPolicy | None = None
    """What may be done about a conversation that is too long; None is nothing."""
    raw_fields: Any = field(default=None, repr=False, compare=False)
    """The text of the client's fields (`raw_json.RawFields`), if known."""
    tools_bytes: int | None = None
    """The length of the tools' text in the client's body, where it is known."""
    token_estimate: TokenEstimate = TokenEstimate()
    """The estimate of the prompt's tokens, for responses whose server reports none."""
    ignored: tuple[str, ...] = ()
    """Request fields (dotted paths) that are not forwarded, for `x-qproxy-ignored-params`."""
    session: str = ""
    """The client's own id of the conversation; "" if it sends none."""
    request_id: str = ""
    """The id of the client's request, for an API whose mid-stream errors name it."""
    endpoint_state: object = None
    """State of the request's endpoint for its response; no other code reads it."""

    @property
    def tools_enabled(self) -> bool:
        """Return whether written calls are parsed (policy P1: tools declared and not forbidden)."""
        return bool(self.tools) and self.tool_choice != "none"

    def without_prompt(self) -> Turn:
        """Return the turn without its prompt, which may be megabytes, for the duration of the response."""
        return replace(self, messages=(), raw_fields=None)

    def tool_names(self) -> list[str]:
        """Return the names of the declared functions, in the client's order."""
        return [tool["function"]["name"] for tool in self.tools if tool.get("type") == "function"]

    def call_id(self, choice: int, number: int | str) -> str:
        """Return an id for a call without one: `call_` and 24 hex digits, the same on every replay."""
        digest = hashlib.sha256(f"{self.id}/{choice}/{number}".encode()).hexdigest()
        return f"call_{digest[:24]}"


@dataclass(slots=True)
class TextDelta:
    """A delta of the visible response."""

    text: str
    choice: int = 0
    logprobs: JSON = None


@dataclass(slots=True)
class ReasoningDelta:
    """A delta of the model's reasoning."""

    text: str
    choice: int = 0
    inline: bool = False
    """Whether the server had left it in the text."""


@dataclass(slots=True)
class EncryptedReasoning:
    """A piece of the ciphertext of the model's reasoning, which must come back unchanged on its message."""

    text: str
    choice: int = 0


@dataclass(slots=True)
class RefusalDelta:
    """A delta of OpenAI's `refusal` text."""

    text: str
    choice: int = 0


@dataclass(slots=True)
class RawToolCallDelta:
    """One `tool_calls` entry exactly as an upstream sent it; None if a key was absent or null."""

    index: int | None = None
    id: str | None = None
    name: str | None = None
    arguments: JSON = None
    choice: int = 0
    from_text: bool = False
    """Whether it was read from a call written as text: `id` is qproxy's, and the deltas are exact."""
    in_reasoning: bool = False
    """Whether that text was reasoning, where a model may write a call that it then makes."""


@dataclass(slots=True)
class ToolCallStart:
    """The start of a call; `index` is dense from 0 per choice, `id` is unique in the response."""

    index: int
    id: str
    name: str
    choice: int = 0
    custom: bool = False
    """Whether it is OpenAI's `custom` tool: its free-form input follows, not JSON."""


@dataclass(slots=True)
class ToolCallArgumentsDelta:
    """A delta of the JSON text of call `index`'s arguments (of a custom call's input)."""

    index: int
    text: str
    choice: int = 0


@dataclass(slots=True)
class ServerToolCall:
    """The start of a server tool that the model called.

    A chat client does not see it; in the Responses API it is an `mcp_call` item. Text and reasoning of the
    next round follow after the results.
    """

    id: str
    """Unique in the response."""
    name: str
    """The name that the model uses: `server__tool` for an MCP server's."""
    arguments: str
    """JSON text, as the model wrote it."""
    server: str | None = None
    """The MCP server's label."""
    tool: str = ""
    """The MCP server's own name for it; otherwise `name`."""
    searches: bool = False
    """Whether it is the web search that the client requested."""
    approval: str | None = None
    """The id of the request for its approval, if it needed one."""


@dataclass(slots=True)
class ServerToolResult:
    """The result of a `ServerToolCall`; every call has one, unless the response fails or the client
    disconnects.
    """

    id: str
    name: str
    output: str
    """The text for the model: the result, or the error."""
    ok: bool
    seconds: float


@dataclass(slots=True)
class ServerToolList:
    """The tools of an MCP server that the client requested."""

    server: str
    """Its label."""
    tools: Sequence[JSON]
    """Each with `name`, `description` and `input_schema`."""


@dataclass(slots=True)
class ApprovalRequest:
    """A call of a server tool that runs only if the client approves it; the response ends with it."""

    id: str
    name: str
    arguments: str
    server: str
    tool: str
    """The MCP server's own name for it."""


@dataclass(slots=True)
class SearchInfo:
    """The web search results behind the response; a later event replaces an earlier one."""

    info: dict[str, JSON]
    """The upstream's JSON: DashScope's `{"search_results": [{"index", "title", "url", ...}]}`."""


@dataclass(slots=True)
class CompactionDelta:
    """A delta of a summary that will replace the conversation; its text comes sealed, when it is complete."""

    choice: int = 0


@dataclass(slots=True)
class CompactionDone:
    """The complete summary."""

    sealed: str
    choice: int = 0


@dataclass(slots=True)
class ExtraFields:
    """Fields of a response that no stage consumes; a chat client gets them unchanged."""

    fields: dict[str, JSON]
    level: Literal["delta", "choice", "chunk"]
    """The object that they belong to: a delta (or message), a choice, or the chunk (or body)."""
    choice: int = 0


@dataclass(slots=True)
class Usage:
    """Token counts of the whole response so far; a later one replaces an earlier one."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_details: dict[str, JSON] = field(default_factory=dict)
    completion_details: dict[str, JSON] = field(default_factory=dict)
    extra: dict[str, JSON] = field(default_factory=dict)
    """The upstream's further fields."""

    @property
    def cached_tokens(self) -> int:
        """Return the prompt tokens that the server had in its cache."""
        return _count(self.prompt_details.get("cached_tokens"))

    @property
    def cache_writes(self) -> tuple[int, int]:
        """Tokens of the prompt that were written to the server's cache: for five minutes, and for an hour."""
        details = self.prompt_details
        kinds = details.get("cache_creation")
        hour = _count(kinds.get("ephemeral_1h_input_tokens")) if isinstance(kinds, dict) else 0
        total = _count(details.get("cache_creation_input_tokens")) or _count(
            details.get("cache_write_tokens")
        )
        return max(0, total - hour), hour

    @property
    def reasoning_tokens(self) -> int:
        """Return the response tokens that were reasoning."""
        return _count(self.completion_details.get("reasoning_tokens"))


def _count(value: JSON) -> int:
    return value if type(value) is int and value > 0 else 0


@dataclass(slots=True)
class ChoiceFinished:
    """The end of a choice; any string from an upstream, one of OpenAI's four after `tool_calls`."""

    reason: str
    choice: int = 0
    matched: str | None = None
    """The stop sequence that ended it, where the server names it."""


@dataclass(slots=True)
class StreamDone:
    """The upstream reported that its stream is complete (`data: [DONE]`, or the end of a whole body)."""

    started: tuple[int, ...] = ()
    """Choices that the stream started, where it started several: one of them may have sent nothing."""
    implied: bool = False
    """Whether the end of the bytes stands for it, as natively: then no requested choice may be missing."""


@dataclass(slots=True)
class StreamFailed:
    """The response failed; nothing follows."""

    error: QproxyError


Event: TypeAlias = (
    TextDelta
    | ReasoningDelta
    | EncryptedReasoning
    | RefusalDelta
    | RawToolCallDelta
    | ToolCallStart
    | ToolCallArgumentsDelta
    | ServerToolCall
    | ServerToolResult
    | ServerToolList
    | ApprovalRequest
    | SearchInfo
    | CompactionDelta
    | CompactionDone
    | ExtraFields
    | Usage
    | ChoiceFinished
    | StreamDone
    | StreamFailed
)
