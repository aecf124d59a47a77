"""Calls after marker words: Qwen-Agent's old form, and ReAct.

    "✿FUNCTION✿: " NAME NL "✿ARGS✿: " ARGS (NL "✿RESULT✿" ... | NL "✿RETURN✿" ...)
    "Action: " NAME NL "Action Input: " ARGS (NL "Observation:" ...)

One FUNCTION may be followed by several ARGS. ARGS is JSON, or a code block for a tool that takes code. After
RESULT, RETURN or Observation the model invents a tool's result, which is dropped. The flower words cannot be
prose and are read whenever NAME is declared; "Action:" can, so ReAct is a model's profile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.tool_calls import coercion
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.json_strings import MAX_HEAD, ControlCharEscaper
from qproxy.wire.tool_calls.text_buffer import WINDOW, ParseSteps, TextBuffer

_NAME_END = re.compile("[\n✿]")
_LINE_END = re.compile("\n")
_FENCE_END = re.compile(r"(?m)^```")
MAX_NAME = 512
MAX_PROPERTIES = 64
"""Maximum number of parameters searched for the one string parameter."""


@dataclass(frozen=True, slots=True)
class MarkerWords:
    """The marker words of one dialect."""

    dialect: str
    call: str
    arguments: str
    results: tuple[str, ...]
    end: re.Pattern[str]
    """The end of arguments that are not JSON."""


FLOWER_MARKERS = MarkerWords(
    "legacy", "✿FUNCTION✿", "✿ARGS✿", ("✿RESULT✿", "✿RETURN✿"), re.compile(r"\n✿|✿(?=FUNC|ARGS|RES|RET)")
)
REACT = MarkerWords(
    "react",
    "Action:",
    "Action Input:",
    ("Observation:", "Observation："),
    re.compile(r"\n(?=Observation|Action:|Thought:)"),
)


def parse_call(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, words: MarkerWords
) -> ParseSteps[bool]:
    """Read the calls whose first marker is at the source's start; return False, with nothing consumed, if
    it is text.
    """
    head = yield from _head(source, tools, words)
    if head is None:
        return False
    name, end = head
    source.consume(end)
    while True:
        yield from _call(source, sink, tools, name, words)
        offset = yield from source.visible()
        marker = yield from source.match_any((words.arguments, words.call, *words.results), offset)
        if marker == words.arguments and words is FLOWER_MARKERS:
            source.consume(offset + len(marker))
            continue
        if marker in words.results:
            yield from discard_rest(source, sink)
        elif marker == words.call:
            source.consume(offset)
            head = yield from _head(source, tools, words)
            if head is not None:
                name, end = head
                source.consume(end)
                continue
        return True


def _head(
    source: TextBuffer, tools: DeclaredFunctions, words: MarkerWords
) -> ParseSteps[tuple[str, int] | None]:
    """Return the declared name and the offset of its arguments."""
    start = yield from _after_colon(source, len(words.call))
    end = yield from source.read_until(_NAME_END, start, MAX_NAME, tools.is_prefix)
    name = source.take_chunk(start, end).strip() if end >= 0 else ""
    if name not in tools:
        return None
    offset = yield from source.visible(end)
    if (yield from source.match_any((words.arguments,), offset)) is None:
        return None
    return name, offset + len(words.arguments)


def _after_colon(source: TextBuffer, offset: int) -> ParseSteps[int]:
    """Return the offset after whitespace and a colon, ASCII or full width."""
    colon = False
    while (yield from source.starts_with(offset + 1)):
        char = source.take_chunk(offset, offset + 1)
        if char in ":：" and not colon:
            colon = True
        elif char not in " \t":
            break
        offset += 1
    return offset


def _call(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, name: str, words: MarkerWords
) -> ParseSteps[None]:
    sink.begin_call(name, words.dialect)
    source.consume((yield from _after_colon(source, 0)))
    source.consume((yield from source.visible()))
    if (yield from source.match_any(("```",))):
        yield from _fenced(source, sink, tools, name)
        return
    if source.may_start_with("{"):
        yield from _json(source, sink, words)
        yield from _drop_line(source)
        return
    end = yield from source.read_until(words.end, 0, MAX_HEAD)
    raw = source.consume(len(source) if end < 0 else end).strip()
    sink.emit_arguments(_wrapped(raw, tools, name) if raw else "")


def _json(source: TextBuffer, sink: EventEmitter, words: MarkerWords) -> ParseSteps[None]:
    """Pass on an object as it comes, or invalid JSON up to the next marker."""
    state, escaper = JSONState(), ControlCharEscaper()
    while True:
        text = source.consume(state.read_until_end(source.take_chunk(0, WINDOW)))
        sink.emit_arguments(
            escaper.feed(text) + (escaper.close() if state.is_complete or state.is_broken else "")
        )
        if state.is_complete:
            return
        if state.is_broken:
            sink.repairs["arguments_broken"] += 1
            end = yield from source.read_until(words.end, 0, MAX_HEAD)
            sink.emit_arguments(source.consume(len(source) if end < 0 else end).rstrip())
            return
        if not len(source) and not (yield from source.has_more()):
            sink.emit_arguments(escaper.close())
            return


def _drop_line(source: TextBuffer) -> ParseSteps[None]:
    """Drop the rest of the line after the arguments (a comment)."""
    while True:
        end = source.find(_NAME_END)
        if end >= 0:
            source.consume(end)
            return
        source.consume(len(source))
        if not (yield from source.has_more()):
            return


def _fenced(source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, name: str) -> ParseSteps[None]:
    """Pass on a code block as the tool's one string parameter, or unchanged."""
    line = yield from source.read_until(_LINE_END, 0, MAX_NAME)
    source.consume(len(source) if line < 0 else line + 1)
    end = yield from source.read_until(_FENCE_END, 0, MAX_HEAD * 64)
    body = source.consume(len(source) if end < 0 else end)
    source.consume(3)
    body = body.removesuffix("\n") if end >= 0 else body
    text = _wrapped(body, tools, name)
    sink.emit_arguments(
        text.removesuffix('"}') if end < 0 and source.truncated and text.endswith('"}') else text
    )


def _wrapped(body: str, tools: DeclaredFunctions, name: str) -> str:
    properties = tools.properties(name)
    if len(properties) > MAX_PROPERTIES:
        return body
    texts = [
        key for key in properties if coercion.allowed_types(properties[key], tools.schema(name)) == {"string"}
    ]
    if len(texts) != 1:
        return body
    return f"{{{json_codec.quote(texts[0])}: {json_codec.quote(body)}}}"


def discard_rest(source: TextBuffer, sink: EventEmitter) -> ParseSteps[None]:
    """Drop the rest of the response from a result's marker on: the model invented it."""
    sink.repairs["result_invented"] += 1
    while True:
        source.consume(len(source))
        if not (yield from source.has_more()):
            return
