"""The calls of one choice, and the call that each upstream entry belongs to (`CallRouter.route`).

See `assembler` for the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

from qproxy.wire.tool_calls.arguments import ArgumentsAccumulator
from qproxy.wire.tool_calls.call_copies import CopyCheck
from qproxy.wire.tool_calls.emitter import declared_name

CallForm: TypeAlias = Literal["structured", "text", "reasoning"]


class StructuredCall:
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
        self.originals: list[StructuredCall] = []
        """Earlier calls that it may be a copy of; while there are any, it is held."""
        self.copy_check: CopyCheck | None = None
        self.form: CallForm = "structured"
        self.copied_forms: set[CallForm] = set()
        """The forms in which the call came again."""
        self.copied_ids: set[str | None] = set()
        """The ids under which it came again."""
        self.copy_of: StructuredCall | None = None
        """The call that this one repeats, and for which it was dropped."""

    @property
    def sent(self) -> bool:
        return self.index >= 0

    @property
    def ended(self) -> bool:
        return self.finished or self.arguments.is_complete


class CallRouter:
    """The calls of one choice in the upstream's order, by id and by index."""

    def __init__(self, names: Sequence[str], repairs: Counter[str]) -> None:
        self.names = names
        self.repairs = repairs
        self.calls: list[StructuredCall] = []
        self.by_id: dict[str, StructuredCall] = {}
        self.latest_by_index: dict[int, StructuredCall] = {}

    def call_for(self, index: int | None) -> StructuredCall | None:
        """Return the call that an entry without an id belongs to."""
        if index is None:
            return self.calls[-1] if self.calls else None
        return self.latest_by_index.get(index)

    def route(self, index: int | None, id_: str | None, name: str, piece: str) -> StructuredCall:
        """Return the call that an entry with these arguments belongs to; open one if it is new."""
        if index is None:
            self.repairs["index_missing"] += 1
        waiting = self.call_for(index)
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
        return self.open(index, id_)

    def _by_id(
        self, index: int | None, id_: str, waiting: StructuredCall | None, name: str
    ) -> StructuredCall:
        call = waiting if waiting is not None and waiting.upstream_id == id_ else self.by_id[id_]
        elsewhere = call is not waiting and index is not None and index != call.upstream_index
        if not name or not (elsewhere or self._is_another(call, name)):
            return call
        return self.open(index, id_)

    def _is_another(self, call: StructuredCall, name: str) -> bool:
        """Return whether this cannot be the call's name: it has another one, and no incomplete arguments."""
        is_incomplete = not call.arguments.is_empty and not call.arguments.is_complete
        return (
            bool(call.name)
            and name != call.name
            and not is_incomplete
            and not self._continues_name(call, name)
        )

    def _without_id(
        self, index: int | None, waiting: StructuredCall | None, name: str, piece: str
    ) -> StructuredCall:
        if waiting is None:
            return self.open(index, None)
        if name and waiting.name and not self._continues_name(waiting, name):
            replayed = waiting.repeats_name and piece == waiting.arguments.text.strip()
            repeated = name == waiting.name and (waiting.arguments.cumulative or not piece or replayed)
            if not repeated:
                return self.open(index, None)
            waiting.announced_twice = not piece
        elif waiting.announced_twice and piece:
            again = self.open(index, None)
            again.name = waiting.name
            return again
        return waiting

    def _adopts(self, call: StructuredCall, name: str) -> bool:
        """Return whether an unknown id belongs to this call without an id."""
        if call.upstream_id is not None or call.arguments.is_complete:
            return False
        return not name or not call.name or name == call.name

    def _continues_name(self, call: StructuredCall, name: str) -> bool:
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

    def open(self, index: int | None, id_: str | None) -> StructuredCall:
        call = StructuredCall(index, id_, self.repairs)
        self.calls.append(call)
        if index is not None:
            self.latest_by_index[index] = call
        if id_ is not None:
            self.by_id.setdefault(id_, call)
        return call

    def add_name(self, call: StructuredCall, name: str) -> None:
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

    def declared_name(self, name: str) -> str:
        """Return the declared function that a name means; models may write it as `functions.NAME`."""
        return declared_name(name, self.names)

    def is_final_name(self, name: str) -> bool:
        """Return whether a name is settled: it is declared, and no longer declared name begins with it."""
        return name in self.names and not any(n != name and n.startswith(name) for n in self.names)
