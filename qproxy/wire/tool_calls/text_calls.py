"""Calls that a model wrote into its text, or into its thoughts, become calls.

The reader of one choice is a generator over the text (`source`); where a marker shows up it tries the dialect that
the next characters name: the dialect is a matter of each block, not of a stream (`hermes`, `coder`, `legacy`; with a
profile `bare` and ReAct).  A dialect that finds no call consumes nothing, and what looked like a marker is text.

Text stays text, byte for byte:
  * unless tools are declared and not forbidden (this stage is not there at all then);
  * inside Markdown fences, and where a backtick stands directly before the marker;
  * a bare `<function=NAME>` or flower word when NAME is not declared;
  * in thoughts, unless the marker begins a line and NAME is declared.

At most a marker's length is held back; blank text next to calls is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from qproxy.wire.events import Done, Event, Failed, Finish, Reasoning, Text, ToolCallDelta, Turn
from qproxy.wire.tool_calls import bare_json as bare
from qproxy.wire.tool_calls import hermes
from qproxy.wire.tool_calls import marker_words as legacy
from qproxy.wire.tool_calls import qwen_coder as coder
from qproxy.wire.tool_calls.code_fences import Fences
from qproxy.wire.tool_calls.emitter import Sink, Tools
from qproxy.wire.tool_calls.finish_reason import KEPT
from qproxy.wire.tool_calls.text_buffer import Reading, Source

_MARKERS = (hermes.OPENER, hermes.CLOSER, coder.FUNCTION, legacy.FLOWERS.call)
_AFTER_LEGACY = (*_MARKERS, *legacy.FLOWERS.results)


class _Reader:
    """One choice: text and thoughts in; text, thoughts and call deltas out."""

    def __init__(self, sink: Sink, tools: Tools, *, react: bool, bare_json: bool) -> None:
        self.sink = sink
        self._tools = tools
        self._react = react
        self._bare = bare_json
        others = ("A" if react else "") + ("`" if bare_json else "")
        self._mark = re.compile(rf"<(?=[tf/]|\Z)|[✿{others}]")
        self._calls_before = -1
        """Calls before the dialect that is reading; -1 when none is."""
        self._legacy = False
        """A call in marker words was read: a result's marker begins what the model invents."""
        self._thought_over = False
        """A call has ended the thought that stood in the text; its closing tag belongs to nobody."""
        self._begin()

    def _begin(self) -> None:
        """Read anew: from the start of an answer, of a thought, or of what follows one."""
        self._source = Source()
        self._fences = Fences()
        self._literal_openers = 0
        self._reading: Reading[None] | None = self._text()

    @property
    def _in_call(self) -> bool:
        return 0 <= self._calls_before < self.sink.calls

    def feed(self, item: Text | Reasoning) -> list[Event]:
        sink = self.sink
        inline = isinstance(item, Reasoning) and item.inline
        thought = isinstance(item, Reasoning) and not (inline and self._thought_over)
        if thought != sink.thought:
            if not self._in_call:
                self.over()
            sink.turn_to(thought, inline)
        plain = thought == isinstance(item, Reasoning) and not sink.holds_blank and self._idle
        if plain and self._mark.search(item.text) is None:
            self._fences.feed(item.text)
            return [*sink.drain(), item]
        if isinstance(item, Text) and isinstance(item.logprobs, dict):
            sink.logprobs += item.logprobs.get("content") or []
        self._source.push(item.text)
        self._read()
        self._thought_over = self._thought_over or (inline and not sink.thought)
        return sink.drain()

    def before_call(self) -> list[Event]:
        """A structured call comes: what was held is text, unless it is blank."""
        if not self._idle:
            self._source.ended = True
            self._read()
            self._begin()
        self.sink.before_call()
        self.sink.beside_calls = True
        return self.sink.drain()

    @property
    def _idle(self) -> bool:
        """Whether plain text is being read and none of it is held."""
        return self._calls_before < 0 and not len(self._source)

    def _read(self) -> None:
        if self._reading is not None:
            try:
                next(self._reading)
            except StopIteration:
                self._reading = None

    def over(self, *, cut: bool = False) -> None:
        """The end of this stretch of text: what was held is decided; blanks next to calls are dropped."""
        self._source.ended, self._source.cut = True, cut
        self._read()
        self.sink.over()
        self._begin()

    def _say(self, size: int) -> None:
        text = self._source.take(size)
        self._fences.feed(text)
        self.sink.said(text)

    def _text(self) -> Reading[None]:
        source = self._source
        if self._bare:
            yield from self._dialect(self._bare_answer())
        while True:
            mark = source.find(self._mark)
            if mark < 0:
                self._say(len(source))
                if not (yield from source.more()):
                    return
                continue
            self._say(mark)
            if not (yield from self._dialect(self._call())):
                self._say(1)

    def _dialect(self, reading: Reading[bool]) -> Reading[bool]:
        self._calls_before = self.sink.calls
        found = yield from reading
        self._calls_before = -1
        return found

    def _bare_answer(self) -> Reading[bool]:
        source = self._source
        start = yield from source.visible()
        if self.sink.thought or not (source.starts("{", start) or source.starts("[", start)):
            return False
        return (yield from bare.read_answer(source, self.sink, self._tools))

    def _call(self) -> Reading[bool]:
        """Read what begins at the mark; False, with nothing consumed, when it is text."""
        source, sink, tools, fences = self._source, self.sink, self._tools, self._fences
        strict = sink.thought
        if fences.inside or fences.last == "`" or (strict and not fences.line_start):
            return False
        if source.starts("`"):
            return fences.line_start and not strict and (yield from bare.read_fence(source, sink, tools))
        if source.starts("A"):
            marker = yield from source.which((legacy.REACT.call,))
            if marker is None or not fences.line_start or strict:
                return False
            return (yield from legacy.read(source, sink, tools, legacy.REACT))
        marker = yield from source.which(_AFTER_LEGACY if self._legacy else _MARKERS)
        if marker == hermes.OPENER:
            return (yield from self._block(strict))
        if marker == coder.FUNCTION:
            return (yield from coder.read(source, sink, tools, 0, wrapped=False, declared=True))
        if marker == hermes.CLOSER:
            return (yield from self._stray())
        if marker is None or not fences.line_start or strict:
            return False
        if marker in legacy.FLOWERS.results:
            yield from legacy.swallow(source, sink)
            return True
        found = yield from legacy.read(source, sink, tools, legacy.FLOWERS)
        self._legacy = self._legacy or found
        return found

    def _block(self, strict: bool) -> Reading[bool]:
        """What stands after `<tool_call>`: JSON, tags, or text."""
        source, sink, tools = self._source, self.sink, self._tools
        start = yield from source.visible(len(hermes.OPENER))
        if source.starts("{", start) or source.starts("[", start):
            found = yield from hermes.read(source, sink, tools, start, declared=strict)
        elif (yield from source.which((coder.FUNCTION,), start)):
            found = yield from coder.read(source, sink, tools, start, wrapped=True, declared=strict)
        else:
            found = False
        self._literal_openers += not found
        return found

    def _stray(self) -> Reading[bool]:
        """A closing tag that closes nothing is swallowed right before another call."""
        if self._literal_openers:
            self._literal_openers -= 1
            return False
        source = self._source
        own_line = self._fences.line_start or self.sink.holds_blank
        after = yield from source.visible(len(hermes.CLOSER))
        if not own_line or not (yield from source.which((hermes.OPENER,), after)):
            return False
        self.sink.repairs["closer_stray"] += 1
        source.take(after)
        return True


