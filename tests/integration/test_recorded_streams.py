"""The recorded streams through the whole server: what a client of OpenAI's API gets, streamed and whole."""

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
    """Every chunk obeys the contract, and they add up to what the file says."""
    async with world() as it:
        it.emulator.script(ScriptedReply((path.read_bytes(),)))
        status, text = await it.stream(BODY)
        assert status == 200
        choices, error = read_stream(text.encode())
        wanted = expected(path)
        assert (error is not None) == (wanted.pop("failed", None) is not None)
        assert meaning(choices[0]) == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_whole(path):
    """A whole answer is the fold of the same events; a failure in the middle of it is an error."""
    async with world() as it:
        it.emulator.script(ScriptedReply((path.read_bytes(),)))
        status, _, body = await it.post(BODY)
        wanted = expected(path)
        if "failed" in wanted:
            assert status == wanted["failed"]
        else:
            assert meaning(read_whole(body)[0]) == wanted
