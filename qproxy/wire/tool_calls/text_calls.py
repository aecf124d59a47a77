"""A stage that turns calls written in a model's text or reasoning into calls.

The parser of one choice is a generator over the text (`text_buffer`). At a marker it tries the dialect that
the next characters select: a dialect belongs to a block, not to a stream (`hermes`, `qwen_coder`,
`marker_words`; with a profile `bare_json` and ReAct). A dialect that finds no call consumes nothing, and the
marker is text.

Text stays text, byte for byte:
  * unless tools are declared and allowed (otherwise this stage does not exist);
  * inside Markdown code blocks, and directly after a backtick;
  * for a bare `<function=NAME>` or flower word whose NAME is not declared;
  * in reasoning, unless the marker begins a line and NAME is declared.

At most a marker's length is held; whitespace next to calls is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from qproxy.wire.events import (
    ChoiceFinished,
    Event,
    RawToolCallDelta,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    Turn,
)
from qproxy.wire.tool_calls import bare_json as bare_json_calls
from qproxy.wire.tool_calls import call_blocks, function_tags, hermes, marker_words, qwen_coder
from qproxy.wire.tool_calls.code_fences import CodeFenceTracker
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.finish_reason import KEPT_REASONS
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

_ORPHANS = (
    *function_tags.CLOSERS, function_tags.END_FUNCTION, function_tags.END_PARAMETER, "</invoke>",
    "</function_invocation>", "</arguments>", "</parameters>", "</think>", "<|im_end|>", "<|endoftext|>",
)  # fmt: skip
"""Closing tags and end tokens that servers leave beside calls."""
_MARKERS = (
    *function_tags.ENVELOPES,
    *function_tags.OPENERS,
    *_ORPHANS,
    marker_words.FLOWER_MARKERS.call,
)
MAX_ORPHANS = 16
"""Orphan tags in a row that are held before a call; more are text."""
MAX_THOUGHT_CALL = 64 * 1024
"""Characters of a call in the middle of a line of reasoning, held to see whether it ends the response."""
_AFTER_LEGACY = (*_MARKERS, *marker_words.FLOWER_MARKERS.results)


class _ChoiceParser:
    """A parser for one choice, from text and reasoning to text, reasoning and call deltas."""

    def __init__(
        self,
        sink: EventEmitter,
        tools: DeclaredFunctions,
        forced: str | None,
        *,
        react: bool,
        bare_json: bool,
        is_forced: bool,
    ) -> None:
        self.sink = sink
        self._tools = tools
        self._react = react
        self._bare = bare_json
        self._forced = forced
        self._is_forced = is_forced
        others = ("A" if react else "") + ("`" if bare_json else "")
        self._mark = re.compile(rf"<(?=[tfi/|]|\Z)|[✿{others}]")
        self._calls_at_start = -1
        """Number of calls before the active dialect; -1 if none is active."""
        self._legacy = False
        """Whether a call in marker words was read: a result's marker then begins invented text."""
        self._reasoning_ended = False
        """Whether a call has ended the inline reasoning; its closing tag is dropped."""
        self._call_follows = False
        """Whether a structured call ends the text, so that orphan tags at its end are dropped."""
        self._blank: list[TextDelta] = []
        self._answer_ended = False
        """Whether the response has ended, rather than only this stretch of its text."""
        self._start()

    def _start(self) -> None:
        """Start over at the start of a response or of reasoning, or after reasoning."""
        self._source = TextBuffer()
        self._blocks = CodeFenceTracker()
        self._literal_openers = 0
        self._example = False
        """Whether an envelope within a line of reasoning is open, whose calls are text as well."""
        self._reading: ParseSteps[None] | None = self._text()

    @property
    def _in_call(self) -> bool:
        return 0 <= self._calls_at_start < self.sink.calls

    def feed(self, item: TextDelta | ReasoningDelta) -> list[Event]:
        """Return the events of more text. A blank text waits while it is open whether the reasoning ends in a
        call."""
        if self.sink.reasoning and not self._scan and isinstance(item, TextDelta) and not item.text.strip():
            self._blank.append(item)
            return []
        if not self._blank:
            return self._feed(item)
        blank, self._blank = self._blank, []
        return [event for one in (*blank, item) for event in self._feed(one)]

    def _feed(self, item: TextDelta | ReasoningDelta) -> list[Event]:
        sink = self.sink
        inline = isinstance(item, ReasoningDelta) and item.inline
        thought = isinstance(item, ReasoningDelta) and not (inline and self._reasoning_ended)
        if thought != sink.reasoning:
            if not self._in_call:
                self.finish()
            sink.switch_to(thought, inline)
        plain = thought == isinstance(item, ReasoningDelta) and not sink.holds_whitespace and self._scan
        if plain and self._mark.search(item.text) is None:
            self._blocks.feed(item.text)
            return [*sink.drain(), item]
        if isinstance(item, TextDelta) and isinstance(item.logprobs, dict):
            sink.logprobs += item.logprobs.get("content") or []
        self._source.push(item.text)
        self._read()
        self._reasoning_ended = self._reasoning_ended or (inline and not sink.reasoning)
        return sink.drain()

    def before_call(self) -> list[Event]:
        """Release the held text before a structured call, unless it is whitespace."""
        if not self._scan:
            self._source.is_ended = self._call_follows = True
            self._read()
            self._call_follows = False
            self._start()
        self.sink.before_call()
        self.sink.beside_calls = True
        return self.sink.drain()

    @property
    def _scan(self) -> bool:
        """Return whether plain text is being read and none of it is held."""
        return self._calls_at_start < 0 and not len(self._source)

    def _read(self) -> None:
        if self._reading is not None:
            try:
                next(self._reading)
            except StopIteration:
                self._reading = None

    def end(self, *, cut: bool) -> None:
        """End the response."""
        self._answer_ended = True
        before = self.sink.calls
        self.finish(cut=cut)
        if self._blank and self.sink.calls == before:
            self.sink.switch_to(thought=False, inline=False)
            self.sink.emit_text("".join(item.text for item in self._blank))
            self.finish(cut=cut)

    def finish(self, *, cut: bool = False) -> None:
        """End this stretch of text: decide on held text; whitespace next to calls is dropped."""
        self._source.is_ended, self._source.truncated = True, cut
        self._read()
        self.sink.finish()
        self._start()

    def _emit_text(self, size: int) -> None:
        text = self._source.consume(size)
        self._blocks.feed(text)
        self.sink.emit_text(text)

    def _text(self) -> ParseSteps[None]:
        source = self._source
        if self._bare and (self._is_forced or not self.sink.reasoning):
            yield from self._dialect(self._bare_json())
        while True:
            mark = source.find(self._mark)
            if mark < 0:
                self._emit_text(len(source))
                if not (yield from source.has_more()):
                    return
                continue
            self._emit_text(mark)
            if not (yield from self._dialect(self._call())):
                self._emit_text(1)

    def _dialect(self, reading: ParseSteps[bool]) -> ParseSteps[bool]:
        self._calls_at_start = self.sink.calls
        found = yield from reading
        self._calls_at_start = -1
        return found

    def _bare_json(self) -> ParseSteps[bool]:
        source = self._source
        start = yield from source.visible()
        firsts = ("{", "[", "`") if self._is_forced else ("{", "[")
        if not any(source.may_start_with(first, start) for first in firsts):
            return False
        if self.sink.reasoning:  # a forced call that is all of a response may stand in its reasoning
            while (yield from source.has_more()):
                if len(source) > bare_json_calls.MAX_HELD:
                    return False
            if not self._answer_ended:
                return False
        return (yield from bare_json_calls.read_answer(source, self.sink, self._tools, self._forced))

    def _call(self) -> ParseSteps[bool]:
        """Read a call at the mark; return False, with nothing consumed, if it is text."""
        source, sink, tools, blocks = self._source, self.sink, self._tools, self._blocks
        strict = sink.reasoning
        if blocks.is_inside or blocks.is_quoted:
            return False
        if strict and not blocks.at_line_start:
            is_all = yield from call_blocks.is_all(source, tools, _ORPHANS, MAX_THOUGHT_CALL)
            if not (is_all and self._answer_ended):
                yield from self._track_example()
                return False
        if strict and self._example and (yield from self._is_in_example()):
            return False
        if source.may_start_with("`"):
            return (
                blocks.at_line_start
                and not strict
                and (yield from bare_json_calls.read_fence(source, sink, tools))
            )
        if source.may_start_with("A"):
            marker = yield from source.match_any((marker_words.REACT.call,))
            if marker is None or not blocks.at_line_start or strict:
                return False
            return (yield from marker_words.parse_call(source, sink, tools, marker_words.REACT))
        marker = yield from source.match_any(_AFTER_LEGACY if self._legacy else _MARKERS)
        if marker in function_tags.ENVELOPES:
            found = yield from call_blocks.parse_block(
                source, sink, tools, marker, len(marker), declared=strict or marker != hermes.OPENER
            )
            self._literal_openers += marker == hermes.OPENER and not found
            return found
        if marker in function_tags.OPENERS:
            return (yield from qwen_coder.parse_call(source, sink, tools, 0, wrapped=False, declared=True))
        if marker in _ORPHANS:
            return (yield from self._orphans(marker))
        if marker is None and sink.after_call and function_tags.partial_marker(source, _ORPHANS, 0):
            source.consume(len(source))
            return True
        if marker is None or not blocks.at_line_start or strict:
            return False
        if marker in marker_words.FLOWER_MARKERS.results:
            yield from marker_words.discard_rest(source, sink)
            return True
        found = yield from marker_words.parse_call(source, sink, tools, marker_words.FLOWER_MARKERS)
        self._legacy = self._legacy or found
        return found

    def _track_example(self) -> ParseSteps[None]:
        """Note the begin and the end of an envelope in a line of reasoning that directly holds a call."""
        source = self._source
        marker = yield from source.match_any((*function_tags.ENVELOPES, *function_tags.CLOSERS))
        if marker in function_tags.CLOSERS:
            self._example = False
        elif marker is not None:
            start = yield from source.visible(len(marker))
            self._example = (yield from source.match_any(tuple(function_tags.OPENERS), start)) is not None

    def _is_in_example(self) -> ParseSteps[bool]:
        """Return whether the tag at a line's start is within such an envelope; another envelope ends it."""
        marker = yield from self._source.match_any((*function_tags.ENVELOPES, *function_tags.CLOSERS))
        self._example = marker is None
        return marker not in function_tags.ENVELOPES

    def _orphans(self, marker: str) -> ParseSteps[bool]:
        """Drop tags that close nothing beside a call: after one at once, before one when it has come."""
        source, sink = self._source, self.sink
        if sink.after_call:
            sink.repairs["closer_stray"] += 1
            source.consume(len(marker))
            return True
        if marker == hermes.CLOSER and self._literal_openers:
            self._literal_openers -= 1
            return False
        on_its_own = self._blocks.at_line_start or sink.holds_whitespace or marker.startswith("<|")
        if sink.reasoning or not on_its_own:
            return False
        offset = 0
        for _ in range(MAX_ORPHANS):
            tag = yield from source.match_any(_ORPHANS, offset)
            if tag is None:
                break
            offset = yield from source.visible(offset + len(tag))
        if (yield from call_blocks.parse_at(source, sink, self._tools, offset)):
            sink.repairs["closer_stray"] += 1
            return True
        if not self._call_follows or offset < len(source):
            return False
        sink.repairs["closer_stray"] += 1
        source.consume(offset)
        return True


