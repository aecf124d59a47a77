"""The tags of written calls: those around a function, and the head of a function in its variants.

    "<function=" NAME ">" | "<function name=" NAME ">" | "<invoke name=" NAME ">"

What follows the tag confirms that it is a call: a parameter, the closing tag, a JSON object in the place of
parameters, or (in `<tool_call>`) the bare text of a tool whose one parameter is a string, closed by its tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, strip_quotes
from qproxy.wire.tool_calls.hermes import OPENER
from qproxy.wire.tool_calls.json_strings import value_end
from qproxy.wire.tool_calls.text_buffer import MAX_MARKER, ParseSteps, TextBuffer

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
OPENERS = {FUNCTION: END_FUNCTION, "<function name=": END_FUNCTION, "<invoke name=": "</invoke>"}
"""The tags that begin a function, and the tag that ends it."""
PARAMETERS = (PARAMETER, "<parameter name=")
ENVELOPES = (OPENER, "<tool_calls>", "<function_call>", "<function_calls>", "<tools>")
"""Tags around calls; only the first may hold undeclared functions."""
CLOSERS = tuple(f"</{opener[1:]}" for opener in ENVELOPES)
MAX_NAME = 512
_NAME_END = re.compile(r"[>\n<]")
_VALID_NAME = re.compile(r"[^\s<>\"'=]+\Z")
_QUOTED = re.compile(r"""\s*(["'])([^"']*+)\1""")
_TEXT_END = re.compile("</(?:parameter|function|invoke)>|\n</tool_call>")
MAX_TEXT = 1024 * 1024
"""Characters of a free-form tool's bare text held until its end; a longer one is no call."""


@dataclass(slots=True)
class FunctionHead:
    """A function whose name is known."""

    name: str
    opener: str
    end: int
    text: int | None = None
    """The start of a free-form tool's bare text, which ends at `end`."""


def read_head(
    source: TextBuffer, start: int, wrapped: bool, declared: bool, tools: DeclaredFunctions
) -> ParseSteps[FunctionHead | None]:
    """Return the function's head, once the text after its tag shows that it is a call."""
    opener = yield from source.match_any(tuple(OPENERS), start)
    if opener is None:
        return None
    offset = start + len(opener)
    may = (lambda text: tools.is_prefix(attribute(text))) if declared else None
    end = yield from source.read_until(_NAME_END, offset, MAX_NAME, may)
    name = tools.resolve(attribute(source.take_chunk(offset, end))) if end >= 0 else ""
    if not _VALID_NAME.match(name) or (declared and name not in tools):
        return None
    end += source.may_start_with(">", end)
    head = FunctionHead(name, opener, (yield from source.visible(end)))
    if head.end == len(source) and source.is_ended:
        return head if wrapped else None
    legal = (*PARAMETERS, OPENERS[opener], *((*CLOSERS, *OPENERS) if wrapped else ()))
    marker = yield from source.match_any(legal, head.end)
    if marker is not None or (wrapped and source.is_ended and partial_marker(source, legal, head.end)):
        return head
    if name in tools and (yield from _holds_object(source, head.end, OPENERS[opener], wrapped)):
        return head
    if name in tools and wrapped and tools.only_string(name) is not None:
        return (yield from _free_text(source, head, end))
    return None


def attribute(text: str) -> str:
    """Return a name or key without the quotes, whitespace and further attributes around it."""
    quoted = _QUOTED.match(text)
    return quoted[2].strip() if quoted else strip_quotes(text)


def _holds_object(source: TextBuffer, offset: int, closer: str, wrapped: bool) -> ParseSteps[bool]:
    """Return whether a JSON object stands in place of parameters; without a wrapper it must be complete."""
    if not source.may_start_with("{", offset):
        return False
    if wrapped:
        inside = yield from source.visible(offset + 1)
        return source.may_start_with('"', inside) or source.may_start_with("}", inside)
    end = yield from value_end(source, offset)
    if end < 0:
        return False
    after = yield from source.visible(end)
    return after == len(source) or (yield from source.match_any((closer, *CLOSERS), after)) is not None


def _free_text(source: TextBuffer, head: FunctionHead, start: int) -> ParseSteps[FunctionHead | None]:
    """Return the head of a function whose one parameter has no tag, once its closing tags have come."""
    position = start
    while position - start <= MAX_TEXT:
        position = yield from source.read_until(_TEXT_END, position, MAX_TEXT)
        if position < 0:
            return None
        end, closers = position, 0
        while (
            marker := (yield from source.match_any((END_PARAMETER, OPENERS[head.opener]), end))
        ) is not None:
            end = yield from source.visible(end + len(marker))
            closers += 1
        at_end = end == len(source) and source.is_ended
        if closers and (at_end or (yield from source.match_any(CLOSERS, end)) is not None):
            return FunctionHead(head.name, head.opener, position, start)
        if source.may_start_with("\n", position) and (yield from _ends_block(source, position + 1)):
            return FunctionHead(head.name, head.opener, position, start)
        position += 1
    return None


def _ends_block(source: TextBuffer, offset: int) -> ParseSteps[bool]:
    """Return whether the envelope's closing tag ends a text whose own one is missing: nothing or a call
    follows."""
    closer = yield from source.match_any(CLOSERS, offset)
    after = (yield from source.visible(offset + len(closer))) if closer is not None else -1
    if after < 0 or (after == len(source) and source.is_ended):
        return after >= 0
    return (yield from source.match_any(ENVELOPES, after)) is not None


def text_argument(text: str, tools: DeclaredFunctions, name: str) -> str:
    """Return arguments with a bare text as the one string parameter."""
    text = text.removeprefix("\r").removeprefix("\n").removesuffix("\n").removesuffix("\r")
    return f"{{{json_codec.quote(tools.only_string(name) or '')}: {json_codec.quote(text)}}}"


def partial_marker(source: TextBuffer, markers: tuple[str, ...], offset: int) -> bool:
    """Return whether the text ended within one of the markers."""
    rest = source.take_chunk(offset, offset + MAX_MARKER) if source.is_ended else ""
    return bool(rest) and any(marker.startswith(rest) for marker in markers)
