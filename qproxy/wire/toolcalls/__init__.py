"""How Qwen's servers and models spell tool calls and thoughts, and what they meant.

`open` gives one stage from an upstream's events to events that keep the contract written in `qproxy.wire`:

    thinking     `<think>` at the start of the text becomes Reasoning
    structured   `ToolCallDelta`s, however mangled, become `ToolCall` and `Arguments`
    finish       the finish reason that fits what was really sent, once per choice; a cut stream is an error

Every repair is counted by kind, because each is an upstream's bug that somebody will want to see:

    index_missing, index_reused, index_gap, id_missing, id_duplicate, id_late, name_repeated, name_joined,
    blank_entry, arguments_replayed, arguments_snapshot, arguments_object, arguments_missing, nameless_call,
    after_finish, finish_repeated, finish_mended, finish_truncated, finish_missing, think_tag
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from qproxy.wire.events import Event, Turn
from qproxy.wire.stages import Chain, Stage
from qproxy.wire.toolcalls.finish import Finishing
from qproxy.wire.toolcalls.structured import Router
from qproxy.wire.toolcalls.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Profile:
    """How a model deviates, by the operator's word: never a guess."""

    implied_think: bool = False
    """Answers begin inside a thought whose `<think>` was part of the prompt."""


def open(
    turn: Turn, profile: Profile = Profile(), repairs: Counter[str] | None = None
) -> Stage[Event, Event]:
    """The stage for one answer to `turn`; repairs are counted in `repairs`."""
    repairs = Counter() if repairs is None else repairs
    return Chain(Thinking(profile.implied_think, repairs), Router(turn, repairs), Finishing(repairs))
