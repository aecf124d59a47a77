"""The app works without a socket: its client, its transport for SDKs, and the programs in docs/examples."""

import importlib.util
import inspect
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
import trio.testing

import qproxy
from qproxy.emulator import Emulator, ScriptedReply
from tests.disconnects import BEGUN, slow, until
from tests.helpers import HELLO, MODEL, world

EXAMPLES = Path(qproxy.__file__).parent.parent / "docs" / "examples"
PATH = "/v1/chat/completions"
SDK = pytest.mark.filterwarnings(r"ignore:Async generator '(openai|anthropic|httpx2?)\.")
"""The SDK and its HTTP client leave their own generators to the garbage collector, of which Trio warns."""
LIBRARIES = pytest.mark.parametrize("library", [httpx2, httpx], ids=lambda library: library.__name__)


@asynccontextmanager
async def sdk(it, library):
    """Return OpenAI's SDK in the app's own process."""
    async with library.AsyncClient(transport=it.client.transport(library)) as http_client:
        yield openai.AsyncOpenAI(
            http_client=http_client, base_url="http://in-process/v1", api_key="any", max_retries=0
        )


def test_public_names_are_listed_and_importable():
    """dir(qproxy) names everything that the package exports, before it is imported."""
    assert set(qproxy.__all__) <= set(dir(qproxy))
    assert all(getattr(qproxy, name) is not None for name in qproxy.__all__)
    assert inspect.get_annotations(qproxy.create_app)["return"] == "App"
    with pytest.raises(AttributeError, match="no attribute 'Confg'"):
        _ = qproxy.Confg


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        [("content-type", "application/json")],
        [(b"content-type", b"application/json"), (b"host", b"localhost")],
    ],
)
@pytest.mark.parametrize("encode", [str, str.encode])
async def test_headers_and_bodies_in_every_form(headers, encode, autojump_clock):
    """Headers are a mapping or pairs, of text or bytes; a body is text or bytes."""
    async with (
        world() as it,
        it.client.request("POST", PATH, headers=headers, body=encode(json.dumps(HELLO))) as response,
    ):
        assert response.status == 200
        assert json.loads(await response.read())["object"] == "chat.completion"
        assert await response.receive() == b""


@SDK
@LIBRARIES
async def test_the_sdk_in_process(library, autojump_clock):
    """AsyncOpenAI with the transport completes, streams, embeds, and raises the API's errors."""
    async with world() as it, sdk(it, library) as client:
        answer = await client.chat.completions.create(**HELLO)
        assert "You said: Hello there" in answer.choices[0].message.content
        chunks = [chunk async for chunk in await client.chat.completions.create(**HELLO, stream=True)]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == answer.choices[0].message.content
        assert len(chunks) > 3
        assert (await client.embeddings.create(model="text-embedding-v4", input=["a", "b"])).data[
            1
        ].index == 1
        assert MODEL in [model.id async for model in client.models.list()]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.chat.completions.create(**HELLO, temperature="hot")
        assert it.sound()


@SDK
async def test_anthropics_sdk_in_process(autojump_clock):
    """AsyncAnthropic with the transport gets messages, whole and streamed."""
    async with world() as it, httpx2.AsyncClient(transport=it.client.transport(httpx2)) as http_client:
        client = anthropic.AsyncAnthropic(
            http_client=http_client, base_url="http://in-process", api_key="any", max_retries=0
        )
        message: dict = {**HELLO, "max_tokens": 100}
        block = (await client.messages.create(**message)).content[-1]
        assert block.type == "text"
        assert "You said: Hello there" in block.text
        async with client.messages.stream(**message) as stream:
            assert await stream.get_final_text() == block.text


@SDK
@LIBRARIES
async def test_a_stream_arrives_in_time_and_closes_early(library, autojump_clock):
    """The first chunk arrives while the upstream is silent; closing the stream closes the upstream."""
    async with world() as it, sdk(it, library) as client:
        it.emulator.script(slow(BEGUN))
        stream = await client.chat.completions.create(**HELLO, stream=True)
        with trio.fail_after(1):
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content == "Hel":
                    break
            await stream.close()
            (seen,) = it.emulator.requests
            await seen.disconnected.wait()
        assert it.sound()


@SDK
@LIBRARIES
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_a_request_cancels_the_app(library, stream, autojump_clock):
    """A cancelled call frees the upstream, before the head and while the body is read."""
    async with world() as it, sdk(it, library) as client:
        it.emulator.script(slow(BEGUN))

        async def ask():
            async for _ in await client.chat.completions.create(**HELLO, stream=stream):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: it.emulator.requests)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        (seen,) = it.emulator.requests
        with trio.fail_after(0.1):
            await seen.disconnected.wait()
        await it.client.wait_idle()
        assert it.sound()


