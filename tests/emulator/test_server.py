"""The emulated Qwen rejects what DashScope rejects, and its calls match their schemas."""

import json

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qproxy.emulator import FAULTS, Emulator, IdentityServer, chat, completions, embeddings
from qproxy.emulator.errors import ApiError
from qproxy.emulator.schema_values import example_arguments
from tests.examples import examples
from tests.helpers import H1Client
from tests.wire.strangers import ASK, mutated, mutations, values

USER = {"role": "user", "content": "hi"}
TOOL: dict = {"type": "function", "function": {"name": "get_weather", "description": "weather"}}
ASKS: dict = {"model": "qwen-plus", "messages": [{"role": "user", "content": "weather in New York"}]}

REFUSALS: dict[str, tuple[dict, int]] = {
    "no model": ({"messages": [USER]}, 400),
    "unknown model": ({"model": "gpt", "messages": [USER]}, 404),
    "no messages": ({"messages": []}, 400),
    "developer": ({"messages": [{"role": "developer", "content": "x"}]}, 400),
    "system later": ({"messages": [USER, {"role": "system", "content": "x"}]}, 400),
    "empty tools": ({"tools": []}, 400),
    "stream_options": ({"stream_options": {}}, 400),
    "temperature": ({"temperature": 2}, 400),
    "top_p": ({"top_p": 0}, 400),
    "max_tokens": ({"max_tokens": 10**9}, 400),
    "forced while thinking": ({"tool_choice": "required", "enable_thinking": True}, 400),
    "json without the word": ({"response_format": {"type": "json_object"}}, 400),
    "orphan tool message": ({"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": "y"}]}, 400),
}


@pytest.mark.parametrize(("fields", "status"), REFUSALS.values(), ids=REFUSALS.keys())
def test_rejections(fields, status):
    """A rejection has DashScope's status and shape."""
    base = {} if fields == {"messages": [USER]} else {"model": "qwen-plus", "messages": [USER]}
    with pytest.raises(ApiError) as caught:
        chat.validate({**base, **fields})
    assert caught.value.status == status
    assert caught.value.body["error"]["message"]


SCHEMAS = {
    "enum by the question": ({"enum": ["red", "blue"]}, "the blue one", "blue"),
    "const": ({"const": 4}, "", 4),
    "number of the question": ({"type": "integer"}, "add 7", 7),
    "bounds": ({"type": "number", "minimum": 2, "maximum": 3}, "add 7", 3),
    "boolean": ({"type": "boolean"}, "", True),
    "array": ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "1 and 2", [1, 2]),
    "nullable": ({"type": ["null", "boolean"]}, "", True),
    "union": ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "", True),
    "reference": ({"$defs": {"c": {"type": "boolean"}}, "type": "object",
        "properties": {"a": {"$ref": "#/$defs/c"}}}, "", {"a": True}),
    "place": ({"type": "object", "properties": {"city": {"type": "string"}}}, "weather in New York",
        {"city": "New York"}),
    "quoted": ({"type": "object", "properties": {"q": {"type": "string"}}}, "search 'x y'", {"q": "x y"}),
    "only what is required": ({"type": "object", "properties": {"a": {}, "b": {"type": "boolean"}},
        "required": ["b"]}, "", {"b": True}),
    "for ever": ({"$ref": "#"}, "", {}),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "question", "value"), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_arguments(schema, question, value):
    """Arguments match their schema and use the question's values."""
    assert example_arguments(schema, question) == value


def test_reasoning_tools_and_json():
    """Replies have reasoning, calls, parallel calls, forced calls and JSON mode."""
    assert chat.reply({**ASKS, "enable_thinking": True})[0]
    assert [name for name, _ in chat.reply({**ASKS, "tools": [TOOL]})[2]] == ["get_weather"]
    other = {"type": "function", "function": {"name": "other"}}
    both = {**ASKS, "messages": [{"role": "user", "content": "both please"}], "tools": [TOOL, other]}
    assert len(chat.reply(both)[2]) == 2
    assert chat.reply({**both, "tool_choice": other})[2][0][0] == "other"
    assert chat.reply({**both, "tool_choice": "none"})[2] == []
    assert json.loads(chat.reply({**ASKS, "response_format": {"type": "json_object"}})[1])


def test_embeddings():
    """Equal texts have equal vectors, ten texts are the limit, and the length is the requested one."""
    answer = embeddings.openai_response(
        {"model": "text-embedding-v4", "input": ["a", "b", "a"], "dimensions": 64}
    )
    one, two, three = (entry["embedding"] for entry in answer["data"])
    assert one == three != two
    assert len(one) == 64
    assert abs(sum(x * x for x in one) - 1) < 1e-9
    native = embeddings.dashscope_response(
        {"model": "text-embedding-v4", "input": {"texts": ["a", "b"]}, "parameters": {"dimension": 64}}
    )
    assert [row["text_index"] for row in native["output"]["embeddings"]] == [1, 0]
    assert native["output"]["embeddings"][1]["embedding"] == one


@pytest.mark.parametrize(
    ("change", "status", "pattern"),
    [
        ({"input": ["x"] * 11}, 400, "not be larger than 10"),
        ({"input": [[1, 2]]}, 400, "neither str nor list"),
        ({"input": ""}, 400, "neither str nor list"),
        ({"dimensions": 100}, 400, "not one of"),
        ({"encoding_format": "base64"}, 400, "float"),
        ({"model": "text-embedding-3-small"}, 404, "does not exist"),
    ],
)
def test_embeddings_are_rejected(change, status, pattern):
    """The emulator rejects what DashScope rejects."""
    with pytest.raises(ApiError, match=pattern) as caught:
        embeddings.openai_response({"model": "text-embedding-v4", "input": "x"} | change)
    assert caught.value.status == status


