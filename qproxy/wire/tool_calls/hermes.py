"""Calls as JSON: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Qwen2.5, Qwen3, QwQ; the "Hermes" form).

    block := "<tool_call>" WS? (call | "[" call ("," call)* "]") WS? "</tool_call>"
    call  := an object with "name": string and "arguments" (or "parameters"): object | string | null, in any order

A call ends where its object closes, not at the first closing tag: strings may hold any markup.  Nothing is committed
before the name is known; from then on the arguments leave as they come, verbatim but for raw control characters in
strings.  A missing outer brace, an extra one and a missing closing tag are forgiven; bad JSON inside the arguments
is passed on up to the closing tag, for the client to see.

Qwen-Agent's code mode: `<code>...</code>` after a call whose `code` argument is empty is that argument.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.wire import json_codec as jsontext
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls.emitter import Sink, Tools
from qproxy.wire.tool_calls.json_state import JSONState
from qproxy.wire.tool_calls.json_strings import (
    MAX_HEAD,
    UNITS,
    Decoding,
    Escaper,
    decoded,
    string_end,
    value_end,
)
from qproxy.wire.tool_calls.text_buffer import WINDOW, Reading, Source

OPENER, CLOSER = "<tool_call>", "</tool_call>"
_ARGUMENTS = ("arguments", "parameters")
_CLOSER = re.compile(re.escape(CLOSER))
_CODE_END = re.compile("</code>")
MAX_BLANKS = 256
"""Blanks that are looked through for a brace."""
_EMPTY_CODE = re.compile(r'"code"\s{0,16}:\s{0,16}""\s{0,16}[,}]')
_CODE_BEGUN = re.compile(
    r'(?<![:\\])(?<!: )"(?:c(?:o(?:d(?:e(?:"\s{0,16}(?::\s{0,16}(?:"(?:"\s{0,16})?)?)?)?)?)?)?)?\Z'
)


@dataclass(slots=True)
class _Head:
    """A call whose name is known."""

    name: str
    arguments: str | None
    """Their JSON text, where they came before the name."""
    end: int


def read(
    source: Source, sink: Sink, tools: Tools, start: int, *, declared: bool, spelling: str = "hermes"
) -> Reading[bool]:
    """Read the calls of a block whose JSON begins at `start`; False, with nothing consumed, when it is text.

    With `declared`, only calls of declared functions count.
    """
    listed = source.starts("[", start)
    offset = (yield from source.visible(start + 1)) if listed else start
    found = False
    while True:
        head = yield from _head(source, offset)
        if head is None or (declared and head.name not in tools):
            return found
        found = True
        sink.opened(head.name, spelling)
        source.take(head.end)
        held = yield from _body(source, sink, head.arguments)
        offset, listed = yield from _after(source, sink, held, listed)
        if offset < 0:
            return True


def _head(source: Source, start: int) -> Reading[_Head | None]:
    """Look through an object's keys until its name is known."""
    if not (yield from source.has(start + 1)) or not source.starts("{", start):
        return None
    arguments = None
    offset = yield from source.visible(start + 1)
    while offset - start <= MAX_HEAD:
        end = yield from string_end(source, offset)
        if end < 0:
            return None
        key = decoded(source.piece(offset, end))
        colon = yield from source.visible(end)
        if not source.starts(":", colon):
            return None
        offset = yield from source.visible(colon + 1)
        if key == "name":
            end = yield from string_end(source, offset)
            name = decoded(source.piece(offset, end)).strip() if end > 0 else ""
            return _Head(name, arguments, end) if name else None
        end = yield from value_end(source, offset)
        if end < 0:
            return None
        if key in _ARGUMENTS and arguments is None:
            arguments = source.piece(offset, end)
        comma = yield from source.visible(end)
        if not source.starts(",", comma):
            return None
        offset = yield from source.visible(comma + 1)
    return None


