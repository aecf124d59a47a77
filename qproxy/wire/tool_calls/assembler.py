"""Structured tool-call deltas: turn whatever an upstream sent into calls that obey OpenAI's contract.

Servers reuse indices, omit them, send empty, late, repeated and missing ids, repeat names, replay whole arguments,
or send everything so far each time. The entry and the state of the calls decide which call an entry belongs to, in
one step (`_Choice.route`):

  * a known id selects its call, unless it comes with another index and a name, or with another name after the
    arguments (the id was used twice);
  * an unknown id opens a call, or is adopted by a waiting one that has none yet;
  * without an id the index selects the *latest* call opened on it; without an index the latest call is selected;
    a name that is not just repeated opens a new call.

`arguments` decides which part of a delta is new. Each entry costs the same, however many came before.

A header is held until its name is settled, because a name may come in two deltas. Calls leave one after the other:
clients, openai-python's stream helper among them, take a call for complete when the next one begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from qproxy.wire import json_codec, storable
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import (
    ChoiceFinished,
    Event,
    RawToolCallDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
)
from qproxy.wire.tool_calls.arguments import ArgumentsAccumulator
from qproxy.wire.tool_calls.finish_reason import KEPT_REASONS

MAX_HELD = 8 * 1024 * 1024
"""Characters of arguments held for a call without a name, or until the call before it is complete."""


class _Call:
    """One call of one choice."""

    def __init__(self, upstream_index: int | None, upstream_id: str | None, repairs: Counter[str]) -> None:
        self.upstream_index = upstream_index
        self.upstream_id = upstream_id
        """The id that the upstream sent, even if another call already has it."""
        self.name = ""
        self.index = -1
        """The client's index; -1 until the header has been sent."""
        self.arguments = ArgumentsAccumulator(repairs)
        self.from_text = False
        self.finished = False
        """Whether no more of it will come, complete or not."""
        self.announced_twice = False
        """Whether its name came again after its arguments were complete: a repetition, or another such
        call.
        """
        self.repeats_name = False
        """Whether its name has come again in the middle, so that a repeated name has no meaning."""

    @property
    def sent(self) -> bool:
        return self.index >= 0

    @property
    def ended(self) -> bool:
        return self.finished or self.arguments.is_complete


