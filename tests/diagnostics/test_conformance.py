"""`qproxy check URL`: violations of OpenAI's contract are named by their rules."""

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
from tests.helpers import WebServer, served, world

URL = "http://127.0.0.1:1/v1"
NOT_FOUND = json_reply({"error": {"message": "no", "type": "t", "param": None, "code": None}}, 404)
CHECKS = [
    "connection", "clock", "models", "unknown model", "broken JSON",
    "chat, non-streamed", "chat, streamed", "chat, streamed with usage",
    "tool call, non-streamed", "tool call, streamed", "embeddings, float", "embeddings, base64",
]  # fmt: skip


@asynccontextmanager
async def probed(handle, **settings):
    """Yield the findings of the checks of a server over memory streams."""
    async with trio.open_nursery() as nursery:

        async def connect(host, port):
            client, server = trio.testing.memory_stream_pair()
            nursery.start_soon(handle, server)
            return client

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


@pytest.mark.parametrize("key", [None, "sk-y"])
async def test_a_rejected_key_ends_the_checks(key):
    """Without a valid key nothing else is tested, and the only advice is about the key."""
    emulator = Emulator(keys={"sk-x"})
    async with probed(emulator.handle, key=key) as found:
        assert [finding.name for finding in found if finding.failed] == ["models"]
        assert found[-1].advice == ("check the key" if key else "pass the key with --key")


async def test_a_base_url_without_its_version(monkeypatch):
    """A URL that lacks /v1 is named, as for an account, and nothing else is tested."""
    monkeypatch.setattr("tests.diagnostics.test_conformance.URL", "http://127.0.0.1:1/compatible-mode")
    async with probed(Emulator().handle) as found:
        assert [finding.name for finding in found] == ["connection", "clock", "models"]
        assert (found[-1].state, found[-1].advice) == ("failed", "use http://127.0.0.1:1/compatible-mode/v1")


async def test_a_web_page_instead_of_an_api():
    """A web server that is no API is named in one line with the cause, and nothing else is tested."""
    async with probed(WebServer().handle) as found:
        assert [finding.name for finding in found] == ["connection", "clock", "models"]
        assert (found[-1].state, found[-1].message) == ("failed", "a web page (status 404)")
        assert "check the base URL" in found[-1].advice


async def test_a_conforming_server():
    """Every check passes, with the tokens that it used; the key is sent."""
    emulator = Emulator(keys={"sk-x"})
    async with probed(emulator.handle, key="sk-x") as found:
        assert [finding.name for finding in found] == CHECKS
        states = {finding.name: finding.state for finding in found}
        assert [name for name, state in states.items() if state != "ok"] == ["clock", "embeddings, base64"]
        assert sum(finding.tokens for finding in found) > 0
    models = {seen.body["model"] for seen in emulator.requests if seen.body and "messages" in seen.body}
    assert models == {"qwen-flash", "no-such-model-for-qproxy-check"}


async def test_qproxy_conforms():
    """qproxy in front of the emulator breaks no rule, base64 embeddings included."""

    async def handle(stream):
        async with served(it.app, pair=lambda: (None, stream)):
            await trio.sleep_forever()

    async with world() as it, probed(handle) as found:
        assert [(f.name, f.message) for f in found if f.failed] == []
        assert [finding.name for finding in found] == CHECKS


@pytest.mark.parametrize("costs", [True, False])
async def test_a_wrong_key(costs):
    """If the model list is rejected, the advice names --key."""
    async with probed(Emulator(keys={"sk-x"}).handle, costs=costs) as found:
        refused = next(finding for finding in found if finding.name == "models")
        assert (refused.state, "--key" in refused.advice) == ("failed", True)
        assert exit_code(found) == 1


async def test_free_checks():
    """Without paid checks, only rejected requests reach the server."""
    emulator = Emulator()
    async with probed(emulator.handle, costs=False) as found:
        assert [finding.name for finding in found] == CHECKS[:5]
    assert sum(finding.tokens for finding in found) == 0


FIRST = chunk({"role": "assistant", "content": ""})
WRONG = {
    "no end": (ScriptedReply((FIRST, chunk({}, "stop"))), "done: the stream ends without data: [DONE]"),
    "type": (ScriptedReply((FIRST, chunk({}, "stop"), DONE), content_type="text/plain"),
        "content-type: unexpected content type 'text/plain'"),
    "error": (ScriptedReply((FIRST, event({"error": {"message": "no more"}}))), "qwen-flash: no more"),
    "status": (json_reply({"message": "no"}, 503), "qwen-flash: status 503: no"),
    "page": (ScriptedReply((b"<html>",), 502, "text/html"), "qwen-flash: status 502: <html>"),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "words"), WRONG.values(), ids=WRONG.keys())
async def test_an_invalid_stream(reply, words):
    """The finding names the violated rule, and the remaining checks run."""
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


async def test_invalid_tool_calls():
    """For two calls with one index, each violated rule is named with its consequence for clients."""
    emulator = Emulator()
    emulator.script(NOT_FOUND, NOT_FOUND, json_reply(WHOLE), *[FAULTS["quirk-index"][1]] * 4)
    async with probed(emulator.handle) as found:
        broken = [f for f in found if f.name == "tool call, streamed" and f.failed]
        assert any(finding.message.startswith("call-index: two calls") for finding in broken)
        assert [finding.advice for finding in broken] == [RULES[f.message.partition(":")[0]] for f in broken]


async def test_a_missing_tool_call():
    """Text in place of a tool call is a warning with the options that enable tool parsers."""
    emulator = Emulator()
    whole, streamed = (
        json_reply(WHOLE),
        ScriptedReply((FIRST, chunk({"content": "hi"}), chunk({}, "stop"), DONE)),
    )
    counted = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
        "usage": WHOLE["usage"],
    }
    with_usage = ScriptedReply((FIRST, chunk({}, "stop"), event(counted), DONE))
    emulator.script(NOT_FOUND, NOT_FOUND, whole, streamed, with_usage, whole, streamed)
    async with probed(emulator.handle) as found:
        called = [finding for finding in found if finding.name.startswith("tool call")]
        assert [finding.state for finding in called] == ["warning", "warning"]
        assert all("--tool-call-parser" in finding.advice for finding in called)
        assert exit_code(found) == 0 or any(f.name == "embeddings, base64" for f in found if f.failed)


async def test_a_server_that_ignores_the_model_name():
    """A response for an unknown model, as llama.cpp sends it, is a warning."""
    emulator = Emulator()
    emulator.script(json_reply(WHOLE))
    async with probed(emulator.handle, costs=False) as found:
        assert [f.state for f in found if f.name == "unknown model"] == ["warning"]


@pytest.mark.parametrize("fault", ["fault-silent", "fault-cut", "fault-not-http", "fault-hang"])
async def test_an_aborted_response(fault, autojump_clock):
    """Silence, a truncated response and invalid HTTP become findings, within the timeouts."""
    start = trio.current_time()
    async with probed(Emulator().handle, model=fault) as found:
        assert [f.name for f in found if f.failed] == ["chat, non-streamed"]
    assert trio.current_time() - start <= 60


async def test_time_is_bounded(autojump_clock):
    """A check that takes too long is cancelled, and its findings until then are kept."""

    async def slow(found):
        found.append(Finding("x", "first", "ok", "passed"))
        await trio.sleep_forever()

    found: list[Finding] = []
    await with_timeout("x", slow, found)
    assert [(f.name, f.state) for f in found] == [("first", "ok"), ("time", "failed")]
    assert trio.current_time() == pytest.approx(AREA_SECONDS, abs=1)
