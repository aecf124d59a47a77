"""Stages that turn the tool calls and reasoning of Qwen models, however written, into OpenAI's contract.

`open` returns one stage from an upstream's events to events that keep the contract in `qproxy.wire`:

    cumulative     turn text that repeats everything so far into increments (a profile)
    think_tags     turn `<think>` at the start of the text into reasoning
    text_calls     turn calls written in the text into `RawToolCallDelta`s (when tools are declared)
    json_in_reasoning  pass on JSON in the place of reasoning as content (if `response_format` requests it)
    assembler      turn any `RawToolCallDelta`s into `ToolCallStart` and `ToolCallArgumentsDelta`
                   (`arguments`: the new part of each delta)
    finish_reason  emit one finish reason per choice that matches what was sent; a cut stream is an error

Parsers of written calls, one per dialect: `hermes` (JSON), `qwen_coder` (tags), `named_calls` (a name before
JSON, Python), `marker_words` (marker words), `bare_json` (other envelopes; JSON without a marker, a profile).
They read from a `text_buffer` and write to an `emitter`. `call_copies` finds calls that came twice.

Every repair is counted by kind (`repairs`), because each one is an upstream bug.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from qproxy.wire.cumulative import CumulativeText
from qproxy.wire.events import Event, Turn
from qproxy.wire.pipeline import Pipeline, Stage
from qproxy.wire.tool_calls.assembler import ToolCallAssembler
from qproxy.wire.tool_calls.finish_reason import FinishReasonStage
from qproxy.wire.tool_calls.json_in_reasoning import JSONInReasoningStage, requests_json
from qproxy.wire.tool_calls.text_calls import TextCallParser
from qproxy.wire.tool_calls.think_tags import ThinkTagParser


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The deviations of a model, set by the operator and never guessed."""

    implied_think: bool = False
    """Whether responses begin inside reasoning whose `<think>` was part of the prompt."""
    cumulative: bool = False
    """Whether each event repeats the whole text so far."""
    react: bool = False
    """Whether calls are written as `Action:` and `Action Input:`."""
    bare_json: bool = False
    """Whether calls are written as a JSON object that is the whole response, or a whole code block."""


def build_pipeline(
    turn: Turn, profile: ModelProfile = ModelProfile(), repairs: Counter[str] | None = None
) -> Pipeline:
    """Return the stage for one response to `turn`; repairs are counted in `repairs`."""
    repairs = Counter() if repairs is None else repairs
    stages: list[Stage[Event, Event]] = [CumulativeText(repairs)] if profile.cumulative else []
    stages.append(ThinkTagParser(profile.implied_think, repairs))
    if turn.tools_enabled:
        stages.append(TextCallParser(turn, repairs, react=profile.react, bare_json=profile.bare_json))
    if requests_json(turn):
        stages.append(JSONInReasoningStage(turn, repairs))
    wait, choices = "thinking_display" in turn.params, turn.params.get("n") or 1
    finish = FinishReasonStage(repairs, wait=wait, choices=choices)
    return Pipeline(*stages, ToolCallAssembler(turn, repairs), finish)