class _Choice:
    """The calls of one choice."""

    def __init__(self, number: int, turn: Turn, names: Sequence[str], repairs: Counter[str]) -> None:
        self.number = number
        self.turn = turn
        self.names = names
        self.repairs = repairs
        self.calls: list[_Call] = []
        self.held: _Call | None = None
        """The call whose name may not be settled; there is at most one."""
        self.sent: list[_Call] = []
        """The calls whose header has been sent, by client index."""
        self.current = 0
        """Index of the call that is passed through; those after it wait in `queue`."""
        self.queue: dict[int, list[Event]] = {}
        self.queued_size = 0
        self.ids: set[str] = set()
        self.by_id: dict[str, _Call] = {}
        self.latest_by_index: dict[int, _Call] = {}

    def feed(self, delta: RawToolCallDelta) -> Iterable[Event]:
        piece = delta.arguments
        has_content = delta.id or delta.name or delta.from_text or self.queue or self.held is not None
        call = None if has_content or delta.index is None else self.latest_by_index.get(delta.index)
        in_turn = call is not None and call.index == self.current and not self.sent[-1].from_text
        if call is not None and in_turn and isinstance(piece, str) and call.arguments.continues(piece):
            return (ToolCallArgumentsDelta(call.index, piece, self.number),)  # the usual case
        return self._in_order(self._text_call(delta) if delta.from_text else self._entry(delta))

    def _in_order(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield one call after the other: clients take a call for complete when another begins, whatever
        its index.
        """
        for event in events:
            if isinstance(event, ToolCallStart | ToolCallArgumentsDelta) and event.index > self.current:
                self.queue.setdefault(event.index, []).append(event)
                self.queued_size += len(event.text) if isinstance(event, ToolCallArgumentsDelta) else 0
            else:
                yield event
        while self.queue and (self.sent[self.current].ended or self.queued_size > MAX_HELD):
            self.current += 1
            yield from self.queue.pop(self.current, ())
        if not self.queue:
            self.queued_size = 0

    def _entry(self, delta: RawToolCallDelta) -> Iterator[Event]:
        yield from self._end_written_call()
        name = (delta.name or "").strip()
        piece = self._delta(delta.arguments)
        id_ = (delta.id or "").strip() or None
        if id_ is None and not name and not piece.strip():
            call = self._call_for(delta.index)
            if call is None or not piece or not call.arguments.size or call.arguments.is_complete:
                self.repairs["blank_entry"] += 1
                return
        call = self.route(delta.index, id_, name, piece.strip())
        if name:
            self._with_name(call, name)
        if self.held is not call:
            yield from self._settle()
        yield from self._grow(call, piece)
        self.held = call if call.name and not call.sent else None

    def _grow(self, call: _Call, piece: str) -> Iterator[Event]:
        if call.name and (piece or self._final(call.name)):
            yield from self._header(call)
        new = call.arguments.add(piece) if piece else ""
        if call.sent and new:
            yield ToolCallArgumentsDelta(call.index, new, self.number)
        elif call.arguments.size > MAX_HELD and not call.sent:
            yield _unnamed_error()

    def _text_call(self, delta: RawToolCallDelta) -> Iterator[Event]:
        """Pass on a call that was read from text: its deltas are exact and not checked for repetitions."""
        yield from self._settle()
        call = self.by_id.get(delta.id or "") or self._open(None, delta.id)
        if delta.name:
            call.name = delta.name
            yield from self._end_written_call()
            yield from self._header(call)
            call.from_text = True
        if delta.arguments:
            yield ToolCallArgumentsDelta(call.index, call.arguments.append(delta.arguments), self.number)

    def _end_written_call(self) -> Iterator[Event]:
        """End the written call before another one begins."""
        if self.sent and self.sent[-1].from_text:
            self.sent[-1].finished = True
            yield from self._fill(self.sent[-1])

    def _fill(self, call: _Call) -> Iterator[Event]:
        """Yield `{}` for a call without arguments."""
        if call.arguments.is_empty:
            self.repairs["arguments_missing"] += 1
            yield ToolCallArgumentsDelta(call.index, call.arguments.append("{}"), self.number)

    def _delta(self, arguments: object) -> str:
        if arguments is None or isinstance(arguments, str):
            return arguments or ""
        self.repairs["arguments_object"] += 1
        return json_codec.dumps(arguments).decode()

    def _call_for(self, index: int | None) -> _Call | None:
        """Return the call that an entry without an id belongs to."""
        if index is None:
            return self.calls[-1] if self.calls else None
        return self.latest_by_index.get(index)

    def route(self, index: int | None, id_: str | None, name: str, piece: str) -> _Call:
        """Return the call that an entry with these arguments belongs to; open one if it is new."""
        if index is None:
            self.repairs["index_missing"] += 1
        waiting = self._call_for(index)
        if id_ is None:
            return self._without_id(index, waiting, name, piece)
        if id_ in self.by_id:
            return self._by_id(index, id_, waiting, name)
        if waiting is not None and self._adopts(waiting, name):
            waiting.upstream_id = id_
            self.by_id[id_] = waiting
            self.repairs["id_late"] += 1
            return waiting
        if waiting is not None and index is not None:
            self.repairs["index_reused"] += 1
        return self._open(index, id_)

    def _by_id(self, index: int | None, id_: str, waiting: _Call | None, name: str) -> _Call:
        call = waiting if waiting is not None and waiting.upstream_id == id_ else self.by_id[id_]
        elsewhere = call is not waiting and index is not None and index != call.upstream_index
        if not name or not (elsewhere or self._is_another(call, name)):
            return call
        self.repairs["id_duplicate"] += 1
        return self._open(index, id_)

    def _is_another(self, call: _Call, name: str) -> bool:
        """Return whether this cannot be the call's name: it has another one, and no incomplete arguments."""
        is_incomplete = not call.arguments.is_empty and not call.arguments.is_complete
        return (
            bool(call.name)
            and name != call.name
            and not is_incomplete
            and not self._continues_name(call, name)
        )

    def _without_id(self, index: int | None, waiting: _Call | None, name: str, piece: str) -> _Call:
        if waiting is None:
            return self._open(index, None)
        if name and waiting.name and not self._continues_name(waiting, name):
            replayed = waiting.repeats_name and piece == waiting.arguments.text.strip()
            repeated = name == waiting.name and (waiting.arguments.cumulative or not piece or replayed)
            if not repeated:
                return self._open(index, None)
            waiting.announced_twice = not piece
        elif waiting.announced_twice and piece:
            again = self._open(index, None)
            again.name = waiting.name
            return again
        return waiting

    def _adopts(self, call: _Call, name: str) -> bool:
        """Return whether an unknown id belongs to this call without an id."""
        if call.upstream_id is not None or call.arguments.is_complete:
            return False
        return not name or not call.name or name == call.name

    def _continues_name(self, call: _Call, name: str) -> bool:
        if call.arguments.is_complete:
            return False
        if name == call.name:
            return True
        return not call.sent and not call.arguments.size and self._joins(call.name, name)

    def _joins(self, first: str, second: str) -> bool:
        """Return whether two pieces form (the start of) a declared name and the first alone is not
        declared.
        """
        joined = first + second
        return first not in self.names and any(known.startswith(joined) for known in self.names)

    def _open(self, index: int | None, id_: str | None) -> _Call:
        call = _Call(index, id_, self.repairs)
        self.calls.append(call)
        if index is not None:
            self.latest_by_index[index] = call
        if id_ is not None:
            self.by_id.setdefault(id_, call)
        return call

    def _with_name(self, call: _Call, name: str) -> None:
        if not call.name:
            call.name = name
        elif call.sent or name == call.name:
            call.repeats_name = True
            self.repairs["name_repeated"] += 1
        elif self._joins(call.name, name):
            self.repairs["name_joined"] += 1
            call.name += name
        elif name.startswith(call.name):
            call.name = name

    def _final(self, name: str) -> bool:
        """Return whether a name is settled: it is declared, and no longer declared name begins with it."""
        return name in self.names and not any(n != name and n.startswith(name) for n in self.names)

    def _settle(self) -> Iterator[Event]:
        """Send the held header, because another entry or the end has come."""
        if self.held is not None:
            yield from self._header(self.held)
            self.held = None

    def _header(self, call: _Call) -> Iterator[Event]:
        if call.sent:
            return
        call.index = len(self.sent)
        self.sent.append(call)
        if call.upstream_index is not None and call.upstream_index != call.index:
            self.repairs["index_gap"] += 1
        id_ = None if call.upstream_id is None else storable.storable_text(call.upstream_id)
        if id_ is None or id_ in self.ids:
            self.repairs["id_missing"] += 1
            id_ = self.turn.call_id(self.number, call.index)
        self.ids.add(id_)
        yield ToolCallStart(call.index, id_, storable.storable_text(call.name), self.number)
        if call.arguments.text:  # arguments that came before the name
            yield ToolCallArgumentsDelta(call.index, call.arguments.text, self.number)

    def release(self, *, fill: bool = False) -> Iterator[Event]:
        """Yield held names, arguments and calls at the end or a failure; with `fill`, `{}` for missing
        arguments.
        """
        held = list(self._settle())
        for call in self.sent:
            rest = call.arguments.close()
            held += [ToolCallArgumentsDelta(call.index, rest, self.number)] if rest else []
        yield from self._in_order(held)
        for call in self.sent[self.current :]:
            yield from self.queue.pop(call.index, ())
            if fill:
                yield from self._fill(call)
        self.current = len(self.sent)

    def end(self, reason: str) -> Iterator[Event]:
        """End every call and yield the finish reason; truncated calls are not filled."""
        yield from self.release(fill=reason not in KEPT_REASONS)
        if len(self.calls) > len(self.sent):
            self.repairs["nameless_call"] += len(self.calls) - len(self.sent)
        if self.calls and not self.sent:
            yield _unnamed_error()
        elif reason not in KEPT_REASONS and any(call.arguments.truncate for call in self.sent):
            self.repairs["finish_truncated"] += 1
            yield ChoiceFinished("length", self.number)
        else:
            yield ChoiceFinished(reason, self.number)


def _unnamed_error() -> StreamFailed:
    message = "The upstream sent a tool call without a name."
    return StreamFailed(UpstreamError(message, code="upstream_invalid_response"))


class ToolCallAssembler:
    """A stage from `RawToolCallDelta` to `ToolCallStart` and `ToolCallArgumentsDelta`; other events pass in
    order.
    """

    def __init__(self, turn: Turn, repairs: Counter[str]) -> None:
        self._turn = turn
        self._names = turn.tool_names()
        self._repairs = repairs
        self._choices: dict[int, _Choice] = {}
        self._ended: set[int] = set()

    def feed(self, item: Event) -> Iterable[Event]:
        if isinstance(item, TextDelta):
            return (item,)
        if isinstance(item, RawToolCallDelta):
            choice = self._choices.get(item.choice)
            if choice is None:
                if item.choice in self._ended:
                    self._repairs["after_finish"] += 1
                    return ()
                choice = _Choice(item.choice, self._turn, self._names, self._repairs)
                self._choices[item.choice] = choice
            return choice.feed(item)
        return self._other(item)

    def _other(self, item: Event) -> Iterator[Event]:
        if isinstance(item, ChoiceFinished) and item.reason not in ("", "null", "error_finish"):
            self._ended.add(item.choice)
            if item.choice in self._choices:
                yield from self._choices.pop(item.choice).end(item.reason)
                return
        if isinstance(item, StreamFailed):
            for choice in self._choices.values():
                yield from choice.release()
        elif isinstance(item, StreamDone):
            while self._choices:
                yield from self._choices.popitem()[1].end("tool_calls")
        yield item

    def close(self) -> Iterator[Event]:
        """Pass on what came before the stream was cut; the error that follows reports the loss."""
        for choice in self._choices.values():
            yield from choice.release()