class WrittenCalls:
    """The stage."""

    def __init__(
        self, turn: Turn, repairs: Counter[str], *, react: bool = False, bare_json: bool = False
    ) -> None:
        self._turn = turn
        self._tools = Tools(turn)
        self._repairs = repairs
        self._react = react
        self._bare = bare_json
        self._readers: dict[int, _Reader] = {}
        self._at_calls: set[int] = set()
        """Choices whose last event was of a structured call: the next piece of one finds nothing held."""

    def _reader(self, choice: int) -> _Reader:
        reader = self._readers.get(choice)
        if reader is None:
            sink = Sink(self._turn, choice, self._repairs)
            reader = _Reader(sink, self._tools, react=self._react, bare_json=self._bare)
            self._readers[choice] = reader
        return reader

    def feed(self, item: Event) -> Iterable[Event]:
        if isinstance(item, ToolCallDelta):
            if item.choice in self._at_calls:
                return (item,)
            self._at_calls.add(item.choice)
            return [*self._reader(item.choice).before_call(), item]
        if isinstance(item, Text | Reasoning):
            self._at_calls.discard(item.choice)
            return self._reader(item.choice).feed(item)
        return self._other(item)

    def _other(self, item: Event) -> Iterator[Event]:
        if isinstance(item, Finish) and item.reason not in ("", "null"):
            kept = item.reason in (*KEPT, "error_finish")
            yield from self._end(item.choice, cut=kept)
            reader = self._readers.pop(item.choice, None)
            if reader is not None and reader.sink.truncated and not kept:
                item = Finish("length", item.choice)
        elif isinstance(item, Done):
            for choice, reader in self._readers.items():
                yield from self._end(choice, cut=False)
                if reader.sink.truncated:
                    yield Finish("length", choice)
        elif isinstance(item, Failed):
            yield from self.close()
        yield item

    def _end(self, choice: int, *, cut: bool) -> Iterator[Event]:
        reader = self._readers.get(choice)
        if reader is not None:
            reader.over(cut=cut)
            yield from reader.sink.drain()

    def close(self) -> Iterator[Event]:
        for choice in self._readers:
            yield from self._end(choice, cut=True)
