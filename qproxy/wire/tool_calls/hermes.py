"""Calls as JSON: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Qwen2.5, Qwen3, QwQ; "Hermes").

    block := "<tool_call>" WS? (call | "[" call ("," call)* "]") WS? "</tool_call>"
    call  := an object with "name": string and "arguments" (or "parameters"): object | string | null
             (of a declared function also with the keys in _NAMES; an object also with those in _OBJECTS)

A call ends where its object closes, not at the first closing tag: strings may hold any markup. Nothing is
committed before the name is known; from then on the arguments are passed on as they come, verbatim except for
raw control characters in strings. A missing or extra outer brace and a missing closing tag are accepted;
invalid JSON inside the arguments is passed on up to the closing tag, for the client to see.

Qwen-Agent's code mode: `<code>...</code>` after a call whose `code` argument is empty is that argument.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.json_strings import (
    MAX_HEAD,
    MAX_WHITESPACE,
    UNITS,
    ControlCharEscaper,
    StringDecoder,
    decode_string,
    string_end,
    strip_extra_brace,
    value_end,
)
from qproxy.wire.tool_calls.text_buffer import WINDOW, ParseSteps, TextBuffer

OPENER, CLOSER = "<tool_call>", "</tool_call>"
_NAMES = ("tool_name", "function_name", "tool", "function")
"""Other keys of a name, which must then be a declared one."""
_ARGUMENTS = ("arguments", "parameters")
_OBJECTS = ("args", "input", "params")
"""Other keys of arguments, which must then be an object."""
_CLOSER = re.compile(re.escape(CLOSER))
_CODE_END = re.compile("</code>")
_EMPTY_CODE = re.compile(r'"code"\s{0,16}:\s{0,16}""\s{0,16}[,}]')
_CODE_START = re.compile(
    r'(?<![:\\])(?<!: )"(?:c(?:o(?:d(?:e(?:"\s{0,16}(?::\s{0,16}(?:"(?:"\s{0,16})?)?)?)?)?)?)?)?\Z'
)


@dataclass(slots=True)
class _Head:
    """A call whose name is known."""

    name: str
    arguments: str | None
    """The JSON text of the arguments if they came before the name."""
    end: int
    nested: bool = False
    """Whether the call is the `function` of another object, as in a response of OpenAI."""
    known: bool = False
    """Whether the name must be a declared one, because its key is not `name`."""


def parse_call(
    source: TextBuffer,
    sink: EventEmitter,
    tools: DeclaredFunctions,
    start: int,
    *,
    declared: bool,
    spelling: str = "hermes",
) -> ParseSteps[bool]:
    """Read the calls of a block whose JSON begins at `start`; return False, with nothing consumed, if it is
    text.

    With `declared`, only calls of declared functions count.
    """
    listed = source.may_start_with("[", start)
    offset = (yield from source.visible(start + 1)) if listed else start
    found = False
    while True:
        head = yield from _head(source, offset)
        name = "" if head is None else tools.resolve(head.name)
        if head is None or ((declared or head.known) and name not in tools):
            return found
        if not listed and head.arguments is None and (yield from _is_in_prose(source, head.end)):
            return found
        found = True
        sink.begin_call(name, spelling)
        sink.string_parameter = tools.only_string(name)
        source.consume(head.end)
        held = yield from _body(source, sink, head.arguments)
        if head.nested and not held:
            held = yield from _body(source, sink, None, written=True)
        offset, listed = yield from _after(source, sink, held, listed)
        if offset < 0:
            return True


def _head(source: TextBuffer, start: int, *, nested: bool = False) -> ParseSteps[_Head | None]:
    """Read an object's keys until its name is known."""
    if not (yield from source.starts_with(start + 1)) or not source.may_start_with("{", start):
        return None
    arguments = None
    offset = yield from source.visible(start + 1)
    while offset - start <= MAX_HEAD:
        end = yield from string_end(source, offset)
        if end < 0:
            return None
        key = decode_string(source.take_chunk(offset, end))
        colon = yield from source.visible(end)
        if not source.may_start_with(":", colon):
            return None
        offset = yield from source.visible(colon + 1)
        if key == "name" or (key in _NAMES and source.may_start_with('"', offset)):
            end = yield from string_end(source, offset)
            name = decode_string(source.take_chunk(offset, end)).strip() if end > 0 else ""
            return _Head(name, arguments, end, nested, key != "name") if name else None
        if key == "function" and not nested and source.may_start_with("{", offset):
            return (yield from _head(source, offset, nested=True))
        end = yield from value_end(source, offset)
        if end < 0:
            return None
        if arguments is None and _holds_arguments(source, key, offset):
            arguments = source.take_chunk(offset, end)
        comma = yield from source.visible(end)
        if not source.may_start_with(",", comma):
            return None
        offset = yield from source.visible(comma + 1)
    return None


