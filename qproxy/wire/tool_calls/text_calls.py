"""A stage that turns calls written in a model's text or reasoning into calls.

The parser of one choice is a generator over the text (`text_buffer`). At a marker it tries the dialect that the next
characters select: a dialect belongs to a block, not to a stream (`hermes`, `qwen_coder`, `marker_words`; with a
profile `bare_json` and ReAct). A dialect that finds no call consumes nothing, and the marker is text.

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
from qproxy.wire.tool_calls import hermes, marker_words, qwen_coder
from qproxy.wire.tool_calls.code_fences import CodeFenceTracker
from qproxy.wire.tool_calls.emitter import DeclaredFunctions, EventEmitter
from qproxy.wire.tool_calls.finish_reason import KEPT_REASONS
from qproxy.wire.tool_calls.text_buffer import ParseSteps, TextBuffer

_MARKERS = (hermes.OPENER, hermes.CLOSER, qwen_coder.FUNCTION, marker_words.FLOWER_MARKERS.call)
_AFTER_LEGACY = (*_MARKERS, *marker_words.FLOWER_MARKERS.results)


class _ChoiceParser:
    """A parser for one choice, from text and reasoning to text, reasoning and call deltas."""

    def __init__(self, sink: EventEmitter, tools: DeclaredFunctions, *, react: bool, bare_json: bool) -> None:
        self.sink = sink
        self._tools = tools
        self._react = react
        self._bare = bare_json
        others = ("A" if react else "") + ("`" if bare_json else "")
        self._mark = re.compile(rf"<(?=[tf/]|\Z)|[✿{others}]")
        self._calls_at_start = -1
        """Number of calls before the active dialect; -1 if none is active."""
        self._legacy = False
        """Whether a call in marker words was read: a result's marker then begins invented text."""
        self._reasoning_ended = False
        """Whether a call has ended the inline reasoning; its closing tag is dropped."""
        self._start()

    def _start(self) -> None:
        """Start over at the start of a response or of reasoning, or after reasoning."""
        self._source = TextBuffer()
        self._blocks = CodeFenceTracker()
        self._literal_openers = 0
        self._reading: ParseSteps[None] | None = self._text()

    @property
    def _in_call(self) -> bool:
        return 0 <= self._calls_at_start < self.sink.calls

    def feed(self, item: TextDelta | ReasoningDelta) -> list[Event]:
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
            self._source.is_ended = True
            self._read()
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
        if self._bare:
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
        if self.sink.reasoning or not (
            source.may_start_with("{", start) or source.may_start_with("[", start)
        ):
            return False
        return (yield from bare_json_calls.read_answer(source, self.sink, self._tools))

    def _call(self) -> ParseSteps[bool]:
        """Read a call at the mark; return False, with nothing consumed, if it is text."""
        source, sink, tools, blocks = self._source, self.sink, self._tools, self._blocks
        strict = sink.reasoning
        if blocks.is_inside or blocks.last_char == "`" or (strict and not blocks.at_line_start):
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
        if marker == hermes.OPENER:
            return (yield from self._block(strict))
        if marker == qwen_coder.FUNCTION:
            return (yield from qwen_coder.parse_call(source, sink, tools, 0, wrapped=False, declared=True))
        if marker == hermes.CLOSER:
            return (yield from self._stray_closer())
        if marker is None or not blocks.at_line_start or strict:
            return False
        if marker in marker_words.FLOWER_MARKERS.results:
            yield from marker_words.discard_rest(source, sink)
            return True
        found = yield from marker_words.parse_call(source, sink, tools, marker_words.FLOWER_MARKERS)
        self._legacy = self._legacy or found
        return found

    def _block(self, strict: bool) -> ParseSteps[bool]:
        """Read JSON or tags after `<tool_call>`; return False if it is text."""
        source, sink, tools = self._source, self.sink, self._tools
        start = yield from source.visible(len(hermes.OPENER))
        if source.may_start_with("{", start) or source.may_start_with("[", start):
            found = yield from hermes.parse_call(source, sink, tools, start, declared=strict)
        elif (yield from source.match_any((qwen_coder.FUNCTION,), start)):
            found = yield from qwen_coder.parse_call(
                source, sink, tools, start, wrapped=True, declared=strict
            )
        else:
            found = False
        self._literal_openers += not found
        return found

    def _stray_closer(self) -> ParseSteps[bool]:
        """Drop an orphan closing tag right before another call."""
        if self._literal_openers:
            self._literal_openers -= 1
            return False
        source = self._source
        own_line = self._blocks.at_line_start or self.sink.holds_whitespace
        after = yield from source.visible(len(hermes.CLOSER))
        if not own_line or not (yield from source.match_any((hermes.OPENER,), after)):
            return False
        self.sink.repairs["closer_stray"] += 1
        source.consume(after)
        return True


class TextCallParser:
    """A stage that reads calls out of the text and reasoning of every choice."""

    def __init__(
        self, turn: Turn, repairs: Counter[str], *, react: bool = False, bare_json: bool = False
    ) -> None:
        self._turn = turn
        self._tools = DeclaredFunctions(turn)
        self._repairs = repairs
        self._react = react
        self._bare = bare_json
        self._parsers: dict[int, _ChoiceParser] = {}
        self._on_calls: set[int] = set()
        """Choices whose last event was a structured call: its next delta finds no held text."""

    def _reader(self, choice: int) -> _ChoiceParser:
        reader = self._parsers.get(choice)
        if reader is None:
            sink = EventEmitter(self._turn, choice, self._repairs)
            reader = _ChoiceParser(sink, self._tools, react=self._react, bare_json=self._bare)
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
            reader.finish(cut=cut)
            yield from reader.sink.drain()

    def close(self) -> Iterator[Event]:
        for choice in self._parsers:
            yield from self._end(choice, cut=True)
