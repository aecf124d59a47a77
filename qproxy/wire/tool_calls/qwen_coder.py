"""Calls as tags: `<function=NAME><parameter=KEY>VALUE</parameter></function>` (Qwen3-Coder, Qwen3.5 and
later).

    block := ["<tool_call>" WS?] func WS? ["</tool_call>"]
    func  := "<function=" NAME ">" WS? ("<parameter=" KEY ">" VALUE "</parameter>" WS?)* "</function>"

`function_tags` reads the first tag in its variants. This is not XML: nothing is escaped, and a VALUE may hold
HTML, or this very syntax. So a closing tag counts only with a legal successor:

    </parameter>    before <parameter=, </function>, </tool_call> or the end
    </function>     (in an unclosed value) at a line start, before </tool_call>, <tool_call>, <function=
                    or the end
    <parameter=K>   (in an unclosed value) at a line start, for a declared K that has no value yet
    </tool_call>    (in an unclosed value) at a line start, before <tool_call> or the end

At the end of the response the line start is not required. An example of this syntax in one line of VALUE is
read over with its closing tags (`nested_tags`). One newline on each side of VALUE belongs to the
syntax, all other whitespace to the value. A value that can only be a string is passed on as it comes; any
other waits for its end and is converted by the declared schema (`coercion`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.tool_calls import coercion, nested_tags
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.function_tags import (
    CLOSERS,
    END_FUNCTION,
    END_PARAMETER,
    FUNCTION,
    MAX_NAME,
    OPENERS,
    PARAMETER,
    PARAMETERS,
    FunctionHead,
    attribute,
    partial_marker,
    read_head,
    text_argument,
)
from qproxy.wire.tool_calls.hermes import CLOSER, OPENER, as_call
from qproxy.wire.tool_calls.nested_tags import NestedTags
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

MAX_VALUE = 8 * 1024 * 1024
"""Characters of a typed value held until its end; a longer one is text."""
_KEY_END = re.compile(r"[>\n]")
_ATTRIBUTE = re.compile(r"""["']?[\w.:-]*+["']?\Z""")
_ANGLE = re.compile("<")


def parse_call(
    source: TextBuffer,
    sink: EventEmitter,
    tools: DeclaredFunctions,
    start: int,
    *,
    wrapped: bool,
    declared: bool,
) -> ParseSteps[bool]:
    """Read the function whose tag begins at `start`; return False, with nothing consumed, if it is text.

    `wrapped`: a `<tool_call>` precedes it. With `declared`, only declared functions count.
    """
    found = False
    while True:
        head = yield from read_head(source, start, wrapped, declared, tools)
        if head is None:
            return found
        found = True
        sink.begin_call(head.name, "coder")
        if head.text is None:
            source.consume(head.end)
            yield from _Function(source, sink, tools, head).read()
        else:
            sink.emit_arguments(text_argument(source.take_chunk(head.text, head.end), tools, head.name))
            source.consume(head.end)
        offset = yield from source.visible()
        marker = yield from source.match_any((*CLOSERS, *OPENERS), offset)
        if marker in OPENERS and wrapped:
            start = offset
            continue
        if marker in CLOSERS:
            source.consume(offset + len(marker))
        elif source.is_ended and (offset == len(source) or partial_marker(source, CLOSERS, offset)):
            source.consume(len(source))
            if wrapped and not source.truncated:
                sink.repairs["closer_missing"] += 1
        elif wrapped:
            sink.repairs["closer_missing"] += 1
        if not wrapped:
            sink.repairs["opener_missing"] += 1
        return True


def _is_attribute(text: str) -> bool:
    """Return whether a text may be the name or key of a tag."""
    return _ATTRIBUTE.match(text) is not None


class _Function:
    """The parameters of one function, from its first tag to its end."""

    def __init__(
        self, source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, head: FunctionHead
    ) -> None:
        self.source = source
        self.sink = sink
        self.schema = tools.schema(head.name)
        self.properties = tools.properties(head.name)
        self.opener, self.closer = head.opener, OPENERS[head.opener]
        self.outer_closers = (CLOSER,) if head.opener == FUNCTION else CLOSERS
        self.parameters: tuple[str, ...] = PARAMETERS
        """Tags that begin a parameter: the first one decides, because the other one may stand in a value."""
        self.values: set[str] = set()

    def read(self) -> ParseSteps[None]:
        """Write `{"key": value, ...}`."""
        source, sink = self.source, self.sink
        if source.may_start_with("{"):
            sink.emit_arguments((yield from as_call(source, sink)))
            offset = yield from source.visible()
            if (yield from source.match_any((self.closer,), offset)) is not None:
                source.consume(offset + len(self.closer))
            return
        while True:
            offset = yield from source.visible()
            marker = yield from source.match_any((*self.parameters, self.closer), offset)
            if marker in self.parameters:
                self.parameters = (marker,)
                source.consume(offset + len(marker))
                yield from self._parameter()
                continue
            if marker == self.closer:
                source.consume(offset + len(self.closer))
            elif source.is_ended and (
                offset == len(source)
                or partial_marker(source, (*self.parameters, self.closer, *CLOSERS), offset)
            ):
                source.consume(len(source))
                if source.truncated:  # the model never closed it
                    sink.truncated = True
                    return
            sink.emit_arguments("}" if self.values else "{}")
            return

    def _parameter(self) -> ParseSteps[None]:
        source, sink = self.source, self.sink
        end = yield from source.read_until(_KEY_END, 0, MAX_NAME)
        if end < 0:
            sink.truncated = True
            source.consume(len(source))
            return
        key = attribute(source.consume(end))
        source.consume(1 if source.may_start_with(">") else 0)
        twice = key in self.values
        if twice:
            sink.repairs["parameter_twice"] += 1
        else:
            sink.emit_arguments(f"{', ' if self.values else '{'}{json_codec.quote(key)}: ")
        self.values.add(key)
        allowed = coercion.allowed_types(self.properties.get(key), self.schema)
        value = _Value(self, streams=coercion.is_string_type(allowed), silent=twice)
        text = yield from value.read()
        if text is not None and not twice:
            whole = value.is_closed or not source.truncated
            sink.emit_arguments(coercion.coerce(text, allowed) if whole else text.strip())


class _Value:
    """One value, passed on as it comes (`streams`) or collected."""

    def __init__(self, function: _Function, *, streams: bool, silent: bool) -> None:
        self._function = function
        self._source = function.source
        self._sink = function.sink
        self._streams = streams
        self._suppressed = silent
        self._collected: list[str] = []
        self._size = 0
        self._started = False
        self._last = "\n"
        self._examples = NestedTags()
        self.is_closed = False

    def read(self) -> ParseSteps[str | None]:
        """Read to the value's end; return its text unless it has been passed on."""
        source = self._source
        yield from self._leading_newline()
        while True:
            angle = source.find(_ANGLE)
            end = len(source) if angle < 0 else angle
            newline = self._newline_before(end)
            self._emit(end - newline)
            if angle < 0:
                if not (yield from source.has_more()):
                    if source.truncated:
                        self._emit(len(source))
                    source.consume(len(source))  # the newline before a closing tag that never came
                    break
                continue
            swallowed = yield from self._find_end(newline)
            if swallowed >= 0:
                source.consume(newline + swallowed)
                self.is_closed = True
                break
            self._emit(newline + 1)
        return self._end()

    def _end(self) -> str | None:
        if not self._streams:
            return "".join(self._collected)
        if not self._started:
            self._write('"')
        if self.is_closed or not self._source.truncated:
            self._write('"')
        return None

    def _write(self, text: str) -> None:
        self._started = True
        if not self._suppressed:
            self._sink.emit_arguments(text)

    def _leading_newline(self) -> ParseSteps[None]:
        source = self._source
        if not (yield from source.starts_with(1)):
            return
        if source.may_start_with("\r"):
            yield from source.starts_with(2)
        newline = yield from source.match_any(("\r\n", "\n"))
        source.consume(len(newline or ""))

    def _newline_before(self, end: int) -> int:
        """Return the length of the newline before offset `end`; at the text's end also of a possible half."""
        text = self._source.take_chunk(max(0, end - 2), end)
        if text.endswith("\r") and end == len(self._source):
            return 1
        return 2 if text.endswith("\r\n") else 1 if text.endswith("\n") else 0

    def _emit(self, size: int) -> None:
        if size <= 0:
            return
        text = self._source.consume(size)
        self._last = text[-1]
        if "\n" in text:
            self._examples.end_line()
        self._size += size
        if self._streams:
            self._write(("" if self._started else '"') + json_codec.quote(text)[1:-1])
            return
        self._collected.append(text)
        if self._size > MAX_VALUE:
            self._streams = True
            self._write('"' + json_codec.quote("".join(self._collected))[1:-1])

    def _find_end(self, offset: int) -> ParseSteps[int]:
        """Return how much of the tag at `offset` (after at most a newline) ends with the value; -1 if it
        ends nothing.
        """
        source, function = self._source, self._function
        tag = yield from source.match_any((*nested_tags.TAGS, *function.outer_closers), offset)
        line_start = offset > 0 or self._last == "\n"
        if tag is None or (not line_start and self._examples.closes(tag)):
            return -1
        after = offset + len(tag)
        if tag == END_PARAMETER:
            legal = yield from self._followed_by(
                (*function.parameters, function.closer, *function.outer_closers), after
            )
            return len(tag) if legal else -1
        if tag in nested_tags.OPENERS:
            legal = tag in function.parameters and line_start and (yield from self._next_key(after))
            if not legal and (yield from source.read_until(_KEY_END, after, MAX_NAME, _is_attribute)) >= 0:
                self._examples.open(tag)
        elif tag != function.closer and tag not in function.outer_closers:
            return -1
        elif line_start:
            successors = (
                (*function.outer_closers, OPENER, function.opener) if tag == function.closer else (OPENER,)
            )
            legal = yield from self._followed_by(successors, after)
        else:
            legal = yield from self._at_function_end(after, tag)
        return 0 if legal else -1

    def _followed_by(self, markers: tuple[str, ...], offset: int) -> ParseSteps[bool]:
        """Return whether one of the markers, or the end, comes next."""
        source = self._source
        offset = yield from source.visible(offset)
        if offset == len(source):
            return source.is_ended
        found = yield from source.match_any(markers, offset)
        return found is not None or partial_marker(source, markers, offset)

    def _at_function_end(self, offset: int, tag: str) -> ParseSteps[bool]:
        """Return whether only a closing tag follows until the end of the response."""
        source = self._source
        offset = yield from source.visible(offset)
        if tag == self._function.closer and (
            closer := (yield from source.match_any(self._function.outer_closers, offset))
        ):
            offset = yield from source.visible(offset + len(closer))
        return offset == len(source) and source.is_ended

    def _next_key(self, offset: int) -> ParseSteps[bool]:
        """Return whether the `<parameter=` tag names a declared parameter without a value."""
        source = self._source
        end = yield from source.read_until(_KEY_END, offset, MAX_NAME)
        if end < 0:
            return False
        key = attribute(source.take_chunk(offset, end))
        return key in self._function.properties and key not in self._function.values


PROMPT = """# Tools

You have access to the following functions:

<tools>
{tools}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user about function calls
</IMPORTANT>"""
"""The chat template of Qwen3.5; Qwen3-Coder lists the same functions as tags."""


def render(tools: Sequence[JSON]) -> str:
    """Return the tools as the model's own template writes them into the system prompt."""
    return PROMPT.format(tools="\n".join(map(json_codec.dumps_spaced, tools)))


def render_call(name: str, arguments: str) -> str:
    """Return a call of the history as the model would write it; `arguments` is JSON text."""
    try:
        given = json_codec.loads(arguments or "{}")
    except ValueError:
        given = {}
    texts = {
        key: value if isinstance(value, str) else json_codec.dumps_spaced(value)
        for key, value in (given.items() if isinstance(given, dict) else ())
    }
    parameters = "".join(f"{PARAMETER}{key}>\n{text}\n{END_PARAMETER}\n" for key, text in texts.items())
    return f"{OPENER}\n{FUNCTION}{name}>\n{parameters}{END_FUNCTION}\n{CLOSER}"