def _body(source: Source, sink: Sink, before: str | None) -> Reading[str]:
    """The rest of a call's object.  Returns arguments that wait for a `<code>` block."""
    held, written = "", before is not None
    if before is not None:
        sub = Source(before, ended=True)
        held = yield from arguments(sub, sink)
    while True:
        offset = yield from source.visible()
        if offset == len(source):
            sink.truncated = sink.truncated or not written
            return held
        if source.starts("}", offset):
            source.take(offset + 1)
            return held
        if not source.starts(",", offset):
            if (yield from source.which((CLOSER, OPENER), offset)) is None:
                yield from broken(source, sink)
            return held
        offset = yield from source.visible(offset + 1)
        end = yield from string_end(source, offset)
        if end < 0:
            yield from _lost(source, sink)
            return held
        key = decoded(source.piece(offset, end))
        colon = yield from source.visible(end)
        offset = yield from source.visible(colon + 1)
        if not source.starts(":", colon):
            yield from _lost(source, sink)
            return held
        if key in _ARGUMENTS and not written:
            written = True
            source.take(offset)
            held = yield from arguments(source, sink)
        else:
            end = yield from value_end(source, offset)
            if end < 0:
                yield from _lost(source, sink)
                return held
            source.take(end)


def _lost(source: Source, sink: Sink) -> Reading[None]:
    """The object makes no sense after the name: what there is up to its end belongs to the call."""
    if source.ended:
        sink.truncated = True
        source.take(len(source))
    else:
        yield from broken(source, sink)


def arguments(source: Source, sink: Sink) -> Reading[str]:
    """Pass on the arguments that begin at the source's start.  Returns them where they wait for a `<code>` block."""
    if not (yield from source.has(1)):
        sink.truncated = True
        return ""
    if source.starts("{") or source.starts("["):
        return (yield from structure(source, sink))
    if source.starts('"'):
        yield from _encoded(source, sink)
        return ""
    end = yield from value_end(source, 0)
    if end < 0:
        if source.ended:
            sink.wrote(source.take(len(source)))
            sink.truncated = True
        else:
            yield from broken(source, sink)
        return ""
    literal = source.take(end)
    sink.wrote("" if literal == "null" else literal)
    return ""


def structure(source: Source, sink: Sink) -> Reading[str]:
    """Pass on an object or array as it comes, but what follows an empty `code`: that waits for a `<code>` block."""
    state, escaper, held, waits = JSONState(), Escaper(), "", False
    while True:
        text = source.take(state.read(source.piece(0, WINDOW)))
        held += escaper.feed(text) + (escaper.close() if state.complete or state.broken else "")
        if not waits:
            waits, sure = _empty_code(held)
            sink.wrote(held[:sure])
            held = held[sure:]
        if state.complete and waits:
            return held
        if state.complete or state.broken or len(held) > MAX_HEAD:
            sink.wrote(held)
            held, waits = "", False
        if state.complete:
            return ""
        if state.broken:
            sink.repairs["arguments_broken"] += 1
            yield from broken(source, sink)
            return ""
        if not len(source) and not (yield from source.more()):
            sink.wrote(held + escaper.close())
            return ""


def _empty_code(text: str) -> tuple[bool, int]:
    """Whether a `code` argument is empty, and how much of the text is not part of one that is, or may become it."""
    empty = _EMPTY_CODE.search(text)
    if empty:
        return True, empty.start()
    begun = _CODE_BEGUN.search(text)
    return False, begun.start() if begun else len(text)


def _encoded(source: Source, sink: Sink) -> Reading[None]:
    """Arguments written as a string: decoded once where they hold an object, passed on as a string elsewhere."""
    if not (yield from _holds_object(source)):
        end = yield from string_end(source, 0)
        if end < 0:
            sink.truncated = True
            end = len(source)
        literal = source.take(end)
        blank = end > 1 and literal.endswith('"') and not decoded(literal).strip()
        sink.wrote("" if blank else literal)
        return
    sink.repairs["arguments_encoded"] += 1
    source.take(1)
    decoding, escaper = Decoding(), Escaper()
    while not decoding.over:
        inside = escaper.feed(decoding.read(source))
        sink.wrote(inside + (escaper.close() if decoding.over else ""))
        if decoding.broken:
            yield from broken(source, sink)
            return
        if not decoding.over and not (yield from source.more()):
            sink.wrote(escaper.close() + source.take(len(source)))
            return


