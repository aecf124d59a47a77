"""Blocks of calls: an envelope such as `<tool_call>` around JSON, tags, Python or another envelope.

The text after the envelope selects the dialect. `<tool_call>` may hold undeclared functions, because no prose
continues it like a call; every other envelope is read only if all that it holds is calls of declared
functions.
"""

from __future__ import annotations

from qproxy.wire.tool_calls import bare_json, function_tags, hermes, named_calls, qwen_coder
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer


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
    start = yield from source.visible(offset)
    inner = yield from source.match_any((*function_tags.ENVELOPES, *function_tags.OPENERS), start)
    if inner in function_tags.OPENERS:
        return (yield from qwen_coder.parse_call(source, sink, tools, start, wrapped=True, declared=declared))
    if inner is not None:
        if inner != hermes.OPENER or envelope == hermes.OPENER:
            return False
        return (yield from parse_block(source, sink, tools, inner, start + len(inner), declared=True))
    if source.may_start_with("{", start) or source.may_start_with("[", start):
        if envelope != hermes.OPENER:
            return (yield from bare_json.read_element(source, sink, tools, start, f"</{envelope[1:]}"))
        if (yield from hermes.parse_call(source, sink, tools, start, declared=declared)):
            return True
    return envelope == hermes.OPENER and (yield from named_calls.parse_call(source, sink, tools, start))


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


def may_begin(source: TextBuffer, tools: DeclaredFunctions, offset: int) -> ParseSteps[bool]:
    """Return whether the text at `offset`, right after an envelope, can begin a call rather than prose."""
    start = yield from source.visible(offset)
    first = source.take_chunk(start, start + 1)
    return first != "" and (first in "{[<" or tools.is_prefix(first))