def _holds_arguments(source: TextBuffer, key: str, offset: int) -> bool:
    """Return whether the value at `offset` is a call's arguments, by its key."""
    return key in _ARGUMENTS or (key in _OBJECTS and source.may_start_with("{", offset))


def _is_in_prose(source: TextBuffer, offset: int) -> ParseSteps[bool]:
    """Return whether an object with a name only ends at `offset`, and other text follows."""
    offset = yield from source.visible(offset)
    if not source.may_start_with("}", offset):
        return False
    after = yield from source.visible(offset + 1)
    return after < len(source) and source.take_chunk(after, after + 1) not in "<{}[],"


def _body(
    source: TextBuffer, sink: EventEmitter, before: str | None, *, written: bool = False
) -> ParseSteps[str]:
    """Read the rest of a call's object; return arguments that wait for a `<code>` block."""
    held, written = "", written or before is not None
    if before is not None:
        sub = TextBuffer(before, ended=True)
        held = yield from arguments(sub, sink)
    while True:
        offset = yield from source.visible()
        if offset == len(source):
            sink.truncated = sink.truncated or not written
            return held
        if source.may_start_with("}", offset):
            source.consume(offset + 1)
            return held
        if not source.may_start_with(",", offset):
            if (yield from source.match_any((CLOSER, OPENER), offset)) is None:
                yield from is_broken(source, sink)
            return held
        offset = yield from source.visible(offset + 1)
        end = yield from string_end(source, offset)
        if end < 0:
            yield from _give_up(source, sink)
            return held
        key = decode_string(source.take_chunk(offset, end))
        colon = yield from source.visible(end)
        offset = yield from source.visible(colon + 1)
        if not source.may_start_with(":", colon):
            yield from _give_up(source, sink)
            return held
        if not written and _holds_arguments(source, key, offset):
            written = True
            source.consume(offset)
            held = yield from arguments(source, sink)
        else:
            end = yield from value_end(source, offset)
            if end < 0:
                yield from _give_up(source, sink)
                return held
            source.consume(end)


def _give_up(source: TextBuffer, sink: EventEmitter) -> ParseSteps[None]:
    """Pass on everything up to the end of an object that is invalid after its name."""
    if source.is_ended:
        sink.truncated = True
        source.consume(len(source))
    else:
        yield from is_broken(source, sink)


def arguments(source: TextBuffer, sink: EventEmitter) -> ParseSteps[str]:
    """Pass on the arguments at the source's start; return them if they wait for a `<code>` block."""
    if not (yield from source.starts_with(1)):
        sink.truncated = True
        return ""
    if source.may_start_with("{") or source.may_start_with("["):
        return (yield from as_call(source, sink))
    if source.may_start_with('"'):
        yield from _encoded(source, sink)
        return ""
    end = yield from value_end(source, 0)
    if end < 0:
        if source.is_ended:
            sink.emit_arguments(source.consume(len(source)))
            sink.truncated = True
        else:
            yield from is_broken(source, sink)
        return ""
    literal = source.consume(end)
    sink.emit_arguments("" if literal == "null" else literal)
    return ""


def as_call(source: TextBuffer, sink: EventEmitter) -> ParseSteps[str]:
    """Pass on an object or array as it comes, except what follows an empty `code`: that waits for
    `<code>`."""
    state, escaper, held, waits = JSONState(), ControlCharEscaper(), "", False
    while True:
        text = source.consume(state.read_until_end(source.take_chunk(0, WINDOW)))
        held += escaper.feed(text) + (escaper.close() if state.is_complete or state.is_broken else "")
        if not waits:
            waits, sure = _empty_code(held)
            sink.emit_arguments(held[:sure])
            held = held[sure:]
        if state.is_complete and waits:
            return held
        if state.is_complete or state.is_broken or len(held) > MAX_HEAD:
            sink.emit_arguments(held)
            held, waits = "", False
        if state.is_complete:
            return ""
        if state.is_broken:
            sink.repairs["arguments_broken"] += 1
            yield from is_broken(source, sink)
            return ""
        if not len(source) and not (yield from source.has_more()):
            sink.emit_arguments(held + escaper.close())
            return ""


def _empty_code(text: str) -> tuple[bool, int]:
    """Return whether a `code` argument is empty, and how much text can be no part of one."""
    empty = _EMPTY_CODE.search(text)
    if empty:
        return True, empty.start()
    start = _CODE_START.search(text)
    return False, start.start() if start else len(text)


