"""Calls as bare JSON: Qwen2.5-Coder writes them without `<tool_call>`.

Only for models with that profile. The call object (or a list, or several of them) is the whole response or a
whole Markdown code block, and each names a declared function; anything else is text. Double braces around it,
a bug in the model's own template, are removed once. Because only the end shows "the whole", the text is held
until then.
"""

from __future__ import annotations

import re

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls import hermes
from qproxy.wire.tool_calls.code_fences import without_fence
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.json_strings import value_end
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

MAX_HELD = 1024 * 1024
"""Characters held to decide whether a response is a call; a longer one is text."""
_OPENER = re.compile(r"(`{3,}+)[ \t]*+(?:json|tool_call|tool|xml)?[ \t]*+\r?\n")
_LINE_END = re.compile("\n")


def read_answer(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, forced: str | None = None
) -> ParseSteps[bool]:
    """Read a response that begins with a brace or a bracket; return False if it is text.

    `forced` is the function that the client chose: some servers send its arguments alone.
    """
    while (yield from source.has_more()):
        if len(source) > MAX_HELD:
            break
    if len(source) > MAX_HELD:
        return False
    body = without_fence(source.take_chunk(0))
    return read_calls(source, sink, tools, _forced_call(body, tools, forced) or body, len(source))


def _forced_call(body: str, tools: DeclaredFunctions, forced: str | None) -> str | None:
    """Return a call of the forced function if the text is an object of its parameters, else None."""
    if forced is None or forced not in tools:
        return None
    try:
        value = json_codec.loads_lenient(body)
    except ValueError:
        return None
    required = tools.schema(forced).get("required") or []
    keys = tools.properties(forced).keys()
    if not isinstance(value, dict) or not value.keys() <= keys or not isinstance(required, list):
        return None
    if not value and keys:  # of a function without parameters `{}` can be nothing but its arguments
        return None
    whole = all(isinstance(key, str) and key in value for key in required)
    return f'{{"name": {json_codec.quote(forced)}, "arguments": {body.strip()}}}' if whole else None


def read_element(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, start: int, end_tags: tuple[str, ...]
) -> ParseSteps[bool]:
    """Read an element whose whole content, from `start` on, is calls; return False if it is text."""
    offset = start
    while True:
        offset = yield from value_end(source, offset, MAX_HELD)
        if offset < 0 or offset - start > MAX_HELD:
            return False
        end = offset
        offset = yield from source.visible(offset)
        if source.may_start_with(",", offset):
            offset = yield from source.visible(offset + 1)
        if source.may_start_with("{", offset) or source.may_start_with("[", offset):
            continue
        closed = yield from source.match_any(end_tags, offset)
        rest = source.take_chunk(offset) if closed is None and source.is_ended else "-"
        if closed is None and not any(tag.startswith(rest) for tag in end_tags):
            return False
        size = offset + len(closed) if closed else len(source)
        return read_calls(source, sink, tools, source.take_chunk(start, end), size, "element")


def read_fence(source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions) -> ParseSteps[bool]:
    """Read a code block at the source's start; return False without a code block, or a call in it."""
    line = yield from source.read_until(_LINE_END, 0, 64)
    opener = _OPENER.match(source.take_chunk(0, line + 1)) if line >= 0 else None
    if opener is None:
        return False
    start = yield from source.visible(opener.end())
    if not (source.may_start_with("{", start) or source.may_start_with("[", start)):
        return False
    closer = re.compile(rf" {{0,3}}{opener[1]}`*+[ \t]*+\r?\n?\Z")
    started = opener.end()
    while started <= MAX_HELD:
        end = yield from source.read_until(_LINE_END, started, MAX_HELD)
        if end < 0 and not source.is_ended:
            return False
        stop = len(source) if end < 0 else end + 1
        if closer.match(source.take_chunk(started, stop)):
            return read_calls(source, sink, tools, source.take_chunk(start, started), stop)
        if end < 0:
            return read_calls(source, sink, tools, source.take_chunk(start), stop)
        started = stop
    return False


def read_calls(
    source: TextBuffer,
    sink: EventEmitter,
    tools: DeclaredFunctions,
    body: str,
    size: int,
    spelling: str = "bare",
) -> bool:
    """Read a text of `size` characters that is nothing but the calls in `body`; return False if it is not."""
    calls = parse(body, tools)
    if not calls:
        return False
    source.consume(size)
    for call in calls:
        sub = TextBuffer(call + hermes.CLOSER, ended=True)
        for _ in hermes.parse_call(sub, sink, tools, 0, declared=True, spelling=spelling):
            pass  # an ended source never waits
    return True


def parse(body: str, tools: DeclaredFunctions) -> list[str]:
    """Return the JSON texts of the calls (objects or lists of them) that make up a text; empty if it holds
    anything else.
    """
    body = body.strip()
    for text in _interpretations(body):
        try:
            found = _values(text)
        except ValueError:
            continue
        if all(_is_call(value, tools) for value, _ in found):
            return [verbatim for _, verbatim in found]
    return []


def _interpretations(body: str) -> list[str]:
    """Return the text, and the readings with a missing last brace or doubled braces corrected."""
    if not body.startswith("{{"):
        return [body, body + "}"]
    single = body[1:-1].strip() if body.endswith("}}") else body[1:]
    return [single, body.replace("{{", "{").replace("}}", "}")]


def _values(text: str) -> list[tuple[JSON, str]]:
    """Return the consecutive JSON values, each with its text."""
    found, position = [], 0
    while position < len(text):
        value, end = json_codec.loads_prefix(text, position)
        found.append((value, text[position:end]))
        position = end
        while position < len(text) and text[position] in " \t\r\n,;":
            position += 1
    return found


def _is_call(value: JSON, tools: DeclaredFunctions) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) and _is_call(item, tools) for item in value)
    if isinstance(value, dict) and isinstance(value.get("function"), dict):  # as a response of OpenAI has it
        value = value["function"] if "arguments" in value["function"] else None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    if tools.resolve(value["name"]) not in tools or "description" in value:
        return False  # a declaration that the model repeats has a description
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, dict) and "arguments" not in value and "properties" in arguments:
        return "properties" in tools.properties(tools.resolve(value["name"]))  # else it is a schema
    return isinstance(arguments, dict | str | None)