@LIBRARIES
async def test_the_read_timeout_of_the_client_applies(library, autojump_clock):
    """A silent upstream raises the library's ReadTimeout after the client's time, and is freed."""
    async with world() as it:
        it.emulator.script(slow())
        async with library.AsyncClient(transport=it.client.transport(library), timeout=7) as client:
            started_at = trio.current_time()
            with pytest.raises(library.ReadTimeout, match=r"within 7 s \(the client's read timeout\)"):
                await client.post(f"http://in-process{PATH}", json=HELLO)
            assert trio.current_time() - started_at == pytest.approx(7)
        await it.client.wait_idle()
        assert it.sound()


async def _never(scope, receive, send):
    pass


async def _truncated(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def _broken(scope, receive, send):
    await _truncated(scope, receive, send)
    raise ZeroDivisionError


@LIBRARIES
@pytest.mark.parametrize("app", [_never, _truncated, _broken])
async def test_a_truncated_response_is_an_error(app, library, autojump_clock):
    """An app that returns early, or raises, never looks like a complete response."""
    async with trio.open_nursery() as nursery:
        client = qproxy.InProcessClient(app, nursery)
        with pytest.RaisesGroup(qproxy.InProcessError):
            async with client.request("GET", "/") as response:
                await response.read()
        async with library.AsyncClient(transport=client.transport(library)) as http_client:
            with pytest.raises(
                library.RemoteProtocolError, match="before its response was complete"
            ) as caught:
                await http_client.get("http://in-process/")
        cause = caught.value.__cause__.__cause__
        assert isinstance(cause, ZeroDivisionError) if app is _broken else cause is None


@LIBRARIES
async def test_a_transport_ends_with_its_block(library, autojump_clock):
    """After the block of in_process a request raises the library's ConnectError."""
    async with world() as it:
        transport = it.client.transport(library)
    async with library.AsyncClient(transport=transport) as client:
        with pytest.raises(library.ConnectError, match="shut down"):
            await client.get("http://in-process/livez")
    with pytest.raises(ValueError, match="in_process"):
        qproxy.InProcessClient(_never).transport(library)


async def test_an_app_that_does_not_start_is_one_plain_error(autojump_clock):
    """A failed start raises a plain RuntimeError with its reason, not a group."""

    async def failing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no account"})

    with pytest.raises(RuntimeError, match="the app did not start: no account"):
        async with qproxy.in_process(failing):
            pass


@asynccontextmanager
async def example(name, tmp_path, monkeypatch, **settings):
    """Yield a program of docs/examples, imported with the settings of an emulator, and the emulator."""
    for variable in os.environ:
        if variable.startswith(("QPROXY_", "DASHSCOPE_", "BAILIAN_")) or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    for setting, value in settings.items():
        monkeypatch.setenv(f"QPROXY_{setting.upper()}", value)
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        monkeypatch.setenv("QPROXY_UPSTREAM", emulator.base_url)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module, emulator
        nursery.cancel_scope.cancel()


@SDK
async def test_example_of_the_sdk(tmp_path, monkeypatch, capsys):
    """docs/examples/openai_in_process.py prints a streamed response."""
    async with example("openai_in_process", tmp_path, monkeypatch) as (module, emulator):
        with trio.fail_after(20):
            await module.main("Hello there")
        assert len(emulator.requests) == 1
    assert "You said: Hello there" in capsys.readouterr().out


async def test_example_of_custom_routes(tmp_path, monkeypatch):
    """docs/examples/custom_routes.py calls the model with the caller's key, which its route requires."""
    async with example("custom_routes", tmp_path, monkeypatch, api_keys="sk-a") as (module, emulator):
        emulator.script(ScriptedReply((b'{"error": {"message": "no such thing"}}',), status=400))
        with trio.fail_after(20):
            async with qproxy.in_process(module.app) as client:

                async def summary(headers):
                    async with client.request("POST", "/summary", headers=headers, body="A text") as response:
                        return response.status, json.loads(await response.read())

                assert (await summary({}))[0] == 401
                assert not emulator.requests
                refused, answer = await summary({"authorization": "Bearer sk-a"})
                assert (refused, "no such thing" in answer["error"]["message"]) == (400, True)
                status, answer = await summary({"authorization": "Bearer sk-a"})
                assert status == 200
                assert answer["summary"].endswith("A text")