def _holds_object(source: Source) -> Reading[bool]:
    """Whether the string at the source's start begins, once decoded, with a brace."""
    while True:
        units = UNITS.match(source.piece(1))
        inside = decoded(f'"{units[0]}"').lstrip() if units else ""
        if inside or len(source) > MAX_BLANKS or (units and units.end() + 1 < len(source)):
            return inside.startswith("{")
        if not (yield from source.more()):
            return False


def broken(source: Source, sink: Sink) -> Reading[None]:
    """Pass on what is no JSON up to the closing tag, but for the brace that closes the call."""
    while True:
        end = source.find(_CLOSER)
        if end >= 0:
            sink.wrote(_without_brace(source.piece(0, end)))
            source.take(end)
            return
        if source.ended:
            sink.wrote(source.take(len(source)))
            return
        text = source.piece(0)
        partial = next((n for n in range(len(CLOSER) - 1, 0, -1) if text.endswith(CLOSER[:n])), 0)
        sure = len(text) - partial
        sink.wrote(source.take(len(_without_brace(text[:sure]))))
        yield from source.more()


def _without_brace(text: str) -> str:
    """Without the call's closing brace and the blanks around it, as far as blanks are looked through."""
    end = _without_blanks(len(text), text)
    if text[end - 1 : end] == "}":
        end = _without_blanks(end - 1, text)
    return text[:end]


def _without_blanks(end: int, text: str) -> int:
    return max(end - MAX_BLANKS, 0) + len(text[max(end - MAX_BLANKS, 0) : end].rstrip())


def _after(source: Source, sink: Sink, held: str, listed: bool) -> Reading[tuple[int, bool]]:
    """After a call: offset of the next one in the block, or -1 at the block's end; whether a list is still open."""
    comma = False
    while True:
        offset = yield from source.visible()
        if offset == len(source):
            sink.wrote(held)
            if source.ended:
                source.take(offset)
                if not source.cut:
                    sink.repairs["closer_missing"] += 1
            return -1, False
        if source.starts("{", offset) and not held:
            return offset, listed
        if source.starts("}", offset) and not comma:
            sink.repairs["brace_extra"] += 1
            source.take(offset + 1)
        elif listed and (source.starts(",", offset) or source.starts("]", offset)):
            comma = source.starts(",", offset)
            listed = comma
            source.take(offset + 1)
        else:
            marker = yield from source.which((CLOSER, "<code>") if held else (CLOSER,), offset)
            if marker == "<code>":
                source.take(offset + len(marker))
                yield from _code(source, sink, held)
                held = ""
                continue
            sink.wrote(held)
            if marker is not None:
                source.take(offset + len(marker))
            elif source.ended and CLOSER.startswith(source.piece(offset)):
                source.take(len(source))  # cut within the closing tag
            else:
                sink.repairs["closer_missing"] += 1
            return -1, False


def _code(source: Source, sink: Sink, held: str) -> Reading[None]:
    """The text of a `<code>` block in the place of the empty `code` argument."""
    end = yield from source.until(_CODE_END, 0, MAX_HEAD * 64)
    cut = end < 0
    body = source.take(len(source) if cut else end)
    source.take(len("</code>"))
    body = body.removeprefix("\n")
    body = body if cut else body.removesuffix("\n")
    quote = held.index('""')
    sink.wrote(held[:quote] + jsontext.quote(body)[: -1 if cut else None])
    if not cut:
        sink.wrote(held[quote + 2 :])


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
"""As in the chat template of Qwen2.5 and Qwen3."""


def render(tools: Sequence[JSON]) -> str:
    """The tools as the model's own template writes them into the system prompt."""
    return PROMPT.format(tools="\n".join(map(jsontext.spaced, tools)))


def render_call(name: str, arguments: str) -> str:
    """A call of the history as the model would have written it; `arguments` is JSON text."""
    return f'{OPENER}\n{{"name": {jsontext.quote(name)}, "arguments": {arguments or "{}"}}}\n{CLOSER}'
