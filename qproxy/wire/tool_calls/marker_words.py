"""Calls after marker words: Qwen-Agent's old form, and ReAct.

    "✿FUNCTION✿: " NAME NL "✿ARGS✿: " ARGS (NL "✿RESULT✿" ... | NL "✿RETURN✿" ...)
    "Action: " NAME NL "Action Input: " ARGS (NL "Observation:" ...)

One FUNCTION may be followed by several ARGS.  ARGS is JSON, or a code fence for a tool that takes code.  After
RESULT, RETURN or Observation the model plays the tool: that is nobody's text and is dropped.  The flower words
cannot be prose and are read whenever NAME is declared; "Action:" can, so ReAct is a model's profile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qproxy.wire import json_codec as jsontext
from qproxy.wire.tool_calls import coercion as values
from qproxy.wire.tool_calls.emitter import Sink, Tools
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.json_strings import MAX_HEAD, Escaper
from qproxy.wire.tool_calls.text_buffer import WINDOW, Reading, Source

_NAME_END = re.compile("[\n✿]")
_LINE_END = re.compile("\n")
_FENCE_END = re.compile(r"(?m)^```")
MAX_NAME = 512
MAX_PROPERTIES = 64
"""Parameters among which the one of text is looked for."""


@dataclass(frozen=True, slots=True)
class Words:
    """The marker words of one spelling."""

    dialect: str
    call: str
    arguments: str
    results: tuple[str, ...]
    end: re.Pattern[str]
    """Where arguments that are no JSON end."""


FLOWERS = Words(
    "legacy", "✿FUNCTION✿", "✿ARGS✿", ("✿RESULT✿", "✿RETURN✿"), re.compile(r"\n✿|✿(?=FUNC|ARGS|RES|RET)")
)
REACT = Words("react", "Action:", "Action Input:", ("Observation:", "Observation："), re.compile(r"\n(?=Observation|Action:|Thought:)"))  # fmt: skip


def read(source: Source, sink: Sink, tools: Tools, words: Words) -> Reading[bool]:
    """Read the calls whose first marker stands at the source's start; False, with nothing consumed, when it is text."""
    head = yield from _head(source, tools, words)
    if head is None:
        return False
    name, end = head
    source.take(end)
    while True:
        yield from _call(source, sink, tools, name, words)
        offset = yield from source.visible()
        marker = yield from source.which((words.arguments, words.call, *words.results), offset)
        if marker == words.arguments and words is FLOWERS:
            source.take(offset + len(marker))
            continue
        if marker in words.results:
            yield from swallow(source, sink)
        elif marker == words.call:
            source.take(offset)
            head = yield from _head(source, tools, words)
            if head is not None:
                name, end = head
                source.take(end)
                continue
        return True


def _head(source: Source, tools: Tools, words: Words) -> Reading[tuple[str, int] | None]:
    """The declared name, and the offset of its arguments."""
    start = yield from _after_colon(source, len(words.call))
    end = yield from source.until(_NAME_END, start, MAX_NAME, tools.begins)
    name = source.piece(start, end).strip() if end >= 0 else ""
    if name not in tools:
        return None
    offset = yield from source.visible(end)
    if (yield from source.which((words.arguments,), offset)) is None:
        return None
    return name, offset + len(words.arguments)


def _after_colon(source: Source, offset: int) -> Reading[int]:
    """Offset after blanks and a colon, be it ASCII or full width."""
    colon = False
    while (yield from source.has(offset + 1)):
        char = source.piece(offset, offset + 1)
        if char in ":：" and not colon:
            colon = True
        elif char not in " \t":
            break
        offset += 1
    return offset


def _call(source: Source, sink: Sink, tools: Tools, name: str, words: Words) -> Reading[None]:
    sink.opened(name, words.dialect)
    source.take((yield from _after_colon(source, 0)))
    source.take((yield from source.visible()))
    if (yield from source.which(("```",))):
        yield from _fenced(source, sink, tools, name)
        return
    if source.starts("{"):
        yield from _json(source, sink, words)
        yield from _drop_line(source)
        return
    end = yield from source.until(words.end, 0, MAX_HEAD)
    raw = source.take(len(source) if end < 0 else end).strip()
    sink.wrote(_wrapped(raw, tools, name) if raw else "")


def _json(source: Source, sink: Sink, words: Words) -> Reading[None]:
    """An object, as it comes; what is no JSON up to the next marker."""
    state, escaper = JSONState(), Escaper()
    while True:
        text = source.take(state.read(source.piece(0, WINDOW)))
        sink.wrote(escaper.feed(text) + (escaper.close() if state.complete or state.broken else ""))
        if state.complete:
            return
        if state.broken:
            sink.repairs["arguments_broken"] += 1
            end = yield from source.until(words.end, 0, MAX_HEAD)
            sink.wrote(source.take(len(source) if end < 0 else end).rstrip())
            return
        if not len(source) and not (yield from source.more()):
            sink.wrote(escaper.close())
            return


def _drop_line(source: Source) -> Reading[None]:
    """What stands on the line after the arguments (a comment) belongs to nobody."""
    while True:
        end = source.find(_NAME_END)
        if end >= 0:
            source.take(end)
            return
        source.take(len(source))
        if not (yield from source.more()):
            return


def _fenced(source: Source, sink: Sink, tools: Tools, name: str) -> Reading[None]:
    """Code in a fence: the value of the tool's one string parameter, or the arguments as they are."""
    line = yield from source.until(_LINE_END, 0, MAX_NAME)
    source.take(len(source) if line < 0 else line + 1)
    end = yield from source.until(_FENCE_END, 0, MAX_HEAD * 64)
    body = source.take(len(source) if end < 0 else end)
    source.take(3)
    body = body.removesuffix("\n") if end >= 0 else body
    text = _wrapped(body, tools, name)
    sink.wrote(text.removesuffix('"}') if end < 0 and source.cut and text.endswith('"}') else text)


def _wrapped(body: str, tools: Tools, name: str) -> str:
    properties = tools.properties(name)
    if len(properties) > MAX_PROPERTIES:
        return body
    texts = [key for key in properties if values.kinds(properties[key], tools.schema(name)) == {"string"}]
    if len(texts) != 1:
        return body
    return f"{{{jsontext.quote(texts[0])}: {jsontext.quote(body)}}}"


def swallow(source: Source, sink: Sink) -> Reading[None]:
    """The rest of the answer, from a result's marker on, is invented."""
    sink.repairs["result_invented"] += 1
    while True:
        source.take(len(source))
        if not (yield from source.more()):
            return
