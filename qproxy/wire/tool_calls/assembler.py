"""Structured tool-call deltas: turn whatever an upstream sent into calls that obey OpenAI's contract.

Servers reuse indices, omit them, send empty, late, repeated and missing ids, repeat names, replay whole
arguments, or send everything so far each time. The entry and the state of the calls decide which call an
entry belongs to, in one step (`call_router`):

  * a known id selects its call, unless it comes with another index and a name, or with another name after the
    arguments (the id was used twice);
  * an unknown id opens a call, or is adopted by a waiting one that has none yet;
  * without an id the index selects the *latest* call opened on it; without an index the latest
    call is selected; a name that is not just repeated opens a new call.

`arguments` decides which part of a delta is new. Each entry costs the same, however many came before.

A header is held until its name is settled, because a name may come in two deltas. Calls leave one after the
other: clients, openai-python's stream helper among them, take a call for complete when the next one begins.
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
from qproxy.wire.tool_calls.call_copies import CopyCheck
from qproxy.wire.tool_calls.call_router import CallForm, CallRouter, StructuredCall
from qproxy.wire.tool_calls.finish_reason import KEPT_REASONS

MAX_HELD = 8 * 1024 * 1024
"""Characters of arguments held for a call without a name, or until the call before it is complete."""

FORMS: tuple[CallForm, ...] = ("structured", "text", "reasoning")
MAX_ORIGINALS = 64
"""Calls in each other form that a call is compared with."""


class _Choice:
    """The calls of one choice."""

    def __init__(self, number: int, turn: Turn, names: Sequence[str], repairs: Counter[str]) -> None:
        self.number = number
        self.turn = turn
        self.repairs = repairs
        self.router = CallRouter(names, repairs)
        self.held: StructuredCall | None = None
        """The call whose name may not be settled; there is at most one."""
        self.by_form: dict[tuple[str, CallForm], list[StructuredCall]] = {}
        """The calls that were sent, by name and form."""
        self.copies = 0
        """Calls that were dropped as copies."""
        self.sent: list[StructuredCall] = []
        """The calls whose header has been sent, by client index."""
        self.current = 0
        """Index of the call that is passed through; those after it wait in `queue`."""
        self.queue: dict[int, list[Event]] = {}
        self.queued_size = 0
        self.ids: set[str] = set()

    def feed(self, delta: RawToolCallDelta) -> Iterable[Event]:
        piece = delta.arguments
        has_content = delta.id or delta.name or delta.from_text or self.queue or self.held is not None
        call = None if has_content or delta.index is None else self.router.latest_by_index.get(delta.index)
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
            call = self.router.call_for(delta.index)
            if call is None or not piece or not call.arguments.size or call.arguments.is_complete:
                self.repairs["blank_entry"] += 1
                return
        call = self.router.route(delta.index, id_, name, piece.strip())
        if name:
            self.router.add_name(call, name)
        if self.held is not call:
            yield from self._settle()
        yield from self._grow(call, piece)
        self.held = call if call.name and not call.sent else None

    def _grow(self, call: StructuredCall, piece: str) -> Iterator[Event]:
        if call.name and call.copy_check is None and (piece or self.router.is_final_name(call.name)):
            yield from self._header(call)
        new = call.arguments.add(piece) if piece else ""
        if call.copy_check is not None:
            yield from self._compare(call, new)
        elif call.sent and new:
            yield ToolCallArgumentsDelta(call.index, new, self.number)
        elif call.arguments.size > MAX_HELD and not call.sent:
            yield _unnamed_error()

    def _text_call(self, delta: RawToolCallDelta) -> Iterator[Event]:
        """Pass on a call that was read from text: its deltas are exact and not checked for repetitions."""
        yield from self._settle()
        call = self.router.by_id.get(delta.id or "") or self.router.open(None, delta.id)
        if delta.name:
            call.name = delta.name
            call.from_text = True
            call.form = "reasoning" if delta.in_reasoning else "text"
            yield from self._end_written_call()
            yield from self._header(call)
        if delta.arguments:
            new = call.arguments.append(delta.arguments)
            if call.copy_check is not None:
                yield from self._compare(call, new)
            else:
                yield ToolCallArgumentsDelta(call.index, new, self.number)

    def _end_written_call(self) -> Iterator[Event]:
        """End the written call before another one begins."""
        if self.sent and self.sent[-1].from_text:
            self.sent[-1].finished = True
            yield from self._fill(self.sent[-1])

    def _fill(self, call: StructuredCall) -> Iterator[Event]:
        """Yield `{}` for a call without arguments."""
        if call.arguments.is_empty:
            self.repairs["arguments_missing"] += 1
            yield ToolCallArgumentsDelta(call.index, call.arguments.append("{}"), self.number)

    def _delta(self, arguments: object) -> str:
        if arguments is None or isinstance(arguments, str):
            return arguments or ""
        self.repairs["arguments_object"] += 1
        return json_codec.dumps(arguments).decode()

    def _settle(self) -> Iterator[Event]:
        """Send the held header, because another entry or the end has come."""
        if self.held is not None:
            yield from self._header(self.held)
            self.held = None

    def _header(self, call: StructuredCall) -> Iterator[Event]:
        """Send the header of a call, unless it may be a copy of another one."""
        if call.sent or call.copy_check is not None:
            return
        call.name = self.router.declared_name(call.name)
        call.originals = self._possible_originals(call)
        if not call.originals:
            yield from self._send_header(call)
            return
        call.copy_check = CopyCheck([other.arguments for other in call.originals])
        if call.arguments.text:
            yield from self._compare(call, call.arguments.text)

    def _possible_originals(self, call: StructuredCall) -> list[StructuredCall]:
        """Return the calls that a call may repeat: one with its id, or some in another form."""
        first = self.router.by_id.get(call.upstream_id) if call.upstream_id is not None else None
        first = first.copy_of or first if first is not None else None
        same_id = [first] if first is not None and first.sent and first.name == call.name else []
        forms = [form for form in FORMS if form != call.form]
        others = [
            other for form in forms for other in self.by_form.get((call.name, form), [])[:MAX_ORIGINALS]
        ]
        return [*same_id, *others]

    def _compare(self, call: StructuredCall, text: str) -> Iterator[Event]:
        """Send a held call once its arguments differ from those of every call that it may repeat."""
        assert call.copy_check is not None
        if not call.copy_check.feed(text) or call.arguments.size > MAX_HELD:
            yield from self._send_header(call)

    def _end_copy(self, call: StructuredCall) -> Iterator[Event]:
        """Drop a held call that is a copy; send one that only began like one."""
        assert call.copy_check is not None
        call.copy_check.feed(call.arguments.close())
        equal = [call.originals[number] for number in call.copy_check.matches()]
        original = next((o for o in equal if call.form not in o.copied_forms or _same_id(call, o)), None)
        if original is None and call.arguments.is_empty:  # its name and id came again, alone
            original = next((o for o in call.originals if _same_id(call, o)), None)
        if original is None:
            yield from self._send_header(call)
            return
        call.copy_of = original
        original.copied_forms.add(call.form)
        original.copied_ids.add(call.upstream_id)
        self.copies += 1
        self.repairs["call_copied"] += 1

    def _send_header(self, call: StructuredCall) -> Iterator[Event]:
        call.copy_check = None
        self.by_form.setdefault((call.name, call.form), []).append(call)
        call.index = len(self.sent)
        self.sent.append(call)
        if call.upstream_index is not None and call.upstream_index != call.index:
            self.repairs["index_gap"] += 1
        id_ = None if call.upstream_id is None else storable.storable_text(call.upstream_id)
        if id_ is None or id_ in self.ids:
            self.repairs["id_missing" if id_ is None else "id_duplicate"] += 1
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
        for call in self.router.calls:
            held += self._end_copy(call) if call.copy_check is not None else ()
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
        if nameless := len(self.router.calls) - len(self.sent) - self.copies:
            self.repairs["nameless_call"] += nameless
        if self.router.calls and not self.sent:
            yield _unnamed_error()
        elif reason not in KEPT_REASONS and any(call.arguments.truncate for call in self.sent):
            self.repairs["finish_truncated"] += 1
            yield ChoiceFinished("length", self.number)
        else:
            yield ChoiceFinished(reason, self.number)


def _same_id(call: StructuredCall, other: StructuredCall) -> bool:
    return call.upstream_id is not None and call.upstream_id in (other.upstream_id, *other.copied_ids)


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
