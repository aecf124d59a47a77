"""Blocks of calls: an envelope such as `<tool_call>` around JSON, tags, Python or another envelope.

The text after the envelope selects the dialect. `<tool_call>` may hold undeclared functions, because no prose
continues it like a call; every other envelope is read only if all that it holds is calls of declared
functions.
"""

from __future__ import annotations

import re

from qproxy.wire.tool_calls import bare_json, function_tags, hermes, named_calls, qwen_coder
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

MAX_ENVELOPES = 4
"""Envelopes within each other that are read as one."""
_END_TAG = re.compile("</(?:tool_calls?|function_calls?|tools|function|invoke)>")


def parse_block(
    source: TextBuffer,
    sink: EventEmitter,
    tools: DeclaredFunctions,
    envelope: str,
    offset: int,
    *,
    declared: bool,
) -> ParseSteps[bool]:
    """Read the calls at `offset`, right after an envelope; return False, with nothing consumed, if it is
    text."""
    for _ in range(MAX_ENVELOPES):
        start = yield from source.visible(offset)
        inner = yield from source.match_any((*function_tags.ENVELOPES, *function_tags.OPENERS), start)
        if inner not in function_tags.ENVELOPES:
            break
        if inner == envelope:  # the first one is text
            return False
        envelope, offset, declared = inner, start + len(inner), True
    if inner in function_tags.OPENERS:
        return (yield from qwen_coder.parse_call(source, sink, tools, start, wrapped=True, declared=declared))
    if source.may_start_with("{", start) or source.may_start_with("[", start):
        if envelope == hermes.OPENER:
            found = yield from hermes.parse_call(source, sink, tools, start, declared=declared)
        else:
            found = yield from bare_json.read_element(source, sink, tools, start, function_tags.CLOSERS)
        if found:
            return True
    return envelope != "<tools>" and (
        yield from named_calls.parse_call(source, sink, tools, start, function_tags.CLOSERS)
    )


def parse_at(
    source: TextBuffer, sink: EventEmitter, tools: DeclaredFunctions, offset: int
) -> ParseSteps[bool]:
    """Read the calls at `offset` and drop what precedes them; return False, with nothing consumed, without
    one."""
    opener = yield from source.match_any((*function_tags.ENVELOPES, *function_tags.OPENERS), offset)
    if opener in function_tags.OPENERS:
        return (yield from qwen_coder.parse_call(source, sink, tools, offset, wrapped=False, declared=True))
    return opener is not None and (
        yield from parse_block(
            source, sink, tools, opener, offset + len(opener), declared=opener != hermes.OPENER
        )
    )


def is_all(
    source: TextBuffer, tools: DeclaredFunctions, orphans: tuple[str, ...], limit: int
) -> ParseSteps[bool]:
    """Return whether the text from here to its end, of at most `limit` characters, is nothing but calls."""
    opener = yield from source.match_any((*function_tags.ENVELOPES, *function_tags.OPENERS))
    if opener is None or not (yield from _may_begin(source, tools, opener)):
        return False
    end = yield from source.read_until(_END_TAG, 0, limit)
    while end >= 0:
        offset, closed, closers = (
            end,
            False,
            (*function_tags.CLOSERS, *function_tags.OPENERS.values(), *orphans),
        )
        while (tag := (yield from source.match_any(closers, offset))) is not None:
            closed = closed or tag in function_tags.CLOSERS
            offset = yield from source.visible(offset + len(tag))
        if offset == len(source):
            return source.is_ended
        follows = yield from source.match_any((*function_tags.ENVELOPES, *function_tags.OPENERS), offset)
        if follows is None and closed:
            return False
        end = yield from source.read_until(_END_TAG, offset, limit)
    return False


def _may_begin(source: TextBuffer, tools: DeclaredFunctions, opener: str) -> ParseSteps[bool]:
    """Return whether the text after an opener can begin a call rather than prose."""
    start = yield from source.visible(len(opener))
    first = source.take_chunk(start, start + 1)
    started = first if opener in function_tags.ENVELOPES else function_tags.attribute(first)
    return first != "" and (
        (opener in function_tags.ENVELOPES and first in "{[<`") or tools.is_prefix(started)
    )