CODER = {"model": "qwen3-coder-plus", "prompt": "def f(a, b):"}


def test_completions():
    """Text continues, a gap is filled; chunks add up to the whole; probabilities come token by token."""
    body = {**CODER, "n": 2, "logprobs": 1, "max_tokens": 3}
    whole = completions.response(body)
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * 2
    texts = ["", ""]
    for chunk in completions.chunks({**body, "stream_options": {"include_usage": True}}):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert chunk["usage"] == whole["usage"]
    tokens = whole["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == 3
    assert "".join(tokens) == texts[0]
    gap = {**CODER, "prompt": "<|fim_prefix|>def f():\n<|fim_suffix|>\n<|fim_middle|>"}
    assert "return" in completions.response(gap)["choices"][0]["text"]


@pytest.mark.parametrize(
    "change", [{"model": "qwen-plus"}, {"prompt": [1, 2]}, {"suffix": "x"}], ids=["model", "ids", "suffix"]
)
def test_completions_are_rejected(change):
    """Other models, token ids and the field suffix are rejected."""
    with pytest.raises(ApiError):
        completions.validate({**CODER, **change})


def test_faults_have_descriptions():
    """Each fault has a one-line description."""
    assert all(line for line, _ in FAULTS.values())


async def test_over_a_socket(nursery):
    """The emulator serves several requests on one connection, checks its keys, and rejects unknown paths."""
    emulator = Emulator(keys={"sk-1"})
    await nursery.start(emulator.serve)
    import trio

    client = H1Client(
        await trio.open_tcp_stream("127.0.0.1", int(emulator.base_url.split(":")[2].split("/")[0]))
    )
    for method, path, key, status in (
        ("GET", "/v1/models", "sk-1", 200),
        ("POST", "/v1/embeddings", "sk-1", 200),
        ("GET", "/v1/models", "sk-2", 401),
        ("GET", "/other", "sk-1", 404),
    ):
        await client.send(
            method,
            path,
            b'{"model": "text-embedding-v4", "input": "x"}' if method == "POST" else b"",
            [("authorization", f"Bearer {key}")],
        )
        assert (await client.response())[0] == status
        client.http.start_next_cycle()
    assert emulator.connections == 1
    await client.aclose()
    nursery.cancel_scope.cancel()


PATHS = (
    "/v1/chat/completions", "/compatible-mode/v1/chat/completions", "/v1/completions", "/v1/embeddings",
    "/authorize",
    "/api/v1/services/embeddings/text-embedding/text-embedding", "/api/v1/oauth2/device/code",
    "/api/v1/oauth2/token",
    "/emulator/next",
    "/api/v1/services/aigc/text-generation/generation",
    "/api/v1/services/aigc/multimodal-generation/generation",
)  # fmt: skip
DEVICE = {
    "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
    "device_code": "c",
    "code_verifier": "v",
}
NATIVE = {"model": "qwen3.8-max", "input": {"messages": [{"role": "user", "content": [{"text": "x"}]}]}}
QWEN4 = {**ASK, "model": "qwen4-max", "prompt_cache_options": {"mode": "implicit", "ttl": "5m"}}
SOUND = (ASK, QWEN4, CODER, {"model": "text-embedding-v4", "input": ["x"]}, NATIVE, DEVICE)
odd_bodies = st.one_of(
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(SOUND).flatmap(
        lambda body: mutations(body).map(lambda made: json.dumps(mutated(body, made)).encode())
    ),
    st.integers(1, 5000).map(lambda depth: b"[" * depth + b"]" * depth),
    st.binary(max_size=20),
)


@given(st.lists(st.tuples(st.sampled_from(PATHS), odd_bodies, st.booleans()), min_size=5, max_size=5))
@examples(40)
def test_any_body_gets_a_response(requests):
    """Any body at any path, as JSON or as a form, gets a response, and so does the next request."""

    async def play():
        emulator = Emulator()
        async with trio.open_nursery() as nursery:
            for path, body, form in [*requests, ("/v1/chat/completions", json.dumps(ASKS).encode(), False)]:
                client_end, server_end = trio.testing.memory_stream_pair()
                nursery.start_soon(emulator.handle, server_end)
                client = H1Client(client_end)
                kind = "application/x-www-form-urlencoded" if form else "application/json"
                await client.send("POST", path, body, [("content-type", kind)])
                status, _ = await client.response()
                assert status in (200, 400, 401, 404, 429), (path, body)
                await client.aclose()
            assert status == 200

    trio.run(play)


class Broken(IdentityServer):
    """An identity server that raises an exception."""

    def reply(self, method, path, query, body, origin):
        if path == "/broken":
            raise ZeroDivisionError
        return super().reply(method, path, query, body, origin)


async def test_a_failing_connection_closes_no_other_one(nursery, caplog):
    """An exception in the emulator closes one connection, and is logged."""
    emulator = await nursery.start(Emulator(identity=Broken()).serve)
    for path, expected in ((b"/broken", b""), (b"/v1/models", b"HTTP/1.1 200")):
        async with await trio.open_tcp_stream("127.0.0.1", emulator.port) as stream:
            await stream.send_all(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
            assert bytes(await stream.receive_some())[:12] == expected
    assert "a connection of the emulator failed" in caplog.text
