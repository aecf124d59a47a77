"""One row of the catalog: what is known of a model, every cell of which may be unknown (None).

`ModelRow` is a row of a file: the package's own, or a `[[models]]` table of qproxy.toml, where a cell that is
left out keeps the value of the package. `ModelSpec` is what follows from all rows. Sizes are in tokens, dates
are ISO 8601.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

Support: TypeAlias = Literal["no", "nonthinking", "yes", "unknown"]


@dataclass(frozen=True)
class ModelRow:
    """A row of the data file, or of the operator's, about one model."""

    id: str
    like: str | None = None
    """Another model, whose cells are taken where this one's are not given."""
    listed: bool | None = None
    """Whether `GET /v1/models` names it although no server lists it."""

    # Who it is
    aliases: list[str] | None = None
    snapshots: list[str] | None = None
    """Dates of its dated names (`2026-05-20`, `0902`), which share its prices."""
    vendor: str | None = None
    line: str | None = None
    """Models of one line follow each other by version."""
    version: str | None = None
    online: str | None = None
    retires: str | None = None
    successor: str | None = None

    # What it is for
    tasks: list[str] | None = None
    """chat, completion, embedding, multimodal_embedding, rerank, speech, transcription, image, video,
    realtime, ..."""
    inputs: list[str] | None = None
    """text, image, video, audio, file."""
    outputs: list[str] | None = None
    voices: list[str] | None = None
    formats: list[str] | None = None
    """Of its sound or pictures, the default first."""

    # How much
    context: int | None = None
    """Input and output together."""
    input: int | None = None
    output: int | None = None
    output_thinking: int | None = None
    """The most output while it thinks, where that differs."""
    reasoning_cap: int | None = None
    """The most tokens of thought."""
    max_choices: int | None = None
    embedding_batch: int | None = None
    """The most texts in one request for embeddings."""
    dimensions: list[int] | None = None
    """Of its vectors, the default among them."""
    fusion: Literal["no", "object", "request"] | None = None
    """How it makes one vector of several parts: not at all, of one object's keys, or of a whole request."""
    transcription: Literal["chat", "recognition", "file", "files"] | None = None
    """Which service transcribes with it; all but "chat" give times."""
    diarizes: bool | None = None
    """It tells speakers apart."""
    file_model: str | None = None
    """Who transcribes what is beyond its limits."""
    limits: dict[str, int] | None = None
    """Further ones by name: characters, documents, images, seconds, megabytes, ..."""

    # Thinking
    thinking: Literal["none", "off", "on", "only"] | None = None
    """Whether it can think: never, on request, by default, always."""
    efforts: list[str] | None = None
    """Words of `reasoning_effort` that it takes as they are; an empty list where it does not read the
    field."""
    effort_map: dict[str, str] | None = None
    """What it calls other words for efforts."""
    effort_default: str | None = None
    effort_budgets: dict[str, int] | None = None
    """What efforts are in tokens, for a model that reads only `thinking_budget`."""
    effort_xor_budget: bool | None = None
    """It refuses `reasoning_effort` together with `thinking_budget`."""
    budget: bool | None = None
    """It reads `thinking_budget`."""
    preserve_thinking: Literal["no", "off", "on"] | None = None
    """Whether earlier thoughts can be part of the prompt, and are by default."""
    encrypted_thinking: bool | None = None
    """It gives summaries and ciphertext of its thoughts when asked by `thinking_display`."""
    max_tokens_counts: Literal["answer", "all"] | None = None
    """Whether `max_tokens` limits the answer alone or the thoughts with it."""
    max_completion_tokens: bool | None = None

    # JSON, tools, text
    json_object: bool | None = None
    json_schema: bool | None = None
    json_thinking: bool | None = None
    """JSON mode and thinking go together."""
    tools: bool | None = None
    parallel_tools: bool | None = None
    forced_tool: Support | None = None
    """Whether `tool_choice` can demand a call; "unknown" is sent as it was asked for."""
    tool_stream: bool | None = None
    """It has `tool_stream`, which streams the arguments of arrays and objects."""
    tool_format: Literal["hermes", "coder"] | None = None
    """How it spells calls when tools are part of the prompt."""
    bare_json: bool | None = None
    """It writes calls as bare JSON or in a JSON fence."""
    react: bool | None = None
    implied_think: bool | None = None
    cumulative: bool | None = None
    logprobs: bool | None = None
    prefix: Support | None = None
    """Whether it continues a `partial` assistant message."""
    stream_only: Literal["never", "thinking", "always"] | None = None
    metadata: bool | None = None
    """It takes OpenAI's `metadata`."""
    vocabulary: Literal["151k", "248k"] | None = None
    """Which of Qwen's vocabularies it has, by the number of entries."""
    open_weights: bool | None = None
    """It runs on own servers too, which choose its limits themselves."""

    # Where and how it is served
    native_path: Literal["text", "multimodal"] | None = None
    """Which of DashScope's two generation services has it."""
    search: list[str] | None = None
    """Strategies of web search; an empty list where it cannot search."""
    cache: Literal["none", "implicit", "explicit", "options"] | None = None
    """What clients can do about its context cache: nothing, nothing, `cache_control`, or OpenAI's options
    too."""
    cache_ttls: dict[str, str] | None = None
    """What OpenAI's words for a time to live are called."""
    batch: bool | None = None
    batch_chat: bool | None = None
    responses: bool | None = None
    prices: list[dict[str, Any]] | None = None
    """Tiers by the length of the prompt (`ledger.prices`)."""


@dataclass(frozen=True)
class ModelSpec(ModelRow):
    """The data of a model, from its own row and those that it inherits from."""

    guessed: frozenset[str] = frozenset()
    """Cells that are those of another model of its line."""

    def knows(self, cell: str) -> bool:
        """Return whether a cell is the model's own."""
        return getattr(self, cell) is not None and cell not in self.guessed

    def is_for(self, task: str) -> bool:
        return task in (self.tasks or ())

    @property
    def order(self) -> tuple[int, ...]:
        """Return the version as numbers, to compare: 3.10 follows 3.8."""
        return version_order(self.version or "")


OWN = frozenset((
    "id", "like", "listed", "aliases", "snapshots", "online", "retires", "successor", "prices", "batch_chat",
))  # fmt: skip
"""Cells that no model has from another one."""
NAMES = tuple(item.name for item in fields(ModelRow))
CELLS = tuple(name for name in NAMES if name not in OWN)


def version_order(version: str) -> tuple[int, ...]:
    """Return `3.8` (or `3_8`) as numbers; an empty tuple for none."""
    return tuple(int(part) for part in version.replace("_", ".").split(".") if part.isdecimal())


def inherit(model: ModelSpec, others: Iterable[ModelSpec], *, guess: bool = False) -> ModelSpec:
    """Return the model with each unknown cell taken from the first of the others that knows it; `guess` marks
    those as guessed."""
    found: dict[str, Any] = {}
    missing = [cell for cell in CELLS if getattr(model, cell) is None]
    if model.context is not None and "input" in missing:
        missing.remove("input")  # that of a model with another context would be wrong
    for other in others:
        found |= {cell: getattr(other, cell) for cell in missing if other.knows(cell)}
        missing = [cell for cell in missing if cell not in found]
    return replace(model, guessed=model.guessed.union(found if guess else ()), **found)


def override(model: ModelSpec, row: ModelRow) -> ModelSpec:
    """Return the model with every cell that the row gives."""
    given = {name: value for name in NAMES if name != "id" and (value := getattr(row, name)) is not None}
    return replace(model, guessed=model.guessed.difference(given), **given)
