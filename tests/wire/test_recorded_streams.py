"""Streams in the manner of real servers: each file's first comment describes it, its second has the expected
result.

The files are server-sent events, played unchanged, at many cuts of their bytes.
"""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import sse, tool_calls
from qproxy.wire.dialects import DIALECTS, UpstreamTarget
from qproxy.wire.events import StreamFailed, Turn
from qproxy.wire.pipeline import Pipeline
from tests.examples import examples
from tests.wire.tool_call_contract import check, fold

FILES = sorted((Path(__file__).parents[1] / "recorded").rglob("*.sse"))
TEXT = {"type": "string"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }
    for name, properties in (
        ("get_weather", {"city": TEXT}),
        ("write_file", {"path": TEXT, "content": TEXT}),
        ("now", {"tz": TEXT}),
    )
]
TURN = Turn(id="chatcmpl-1", created=0, model="m", messages=[], tools=TOOLS, tool_choice="auto")


def expected(path):
    description, meaning = path.read_text().split("\n")[:2]
    assert description.startswith(": ")
    return json.loads(meaning.removeprefix(": expect "))


def play(pieces):
    """Return the folded first choice of a stream, with the status of a failure."""
    decoder = DIALECTS["compatible"].decoder(UpstreamTarget("http://h/v1", "m"))
    chain = Pipeline(sse.Decoder(), decoder, tool_calls.build_pipeline(TURN))
    out = [event for piece in pieces for event in chain.feed(piece)] + chain.close()
    check(out)
    found = fold(out)[0]
    found["calls"] = [[name, arguments] for _, name, arguments in found["calls"]]
    if isinstance(out[-1], StreamFailed):
        found["failed"] = out[-1].error.status
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recorded(path):
    """Each stream gives the result in its file, whole and byte by byte."""
    raw = path.read_bytes()
    assert play([raw]) == expected(path)
    assert play([raw[at : at + 1] for at in range(len(raw))]) == expected(path)


@given(st.sampled_from(FILES), st.lists(st.integers(0, 5000), max_size=20))
@examples(150)
def test_any_cut_of_the_bytes(path, cuts):
    """The result does not depend on the cut of the bytes."""
    raw = path.read_bytes()
    spots = [0, *sorted({cut % len(raw) for cut in cuts} - {0}), len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(spots)]
    assert play(pieces) == expected(path)
