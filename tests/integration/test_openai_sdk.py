"""The official client works against qproxy over real sockets."""

import json
from contextlib import asynccontextmanager
from functools import partial

import openai
import pytest
import trio
from pydantic import BaseModel

import qproxy
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import FAULTS, Emulator, ScriptedReply, embeddings, multimodal_embeddings
from tests.helpers import MODEL
from tests.integration.test_chat import WEATHER
from tests.wire.pipeline import cut
from tests.wire.test_recorded_streams import FILES, TOOLS, expected

STRICT: dict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@asynccontextmanager
async def sdk():
    """Return an OpenAI client of a qproxy that serves an emulator; its calls run in a thread."""
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        config = Config(
            port=0, accounts=(AccountConfig("emu", base_url=emulator.base_url, key="sk-test-key"),)
        )
        urls = await nursery.start(partial(qproxy.serve, config))
        with openai.OpenAI(base_url=f"{urls[0]}/v1", api_key="any", max_retries=0) as client:
            yield client, emulator
        nursery.cancel_scope.cancel()


async def run(function, *args, **kwargs):
    return await trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def test_whole_and_models():
    """create and models.list work as with OpenAI's API."""
    async with sdk() as (client, _):
        answer = await run(client.chat.completions.create, model=MODEL, messages=QUESTION, temperature=0)
        assert "You said" in answer.choices[0].message.content
        assert answer._request_id.startswith("req_")
        names = await run(lambda: [model.id for model in client.models.list()])
        assert MODEL in names


async def test_stream_of_a_tool_call():
    """The stream helper accumulates a call whose arguments are the whole JSON."""

    def ask(client):
        with client.chat.completions.stream(
            model=MODEL,
            messages=QUESTION,
            tools=[STRICT],
            stream_options={"include_usage": True},
        ) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion()

    async with sdk() as (client, _):
        final = await run(ask, client)
        call = final.choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        assert final.usage.total_tokens > 0


async def test_recorded_streams_accumulate():
    """The client's accumulator turns every recorded stream, cut at odd positions, into the expected
    message."""
    tools: list = json.loads(json.dumps(TOOLS))
    for tool in tools:
        tool["function"]["strict"] = True  # the helper requires it

    def streamed(client):
        with client.chat.completions.stream(model=MODEL, messages=QUESTION, tools=tools) as stream:
            stream.until_done()
            return stream.get_final_completion()

    def whole(client):
        return client.chat.completions.create(model=MODEL, messages=QUESTION, tools=tools)

    async with sdk() as (client, emulator):
        for path in FILES:
            meaning = expected(path)
            if meaning["reason"] not in ("stop", "tool_calls"):
                continue  # the helper raises for those
            raw = path.read_bytes()
            for ask in (streamed, whole):
                emulator.script(ScriptedReply(tuple(cut(raw, range(61, len(raw), 211)))))
                (choice,) = (await run(ask, client)).choices
                calls = [
                    [one.function.name, one.function.arguments] for one in choice.message.tool_calls or ()
                ]
                assert (calls, choice.finish_reason) == (meaning["calls"], meaning["reason"]), path
                assert (choice.message.content or "") == meaning["text"]
                ids = [one.id for one in choice.message.tool_calls or ()]
                assert len(set(ids)) == len(ids)
                assert all(ids)


async def test_parse_into_a_model():
    """parse() with a pydantic response format returns an instance."""

    class City(BaseModel):
        name: str
        people: int

    async with sdk() as (client, _):
        answer = await run(
            client.chat.completions.parse, model=MODEL, messages=QUESTION, response_format=City
        )
        assert isinstance(answer.choices[0].message.parsed, City)


async def test_error_classes():
    """Each rejection raises the exception class that programs catch."""
    async with sdk() as (client, _):
        for model, error in (
            ("nope", openai.NotFoundError),
            ("fault-429", openai.RateLimitError),
            ("fault-filter", openai.BadRequestError),
            ("fault-401", openai.InternalServerError),
        ):
            with pytest.raises(error):
                await run(client.chat.completions.create, model=model, messages=QUESTION)


