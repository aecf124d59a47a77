"""Structured tool-call deltas: from whatever an upstream sent to calls that obey OpenAI's contract.

Servers reuse indices, leave them out, send empty, late, repeated and missing ids, repeat names, replay whole
arguments, or send everything so far each time.  Which call an entry belongs to is decided by the entry and the
state of the calls so far, in one step (`_Choice.route`):

  * a known id names its call, unless it comes with another index and a name, or with another name after the
    arguments (the id was used twice);
  * an unknown id opens a call, or is adopted by a waiting one that has none yet;
  * without an id the index leads to the *latest* call opened on it, without an index the latest call is meant;
    a name that is not just repeated opens a new call.

What of each piece of arguments is new is `arguments`' question.  Each entry costs the same, however many came before.

A header is held until its name is settled: a name may come in two pieces.  And calls leave one after the other:
clients, openai-python's stream helper among them, take a call for whole when they see the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from qproxy.wire import json_codec as jsontext
from qproxy.wire import storable
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import Arguments, Done, Event, Failed, Finish, Text, ToolCall, ToolCallDelta, Turn
from qproxy.wire.tool_calls.arguments import Received
from qproxy.wire.tool_calls.finish_reason import KEPT

MAX_HELD = 8 * 1024 * 1024
"""Characters of arguments that are held for a call without a name, or until a call before it is complete."""


class _Call:
    """One call of one choice."""

    def __init__(self, upstream_index: int | None, said_id: str | None, repairs: Counter[str]) -> None:
        self.upstream_index = upstream_index
        self.said_id = said_id
        """The id that the upstream gave it, also where another call has it already."""
        self.name = ""
        self.index = -1
        """Ours; -1 until the header has gone out."""
        self.arguments = Received(repairs)
        self.written = False
        self.over = False
        """No more of it will come, complete or not."""
        self.announced_again = False
        """Its name came once more after its arguments were complete: a repetition, or another such call."""
        self.repeats_name = False
        """Its name has come again in the middle: that it comes says nothing."""

    @property
    def sent(self) -> bool:
        return self.index >= 0

    @property
    def ended(self) -> bool:
        return self.over or self.arguments.complete


class _Choice:
    """The calls of one choice."""

    def __init__(self, number: int, turn: Turn, names: Sequence[str], repairs: Counter[str]) -> None:
        self.number = number
        self.turn = turn
        self.names = names
        self.repairs = repairs
        self.calls: list[_Call] = []
        self.held: _Call | None = None
        """The call whose name may not be settled; there is never more than one."""
        self.sent: list[_Call] = []
        """The calls whose header is made, by our index."""
        self.speaking = 0
        """Index of the call that leaves as it comes; those after it wait in `queued`."""
        self.queued: dict[int, list[Event]] = {}
        self.queued_size = 0
        self.ids: set[str] = set()
        self.by_id: dict[str, _Call] = {}
        self.latest_on: dict[int, _Call] = {}

    def feed(self, delta: ToolCallDelta) -> Iterable[Event]:
        piece = delta.arguments
        said = delta.id or delta.name or delta.written or self.queued or self.held is not None
        call = None if said or delta.index is None else self.latest_on.get(delta.index)
        in_turn = call is not None and call.index == self.speaking and not self.sent[-1].written
        if call is not None and in_turn and isinstance(piece, str) and call.arguments.goes_on(piece):
            return (Arguments(call.index, piece, self.number),)  # what nearly every one is
        return self._in_turn(self._written(delta) if delta.written else self._entry(delta))

    def _in_turn(self, events: Iterable[Event]) -> Iterator[Event]:
        """One call after the other: clients take a call for whole when they see another, whatever its index."""
        for event in events:
            if isinstance(event, ToolCall | Arguments) and event.index > self.speaking:
                self.queued.setdefault(event.index, []).append(event)
                self.queued_size += len(event.text) if isinstance(event, Arguments) else 0
            else:
                yield event
        while self.queued and (self.sent[self.speaking].ended or self.queued_size > MAX_HELD):
            self.speaking += 1
            yield from self.queued.pop(self.speaking, ())
        if not self.queued:
            self.queued_size = 0

    def _entry(self, delta: ToolCallDelta) -> Iterator[Event]:
        yield from self._written_before()
        name = (delta.name or "").strip()
        piece = self._piece(delta.arguments)
        id_ = (delta.id or "").strip() or None
        if id_ is None and not name and not piece.strip():
            call = self._addressed(delta.index)
            if call is None or not piece or not call.arguments.size or call.arguments.complete:
                self.repairs["blank_entry"] += 1
                return
        call = self.route(delta.index, id_, name, piece.strip())
        if name:
            self._named(call, name)
        if self.held is not call:
            yield from self._settle()
        yield from self._grow(call, piece)
        self.held = call if call.name and not call.sent else None

    def _grow(self, call: _Call, piece: str) -> Iterator[Event]:
        if call.name and (piece or self._final(call.name)):
            yield from self._header(call)
        new = call.arguments.add(piece) if piece else ""
        if call.sent and new:
            yield Arguments(call.index, new, self.number)
        elif call.arguments.size > MAX_HELD and not call.sent:
            yield _nameless()

    def _written(self, delta: ToolCallDelta) -> Iterator[Event]:
        """A call that was read from text: its pieces are exact, and are not looked at for repetitions."""
        yield from self._settle()
        call = self.by_id.get(delta.id or "") or self._open(None, delta.id)
        if delta.name:
            call.name = delta.name
            yield from self._written_before()
            yield from self._header(call)
            call.written = True
        if delta.arguments:
            yield Arguments(call.index, call.arguments.append(delta.arguments), self.number)

    def _written_before(self) -> Iterator[Event]:
        """A written call ends where another begins."""
        if self.sent and self.sent[-1].written:
            self.sent[-1].over = True
            yield from self._filled(self.sent[-1])

    def _filled(self, call: _Call) -> Iterator[Event]:
        """`{}` where a call has no arguments."""
        if call.arguments.empty:
            self.repairs["arguments_missing"] += 1
            yield Arguments(call.index, call.arguments.append("{}"), self.number)

    def _piece(self, arguments: object) -> str:
        if arguments is None or isinstance(arguments, str):
            return arguments or ""
        self.repairs["arguments_object"] += 1
        return jsontext.dumps(arguments).decode()

    def _addressed(self, index: int | None) -> _Call | None:
        """The call that an entry without an id belongs to."""
        if index is None:
            return self.calls[-1] if self.calls else None
        return self.latest_on.get(index)

    def route(self, index: int | None, id_: str | None, name: str, piece: str) -> _Call:
        """The call that an entry with this piece of arguments belongs to, opened if it is a new one."""
        if index is None:
            self.repairs["index_missing"] += 1
        waiting = self._addressed(index)
        if id_ is None:
            return self._without_id(index, waiting, name, piece)
        if id_ in self.by_id:
            return self._known(index, id_, waiting, name)
        if waiting is not None and self._adopts(waiting, name):
            waiting.said_id = id_
            self.by_id[id_] = waiting
            self.repairs["id_late"] += 1
            return waiting
        if waiting is not None and index is not None:
            self.repairs["index_reused"] += 1
        return self._open(index, id_)

    def _known(self, index: int | None, id_: str, waiting: _Call | None, name: str) -> _Call:
        call = waiting if waiting is not None and waiting.said_id == id_ else self.by_id[id_]
        elsewhere = call is not waiting and index is not None and index != call.upstream_index
        if not name or not (elsewhere or self._is_another(call, name)):
            return call
        self.repairs["id_duplicate"] += 1
        return self._open(index, id_)

    def _is_another(self, call: _Call, name: str) -> bool:
        """Whether this cannot be the call's name: it has one, and no arguments that are under way."""
        under_way = not call.arguments.empty and not call.arguments.complete
        return (
            bool(call.name) and name != call.name and not under_way and not self._continues_name(call, name)
        )

    def _without_id(self, index: int | None, waiting: _Call | None, name: str, piece: str) -> _Call:
        if waiting is None:
            return self._open(index, None)
        if name and waiting.name and not self._continues_name(waiting, name):
            replayed = waiting.repeats_name and piece == waiting.arguments.text.strip()
            repeated = name == waiting.name and (waiting.arguments.snapshots or not piece or replayed)
            if not repeated:
                return self._open(index, None)
            waiting.announced_again = not piece
        elif waiting.announced_again and piece:
            again = self._open(index, None)
            again.name = waiting.name
            return again
        return waiting

    def _adopts(self, call: _Call, name: str) -> bool:
        """Whether a call without an id is the one that this id was meant for."""
        if call.said_id is not None or call.arguments.complete:
            return False
        return not name or not call.name or name == call.name

    def _continues_name(self, call: _Call, name: str) -> bool:
        if call.arguments.complete:
            return False
        if name == call.name:
            return True
        return not call.sent and not call.arguments.size and self._joins(call.name, name)

    def _joins(self, first: str, second: str) -> bool:
        """Whether two pieces make (the beginning of) a declared name, of which the first alone is none."""
        joined = first + second
        return first not in self.names and any(known.startswith(joined) for known in self.names)

    def _open(self, index: int | None, id_: str | None) -> _Call:
        call = _Call(index, id_, self.repairs)
        self.calls.append(call)
        if index is not None:
            self.latest_on[index] = call
        if id_ is not None:
            self.by_id.setdefault(id_, call)
        return call

    def _named(self, call: _Call, name: str) -> None:
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
        """Whether a name cannot grow: it is declared and no longer declared name begins with it."""
        return name in self.names and not any(n != name and n.startswith(name) for n in self.names)

    def _settle(self) -> Iterator[Event]:
        """The header that is still held: another entry or the end has come."""
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
        id_ = None if call.said_id is None else storable.text(call.said_id)
        if id_ is None or id_ in self.ids:
            self.repairs["id_missing"] += 1
            id_ = self.turn.call_id(self.number, call.index)
        self.ids.add(id_)
        yield ToolCall(call.index, id_, storable.text(call.name), self.number)
        if call.arguments.text:  # they came before the name
            yield Arguments(call.index, call.arguments.text, self.number)

    def release(self, *, fill: bool = False) -> Iterator[Event]:
        """The end, or a failure: what was held of names, arguments and calls; with `fill`, `{}` where none came."""
        held = list(self._settle())
        for call in self.sent:
            rest = call.arguments.close()
            held += [Arguments(call.index, rest, self.number)] if rest else []
        yield from self._in_turn(held)
        for call in self.sent[self.speaking :]:
            yield from self.queued.pop(call.index, ())
            if fill:
                yield from self._filled(call)
        self.speaking = len(self.sent)

    def end(self, reason: str) -> Iterator[Event]:
        """End every call, and give the reason that is true of them.  What was cut short is not filled."""
        yield from self.release(fill=reason not in KEPT)
        if len(self.calls) > len(self.sent):
            self.repairs["nameless_call"] += len(self.calls) - len(self.sent)
        if self.calls and not self.sent:
            yield _nameless()
        elif reason not in KEPT and any(call.arguments.cut for call in self.sent):
            self.repairs["finish_truncated"] += 1
            yield Finish("length", self.number)
        else:
            yield Finish(reason, self.number)


