"""Recorded responses of Qwen's servers as Anthropic's clients receive them: equal at any cut, streamed and
whole."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from qproxy.wire.conformance import anthropic as contract
from qproxy.wire.endpoints import anthropic
from qproxy.wire.endpoints.anthropic.request import AnthropicRequest
from qproxy.wire.errors import QproxyError
from tests.anthropic_types import frames, judge_message, judge_stream
from tests.wire import pipeline

FOLDER = Path(__file__).parents[3] / "recorded"
FILES = sorted(path for path in FOLDER.rglob("*.sse") if path.parent.name != "dashscope")


def turn():
    return replace(pipeline.decoded({}, stream=True), endpoint_state=AnthropicRequest())


def streamed(pieces):
    """Return the outcome of an upstream's bytes in these parts."""
    encoder = anthropic.Encoder(turn())
    out = [part for event in pipeline.events(pieces, turn()) for part in encoder.feed(event)]
    raw = b"".join([*out, *encoder.close()])
    judge_stream(raw)
    return contract.check_stream(frames(raw))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recorded(path):
    """A stream gives the same result whole, byte by byte and at seeded cuts, and the fold of its events is
    its message."""
    raw = path.read_bytes()
    first = streamed([raw])
    assert first.violations == []
    chance = random.Random(len(raw))
    cuts = [chance.sample(range(len(raw)), size) for size in (1, 7, 40)]
    for pieces in (
        [raw[at : at + 1] for at in range(len(raw))],
        *(pipeline.cut(raw, spots) for spots in cuts),
    ):
        again = streamed(pieces)
        assert (again.message, again.error, again.violations) == (first.message, first.error, [])
    if first.error is None:
        body = anthropic.response(turn(), pipeline.events([raw], turn()))
        judge_message(body)
        assert body == first.message
    else:
        with pytest.raises(QproxyError):
            anthropic.response(turn(), pipeline.events([raw], turn()))


@pytest.mark.parametrize("field", ["stop_reason", "matched_stop"])
def test_stop_sequence(field):
    """The stop sequence that vLLM or SGLang names reaches the client, unless it is a number."""
    for named, reason in (("END", "stop_sequence"), (151645, "end_turn"), ("<|im_end|>", "end_turn")):
        chunk = pipeline.chunk({"content": "x"})
        last = pipeline.chunk({}, "stop")
        last["choices"][0][field] = named
        raw = pipeline.stream(chunk, last, pipeline.DONE)
        request = replace(turn(), endpoint_state=AnthropicRequest(frozenset({"END"})))
        body = anthropic.response(request, pipeline.events([raw], request))
        assert body["stop_reason"] == reason
        assert body["stop_sequence"] == ("END" if reason == "stop_sequence" else None)
