"""How Qwen's servers and models spell tool calls and thoughts, and what they meant.

`open` gives one stage from an upstream's events to events that keep the contract written in `qproxy.wire`:

    cumulative     text that repeats everything so far becomes increments (a profile)
    think_tags     `<think>` at the start of the text becomes reasoning
    text_calls     calls that the model wrote into its text become `RawToolCallDelta`s (when tools were offered)
    assembler      `RawToolCallDelta`s, however mangled, become `ToolCallStart` and `ToolCallArgumentsDelta` (`arguments`:
                   what is new of each)
    finish_reason  the finish reason that fits what was really sent, once per choice; a cut stream is an error

The readers of written calls, one spelling each: `hermes` (JSON), `qwen_coder` (tags), `marker_words` (marker words), `bare_json`
(JSON without any marker, a profile).  `text_buffer` is how they wait for text, `emitter` where they put what they find.

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