async def test_a_cut_stream_raises():
    """A truncated stream raises APIError instead of ending normally."""

    def read(client):
        return list(client.chat.completions.create(model="fault-cut", messages=QUESTION, stream=True))

    async with sdk() as (client, _):
        with pytest.raises(openai.APIError, match="before the response was complete"):
            await run(read, client)


async def test_closing_a_stream_frees_the_upstream():
    """Closing a stream half-way closes the upstream connection."""

    def read_one_chunk(client):
        with client.chat.completions.create(model="fault-hang", messages=QUESTION, stream=True) as stream:
            next(iter(stream))

    async with sdk() as (client, emulator):
        assert "fault-hang" in FAULTS
        await run(read_one_chunk, client)
        with trio.fail_after(5):
            await emulator.requests[-1].disconnected.wait()


async def test_embeddings_in_the_default_encoding():
    """The client requests base64 by default and gets the upstream's numbers, over several batches."""
    texts = [f"text {number}" for number in range(25)]
    async with sdk() as (client, emulator):
        answer = await run(client.embeddings.create, model="text-embedding-v4", input=texts, dimensions=64)
        assert [item.index for item in answer.data] == list(range(25))
        for item, text in zip(answer.data, texts, strict=True):
            assert item.embedding == pytest.approx(embeddings.vector(text, 64), abs=1e-7)
        assert answer.usage.prompt_tokens == 50
        assert len(emulator.requests) == 3
        with pytest.raises(openai.BadRequestError, match="token ids"):
            await run(client.embeddings.create, model="text-embedding-v4", input=[[1, 2]])


async def test_embeddings_of_pictures():
    """The client sends items that its types do not have, and reads their vectors."""
    items = ["a cat", {"image": "https://a.test/cat.png"}]
    contents = [{"text": "a cat"}, {"image": "https://a.test/cat.png"}]
    async with sdk() as (client, _):
        answer = await run(client.embeddings.create, model="qwen3-vl-embedding", input=items, dimensions=256)
        for item, content in zip(answer.data, contents, strict=True):
            assert item.embedding == pytest.approx(multimodal_embeddings.vector([content], 256), abs=1e-7)


async def test_completions():
    """Whole and streamed text are the same, from several prompts."""

    def read(client):
        chunks = client.completions.create(model=MODEL, prompt=["one", "two"], stream=True)
        return [(choice.index, choice.text) for chunk in chunks for choice in chunk.choices]

    async with sdk() as (client, _):
        answer = await run(client.completions.create, model=MODEL, prompt=["one", "two"])
        pieces = await run(read, client)
        for choice in answer.choices:
            assert choice.text == "".join(text for index, text in pieces if index == choice.index)


async def test_parse_tools_into_models():
    """parse() with a pydantic tool returns the call's arguments as an instance."""

    class GetWeather(BaseModel):
        """The weather in a city."""

        city: str

    async with sdk() as (client, _):
        tool = openai.pydantic_function_tool(GetWeather)
        answer = await run(client.chat.completions.parse, model=MODEL, messages=QUESTION, tools=[tool])
        assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == GetWeather(city="Paris")


REPEATED = {
    "a refusal": ("fault-filter", openai.BadRequestError, 1),
    "an unknown model": ("nope", openai.NotFoundError, 1),
    "a minute's limit": ("fault-429", openai.RateLimitError, 2),
    "spent quota": ("fault-quota", openai.RateLimitError, 1),
    "our own key": ("fault-401", openai.InternalServerError, 1),
}


@pytest.mark.parametrize(("model", "error", "asked"), REPEATED.values(), ids=REPEATED)
async def test_the_client_retries_recoverable_errors(model, error, asked):
    """openai-python's retries obey x-should-retry: a rate limit allows a retry, an exhausted quota does
    not."""
    waits = []
    async with sdk() as (client, emulator):
        patient = client.with_options(max_retries=1)
        patient._sleep_for_retry = lambda **options: waits.append(options)  # without waiting
        with pytest.raises(error):
            await run(patient.chat.completions.create, model=model, messages=QUESTION)
        assert len(emulator.requests) == asked
        assert len(waits) == asked - 1