def _forced_name(turn: Turn) -> str | None:
    """Return the function that the client forced, if it named one."""
    function = turn.tool_choice.get("function") if isinstance(turn.tool_choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


class TextCallParser:
    """A stage that reads calls out of the text and reasoning of every choice."""

    def __init__(
        self, turn: Turn, repairs: Counter[str], *, react: bool = False, bare_json: bool = False
    ) -> None:
        self._turn = turn
        self._tools = DeclaredFunctions(turn)
        self._repairs = repairs
        self._react = react
        self._is_forced = turn.tool_choice == "required" or isinstance(turn.tool_choice, dict)
        self._bare = bare_json or self._is_forced
        self._forced = _forced_name(turn)
        self._parsers: dict[int, _ChoiceParser] = {}
        self._on_calls: set[int] = set()
        """Choices whose last event was a structured call: its next delta finds no held text."""

    def _reader(self, choice: int) -> _ChoiceParser:
        reader = self._parsers.get(choice)
        if reader is None:
            sink = EventEmitter(self._turn, choice, self._repairs)
            reader = _ChoiceParser(
                sink,
                self._tools,
                self._forced,
                react=self._react,
                bare_json=self._bare,
                is_forced=self._is_forced,
            )
            self._parsers[choice] = reader
        return reader

    def feed(self, item: Event) -> Iterable[Event]:
        if isinstance(item, RawToolCallDelta):
            if item.choice in self._on_calls:
                return (item,)
            self._on_calls.add(item.choice)
            return [*self._reader(item.choice).before_call(), item]
        if isinstance(item, TextDelta | ReasoningDelta):
            self._on_calls.discard(item.choice)
            return self._reader(item.choice).feed(item)
        return self._other(item)

    def _other(self, item: Event) -> Iterator[Event]:
        if isinstance(item, ChoiceFinished) and item.reason not in ("", "null"):
            kept = item.reason in (*KEPT_REASONS, "error_finish")
            yield from self._end(item.choice, cut=kept)
            reader = self._parsers.pop(item.choice, None)
            if reader is not None and reader.sink.truncated and not kept:
                item = ChoiceFinished("length", item.choice)
        elif isinstance(item, StreamDone):
            for choice, reader in self._parsers.items():
                yield from self._end(choice, cut=False)
                if reader.sink.truncated:
                    yield ChoiceFinished("length", choice)
        elif isinstance(item, StreamFailed):
            yield from self.close()
        yield item

    def _end(self, choice: int, *, cut: bool) -> Iterator[Event]:
        reader = self._parsers.get(choice)
        if reader is not None:
            reader.end(cut=cut)
            yield from reader.sink.drain()

    def close(self) -> Iterator[Event]:
        for choice in self._parsers:
            yield from self._end(choice, cut=True)
