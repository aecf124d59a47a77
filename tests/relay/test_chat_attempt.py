"""An attempt holds nothing of the prompt while its response is streamed."""

import gc
import json

import trio

from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import chunk
from qproxy.wire.events import Turn
from tests.helpers import HELLO, accounts, world

BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})


def _turns():
    return [found for found in gc.get_objects() if isinstance(found, Turn)]


async def test_a_stream_does_not_hold_its_prompt(autojump_clock):
    """Once a streamed response has started, no turn with messages is alive, while its account's lease is."""
    body = json.dumps({**HELLO, "stream": True, "tools": [{"type": "function", "function": {"name": "f"}}]})
    limited = accounts("one", tpm=100_000)
    kept = _turns()  # constants of other tests
    others = set(map(id, kept))
    async with world(accounts=limited) as it, trio.open_nursery() as nursery:
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(100))))

        async def read():
            headers = [(b"content-type", b"application/json")]
            async with it.client.request(
                "POST", "/v1/chat/completions", headers=headers, body=body.encode()
            ) as response:
                await response.read()

        nursery.start_soon(read)
        await trio.sleep(10)
        gc.collect()
        turns = [turn for turn in _turns() if id(turn) not in others]
        assert turns
        assert not [turn for turn in turns if turn.messages]
        assert [account.in_flight for account in it.server.state.relay.accounts.accounts] == [1]
        nursery.cancel_scope.cancel()
