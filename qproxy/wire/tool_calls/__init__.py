"""How Qwen's servers and models spell tool calls and thoughts, and what they meant.

`open` gives one stage from an upstream's events to events that keep the contract written in `qproxy.wire`:

    snapshots    text that repeats everything so far becomes increments (a profile)
    thinking     `<think>` at the start of the text becomes Reasoning
    written      calls that the model wrote into its text become `ToolCallDelta`s (when tools were offered)
    structured   `ToolCallDelta`s, however mangled, become `ToolCall` and `Arguments` (`arguments`: what is new of each)
    finish       the finish reason that fits what was really sent, once per choice; a cut stream is an error

The readers of written calls, one spelling each: `hermes` (JSON), `coder` (tags), `legacy` (marker words), `bare`
(JSON without any marker, a profile).  `source` is how they wait for text, `sink` where they put what they find.

Every repair is counted by kind (`repairs`), because each is an upstream's bug that somebody will want to see.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from qproxy.wire.cumulative import CumulativeText
from qproxy.wire.events import Event, Turn
from qproxy.wire.pipeline import Pipeline, Stage
from qproxy.wire.tool_calls.assembler import ToolCallAssembler
from qproxy.wire.tool_calls.finish_reason import FinishReasonStage
from qproxy.wire.tool_calls.text_calls import TextCallParser
from qproxy.wire.tool_calls.think_tags import ThinkTagParser


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """How a model deviates, by the operator's word: never a guess."""

    implied_think: bool = False
    """Answers begin inside a thought whose `<think>` was part of the prompt."""
    cumulative: bool = False
    """Each event repeats the whole text so far."""
    react: bool = False
    """Calls are written as `Action:` and `Action Input:`."""
    bare_json: bool = False
    """Calls are written as a JSON object that is the whole answer, or the whole of a code fence."""


def open(turn: Turn, profile: ModelProfile = ModelProfile(), repairs: Counter[str] | None = None) -> Pipeline:
    """The stage for one answer to `turn`; repairs are counted in `repairs`."""
    repairs = Counter() if repairs is None else repairs
    stages: list[Stage[Event, Event]] = [CumulativeText(repairs)] if profile.cumulative else []
    stages.append(ThinkTagParser(profile.implied_think, repairs))
    if turn.tools_enabled:
        stages.append(TextCallParser(turn, repairs, react=profile.react, bare_json=profile.bare_json))
    return Pipeline(*stages, ToolCallAssembler(turn, repairs), FinishReasonStage(repairs))
