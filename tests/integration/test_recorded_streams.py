"""A client of OpenAI's API gets the recorded streams through the whole server, streamed and whole."""

import pytest

from qproxy.emulator import ScriptedReply
from tests.helpers import world
from tests.wire.strict_reader import read_stream, read_whole
from tests.wire.test_recorded_streams import FILES, TOOLS, expected

BODY = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "Weather?"}], "tools": TOOLS}


def meaning(choice):
    return {key: choice[key] for key in ("text", "thought", "calls", "reason")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_streamed(path):
    """Every chunk obeys the contract, and the chunks add up to the recording's meaning."""
    async with world() as it:
        it.emulator.script(ScriptedReply((path.read_bytes(),)))
        status, text = await it.stream(BODY)
        assert status == 200
        choices, error = read_stream(text.encode())
        expected_meaning = expected(path)
        assert (error is not None) == (expected_meaning.pop("failed", None) is not None)
        assert meaning(choices[0]) == expected_meaning


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_whole(path):
    """A whole response is the fold of the same events; a failure in the middle is an error."""
    async with world() as it:
        it.emulator.script(ScriptedReply((path.read_bytes(),)))
        status, _, body = await it.post(BODY)
        expected_meaning = expected(path)
        if "failed" in expected_meaning:
            assert status == expected_meaning["failed"]
        else:
            assert meaning(read_whole(body)[0]) == expected_meaning