def _encoded(source: TextBuffer, sink: EventEmitter) -> ParseSteps[None]:
    """Pass on arguments written as a string: decoded once if they hold an object; the one string that the
    function takes; unchanged otherwise.
    """
    if not (yield from _holds_object(source)):
        end = yield from string_end(source, 0)
        if end < 0:
            sink.truncated = True
            end = len(source)
        literal = source.consume(end)
        blank = end > 1 and literal.endswith('"') and not decode_string(literal).strip()
        if sink.string_parameter is not None and not blank and not sink.truncated:
            literal = f"{{{json_codec.quote(sink.string_parameter)}: {literal}}}"
        sink.emit_arguments("" if blank else literal)
        return
    sink.repairs["arguments_encoded"] += 1
    source.consume(1)
    decoding, escaper = StringDecoder(), ControlCharEscaper()
    while not decoding.finished:
        inside = escaper.feed(decoding.read(source))
        sink.emit_arguments(inside + (escaper.close() if decoding.finished else ""))
        if decoding.is_broken:
            yield from is_broken(source, sink)
            return
        if not decoding.finished and not (yield from source.has_more()):
            sink.emit_arguments(escaper.close() + source.consume(len(source)))
            return


def _holds_object(source: TextBuffer) -> ParseSteps[bool]:
    """Return whether the string at the source's start, once decoded, begins with a brace."""
    while True:
        units = UNITS.match(source.take_chunk(1))
        inside = decode_string(f'"{units[0]}"').lstrip() if units else ""
        if inside or len(source) > MAX_WHITESPACE or (units and units.end() + 1 < len(source)):
            return inside.startswith("{")
        if not (yield from source.has_more()):
            return False


def is_broken(source: TextBuffer, sink: EventEmitter) -> ParseSteps[None]:
    """Pass on invalid JSON up to the closing tag, except the brace that closes the call."""
    while True:
        end = source.find(_CLOSER)
        if end >= 0:
            sink.emit_arguments(strip_extra_brace(source.take_chunk(0, end)))
            source.consume(end)
            return
        if source.is_ended:
            sink.emit_arguments(source.consume(len(source)))
            return
        text = source.take_chunk(0)
        partial = next((n for n in range(len(CLOSER) - 1, 0, -1) if text.endswith(CLOSER[:n])), 0)
        sure = len(text) - partial
        sink.emit_arguments(source.consume(len(strip_extra_brace(text[:sure]))))
        yield from source.has_more()


def _after(source: TextBuffer, sink: EventEmitter, held: str, listed: bool) -> ParseSteps[tuple[int, bool]]:
    """Return the offset of the next call in the block (-1 at its end) and whether a list is still open."""
    comma = False
    while True:
        offset = yield from source.visible()
        if offset == len(source):
            sink.emit_arguments(held)
            if source.is_ended:
                source.consume(offset)
                if not source.truncated:
                    sink.repairs["closer_missing"] += 1
            return -1, False
        if source.may_start_with("{", offset) and not held:
            return offset, listed
        if source.may_start_with("}", offset) and not comma:
            sink.repairs["brace_extra"] += 1
            source.consume(offset + 1)
        elif listed and (source.may_start_with(",", offset) or source.may_start_with("]", offset)):
            comma = source.may_start_with(",", offset)
            listed = comma
            source.consume(offset + 1)
        else:
            marker = yield from source.match_any((CLOSER, "<code>") if held else (CLOSER,), offset)
            if marker == "<code>":
                source.consume(offset + len(marker))
                yield from _code(source, sink, held)
                held = ""
                continue
            sink.emit_arguments(held)
            if marker is not None:
                source.consume(offset + len(marker))
            elif source.is_ended and CLOSER.startswith(source.take_chunk(offset)):
                source.consume(len(source))  # truncated within the closing tag
            else:
                sink.repairs["closer_missing"] += 1
            return -1, False


def _code(source: TextBuffer, sink: EventEmitter, held: str) -> ParseSteps[None]:
    """Pass on the text of a `<code>` block in place of the empty `code` argument."""
    end = yield from source.read_until(_CODE_END, 0, MAX_HEAD * 64)
    cut = end < 0
    body = source.consume(len(source) if cut else end)
    source.consume(len("</code>"))
    body = body.removeprefix("\n")
    body = body if cut else body.removesuffix("\n")
    quote = held.index('""')
    sink.emit_arguments(held[:quote] + json_codec.quote(body)[: -1 if cut else None])
    if not cut:
        sink.emit_arguments(held[quote + 2 :])


PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""The chat template of Qwen2.5 and Qwen3."""


def render(tools: Sequence[JSON]) -> str:
    """Return the tools as the model's own template writes them into the system prompt."""
    return PROMPT.format(tools="\n".join(map(json_codec.dumps_spaced, tools)))


def render_call(name: str, arguments: str) -> str:
    """Return a call of the history as the model would write it; `arguments` is JSON text."""
    return f'{OPENER}\n{{"name": {json_codec.quote(name)}, "arguments": {arguments or "{}"}}}\n{CLOSER}'
