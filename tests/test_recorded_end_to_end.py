"""The recorded streams through the whole server: what a client of OpenAI's API gets, streamed and whole."""

import json

import pytest

from qproxy.emulator import Reply
from tests.helpers import frames, world
from tests.wire.test_recorded import FILES, TOOLS, expected

BODY = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "Weather?"}], "tools": TOOLS}


def added_up(chunks):
    """What a client adds up of chunks, with a check of each against OpenAI's contract."""
    text, thought, reason = "", "", None
    calls: list[list[str]] = []
    for number, body in enumerate(chunks):
        assert body["object"] == "chat.completion.chunk"
        (choice,) = body["choices"]
        delta = choice["delta"]
        assert reason is None, "something follows the finish"
        assert ("role" in delta) == (number == 0)
        text += delta.get("content") or ""
        thought += delta.get("reasoning_content") or ""
        assert delta.get("tool_calls") != []
        for entry in delta.get("tool_calls", ()):
            if "id" in entry:
                assert entry["index"] == len(calls)
                assert entry["type"] == "function"
                assert entry["function"]["arguments"] == ""
                calls.append([entry["function"]["name"], ""])
            else:
                assert entry.keys() == {"index", "function"}
                assert entry["function"].keys() == {"arguments"}
                calls[entry["index"]][1] += entry["function"]["arguments"]
        reason = choice["finish_reason"]
        assert reason is None or delta == {}
    return {"text": text, "thought": thought, "calls": calls, "reason": reason}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_streamed(path):
    """Every chunk obeys the contract, and they add up to what the file says."""
    async with world() as it:
        it.emulator.script(Reply((path.read_bytes(),)))
        status, text = await it.stream(BODY)
        assert status == 200
        items = frames(text)
        meaning = expected(path)
        if "failed" in meaning:
            assert "error" in json.loads(items[-1])
            del items[-1], meaning["failed"]
        else:
            assert items.pop() == "[DONE]"
        assert added_up([json.loads(item) for item in items]) == meaning


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_whole(path):
    """A whole answer is the fold of the same events; a failure in the middle of it is an error."""
    async with world() as it:
        it.emulator.script(Reply((path.read_bytes(),)))
        status, _, body = await it.post(BODY)
        meaning = expected(path)
        if "failed" in meaning:
            assert status == meaning["failed"]
            return
        (choice,) = body["choices"]
        message = choice["message"]
        assert message["content"] == (meaning["text"] or None if meaning["calls"] else meaning["text"])
        assert message.get("reasoning_content", "") == meaning["thought"]
        found = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", ())]
        assert found == meaning["calls"]
        assert choice["finish_reason"] == meaning["reason"]
