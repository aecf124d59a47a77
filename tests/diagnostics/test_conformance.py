"""`qproxy check URL`: any server is held to OpenAI's contract, and what it breaks is named."""

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from qproxy.bootstrap.models import package_catalog
from qproxy.diagnostics import exit_code
from qproxy.diagnostics.conformance import ConformanceCheck
from qproxy.diagnostics.report import Finding
from qproxy.diagnostics.run import AREA_SECONDS, with_timeout
from qproxy.emulator import Emulator
from qproxy.emulator.faults import DONE, FAULTS, ScriptedReply, chunk, event, json_reply
from qproxy.transport import UpstreamTransport
from qproxy.wire.conformance import RULES
from tests.defaults import transport_limits
from tests.helpers import served, world

URL = "http://127.0.0.1:1/v1"
NOT_FOUND = json_reply({"error": {"message": "no", "type": "t", "param": None, "code": None}}, 404)
SAID = [
    "connection", "clock", "models", "unknown model", "broken JSON", "chat, whole", "chat, streamed", "chat, streamed with usage",
    "tool call, whole", "tool call, streamed", "embeddings, float", "embeddings, base64",
]  # fmt: skip


@asynccontextmanager
async def probed(handle, **settings):
    """What a probe of a server that speaks over memory streams finds."""
    async with trio.open_nursery() as nursery:

        async def connect(host, port):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(handle, theirs)
            return ours

        transport = UpstreamTransport(
            transport_limits(first_byte_timeout=30.0, idle_timeout=30.0), connect=connect
        )
        costs = settings.pop("costs", True)
        found: list[Finding] = []
        await ConformanceCheck(URL, transport, lambda: 0.0, catalog=package_catalog(), **settings).all(
            found, costs=costs
        )
        yield found
        await transport.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_that_keeps_the_contract():
    """Everything is asked, everything is well, and the cost is told; the key is sent."""
    emulator = Emulator(keys={"sk-x"})
    async with probed(emulator.handle, key="sk-x") as found:
        assert [finding.name for finding in found] == SAID
        states = {finding.name: finding.state for finding in found}
        assert [name for name, state in states.items() if state != "ok"] == ["clock", "embeddings, base64"]
        assert sum(finding.tokens for finding in found) > 0
    asked = {seen.body["model"] for seen in emulator.requests if seen.body and "messages" in seen.body}
    assert asked == {"qwen-flash", "no-such-model-for-qproxy-check"}


async def test_qproxy_itself_keeps_the_contract():
    """qproxy in front of the emulator: not one rule is broken, embeddings in base64 included."""

    async def handle(stream):
        async with served(it.app, pair=lambda: (None, stream)):
            await trio.sleep_forever()

    async with world() as it, probed(handle) as found:
        assert [(f.name, f.message) for f in found if f.failed] == []
        assert [finding.name for finding in found] == SAID


@pytest.mark.parametrize("costs", [True, False])
async def test_a_wrong_key(costs):
    """Where the list of models is refused, the advice is to give a key."""
    async with probed(Emulator(keys={"sk-x"}).handle, costs=costs) as found:
        refused = next(finding for finding in found if finding.name == "models")
        assert (refused.state, "--key" in refused.advice) == ("failed", True)
        assert exit_code(found) == 1


async def test_what_is_free():
    """Without questions that cost, a refused request is the only one to a model."""
    emulator = Emulator()
    async with probed(emulator.handle, costs=False) as found:
        assert [finding.name for finding in found] == SAID[:5]
    assert sum(finding.tokens for finding in found) == 0


FIRST = chunk({"role": "assistant", "content": ""})
WRONG = {
    "no end": (ScriptedReply((FIRST, chunk({}, "stop"))), "done: the stream ends without data: [DONE]"),
    "type": (ScriptedReply((FIRST, chunk({}, "stop"), DONE), content_type="text/plain"), "content-type: it is 'text/plain'"),
    "error": (ScriptedReply((FIRST, event({"error": {"message": "no more"}}))), "qwen-flash: no more"),
    "status": (json_reply({"message": "no"}, 503), "qwen-flash: status 503: no"),
    "page": (ScriptedReply((b"<html>",), 502, "text/html"), "qwen-flash: status 502: <html>"),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "words"), WRONG.values(), ids=WRONG.keys())
async def test_a_stream_that_is_wrong(reply, words):
    """The answer to one question is named with the rule that it breaks, and the next ones are asked all the same."""
    emulator = Emulator()
    whole = json_reply(WHOLE)
    emulator.script(NOT_FOUND, NOT_FOUND, whole, reply)
    async with probed(emulator.handle) as found:
        (wrong,) = [finding for finding in found if finding.name == "chat, streamed"]
        assert (wrong.state, words in wrong.message) == ("failed", True), wrong
        assert found[-1].name == "embeddings, base64"


WHOLE = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


async def test_calls_that_break_the_contract():
    """Two calls on one index: each broken rule is named, with what it does to clients."""
    emulator = Emulator()
    emulator.script(NOT_FOUND, NOT_FOUND, json_reply(WHOLE), *[FAULTS["quirk-index"][1]] * 4)
    async with probed(emulator.handle) as found:
        broken = [f for f in found if f.name == "tool call, streamed" and f.failed]
        assert any(finding.message.startswith("call-index: two calls") for finding in broken)
        assert [finding.advice for finding in broken] == [RULES[f.message.partition(":")[0]] for f in broken]


async def test_a_model_that_does_not_call():
    """Words in place of a call are no breach but a warning, which says how servers are told to parse calls."""
    emulator = Emulator()
    whole, streamed = (
        json_reply(WHOLE),
        ScriptedReply((FIRST, chunk({"content": "hi"}), chunk({}, "stop"), DONE)),
    )
    counted = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": WHOLE["usage"]}  # fmt: skip
    with_usage = ScriptedReply((FIRST, chunk({}, "stop"), event(counted), DONE))
    emulator.script(NOT_FOUND, NOT_FOUND, whole, streamed, with_usage, whole, streamed)
    async with probed(emulator.handle) as found:
        called = [finding for finding in found if finding.name.startswith("tool call")]
        assert [finding.state for finding in called] == ["warning", "warning"]
        assert all("--tool-call-parser" in finding.advice for finding in called)
        assert exit_code(found) == 0 or any(f.name == "embeddings, base64" for f in found if f.failed)


async def test_a_server_that_serves_any_name():
    """llama.cpp answers whatever the model is called: worth knowing, not wrong."""
    emulator = Emulator()
    emulator.script(json_reply(WHOLE))
    async with probed(emulator.handle, costs=False) as found:
        assert [f.state for f in found if f.name == "unknown model"] == ["warning"]


@pytest.mark.parametrize("fault", ["fault-silent", "fault-cut", "fault-not-http", "fault-hang"])
async def test_a_server_that_breaks_off(fault, autojump_clock):
    """Silence, a cut and what is not HTTP end in a finding, within the time limits."""
    began = trio.current_time()
    async with probed(Emulator().handle, model=fault) as found:
        assert [f.name for f in found if f.failed] == ["chat, whole"]
    assert trio.current_time() - began <= 60


async def test_time_is_bounded(autojump_clock):
    """What takes too long is cut off, and what was found until then stays."""

    async def slow(found):
        found.append(Finding("x", "first", "ok", "well"))
        await trio.sleep_forever()

    found: list[Finding] = []
    await with_timeout("x", slow, found)
    assert [(f.name, f.state) for f in found] == [("first", "ok"), ("time", "failed")]
    assert trio.current_time() == pytest.approx(AREA_SECONDS, abs=1)