def _nameless() -> Failed:
    message = "The model's server sent a tool call without a name."
    return Failed(UpstreamError(message, code="upstream_invalid_response"))


class Router:
    """The stage: `ToolCallDelta` in, `ToolCall` and `Arguments` out; everything else passes in order."""

    def __init__(self, turn: Turn, repairs: Counter[str]) -> None:
        self._turn = turn
        self._names = turn.tool_names()
        self._repairs = repairs
        self._choices: dict[int, _Choice] = {}
        self._ended: set[int] = set()

    def feed(self, item: Event) -> Iterable[Event]:
        if isinstance(item, Text):
            return (item,)
        if isinstance(item, ToolCallDelta):
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
        if isinstance(item, Finish) and item.reason not in ("", "null", "error_finish"):
            self._ended.add(item.choice)
            if item.choice in self._choices:
                yield from self._choices.pop(item.choice).end(item.reason)
                return
        if isinstance(item, Failed):
            for choice in self._choices.values():
                yield from choice.release()
        elif isinstance(item, Done):
            while self._choices:
                yield from self._choices.popitem()[1].end("tool_calls")
        yield item

    def close(self) -> Iterator[Event]:
        """A cut stream: what came is passed on, and the error that follows says that it is not all."""
        for choice in self._choices.values():
            yield from choice.release()
