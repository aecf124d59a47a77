"""Anthropic's API has its own responses, headers and errors everywhere on the server, beside OpenAI's."""

import json

import pytest
from anthropic.types import MessageTokensCount, ModelInfo

from qproxy.backends.local import key_file
from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.wire.conformance import anthropic as contract
from tests.anthropic_types import frames, judge_error, judge_message, judge_stream
from tests.helpers import HELLO, MODEL, accounts, world
from tests.openai_types import judge
from tests.server.test_endpoint_row import call, prepare

__all__ = ["prepare"]
PATH = "/v1/messages"
ASK = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello there"}]}
TOOL = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
JSON = (b"content-type", b"application/json")
VERSION = (b"anthropic-version", b"2023-06-01")
KEY = (b"x-api-key", b"secret")
BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
REST = chunk({"content": "lo"}) + chunk({}, "stop") + DONE


async def ask(it, path=PATH, headers=(JSON, VERSION), method="POST", **change):
    """Return (status, headers, text) of a response."""
    return await call(it, method, path, {**ASK, **change}, headers)


def assert_own_headers(headers):
    """A response has Anthropic's headers, and none that are OpenAI's alone."""
    assert headers["request-id"] == headers["x-request-id"]
    assert headers["request-id"].startswith("req_")
    assert not [name for name in headers if name.startswith(("openai-", "x-ratelimit-"))]


CHANGES = {
    "text": {},
    "thinking": {"thinking": {"type": "adaptive"}},
    "no thinking": {"thinking": {"type": "disabled"}},
    "a call": {"tools": [TOOL], "tool_choice": {"type": "any"}},
    "history": {
        "messages": [
            *ASK["messages"],  # type: ignore[misc]
            {"role": "system", "content": "Be brief."},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
        ],
        "tools": [TOOL],
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_answers(change, prepare):
    """Whole and streamed, at both paths and with any query, a response has the SDK's types and keeps the
    contract."""
    async with world() as it:
        prepare(it.app)
        for path in (PATH, "/messages", f"{PATH}?beta=true"):
            status, headers, text = await ask(it, path, **change)
            assert (status, headers["content-type"]) == (200, "application/json")
            assert_own_headers(headers)
            whole = judge_message(json.loads(text))
            assert contract.check_message(json.loads(text)).violations == []
            status, headers, text = await ask(it, path, stream=True, **change)
            assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert_own_headers(headers)
            judge_stream(text.encode())
            parsed = contract.check_stream(frames(text.encode()))
            assert parsed.violations == []
            assert parsed.message["stop_reason"] == whole.stop_reason
            assert parsed.message["usage"]["output_tokens"] > 0
        assert whole.model == MODEL
        assert it.sound()


async def test_pings(prepare, autojump_clock):
    """Pings keep a silent stream alive."""
    async with world() as it:
        prepare(it.app)
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(35), REST)))
        status, _, text = await ask(it, stream=True)
        parsed = contract.check_stream(frames(text.encode()))
        assert (status, parsed.violations, parsed.pings) == (200, [], 3)
        assert parsed.message["content"] == [{"type": "text", "text": "Hello"}]


async def test_a_failure_in_mid_stream(prepare, autojump_clock):
    """A truncated upstream is an error event with the request's id at the end of the stream."""
    async with world() as it:
        prepare(it.app)
        it.emulator.script(ScriptedReply((BEGUN,)))
        status, headers, text = await ask(it, stream=True)
        parsed = contract.check_stream(frames(text.encode()))
        assert (status, parsed.violations) == (200, [])
        body = json.loads(frames(text.encode())[-1][1])
        assert (body["error"]["type"], body["request_id"]) == ("api_error", headers["request-id"])


REFUSALS = {
    "no key": ({"headers": [JSON]}, 401, "authentication_error"),
    "a wrong key": ({"headers": [JSON, (b"x-api-key", b"no")]}, 401, "authentication_error"),
    "not JSON": ({"body": b"{"}, 400, "invalid_request_error"),
    "a wrong field": ({"body": {**ASK, "max_tokens": None}}, 400, "invalid_request_error"),
    "an unknown model": ({"body": {**ASK, "model": "claude-opus-4-8"}}, 404, "not_found_error"),
    "too large": ({"body": b" " * 2000}, 413, "request_too_large"),
    "no JSON by its type": (
        {"headers": [KEY, (b"content-type", b"text/plain")]},
        415,
        "invalid_request_error",
    ),
    "compressed": ({"headers": [KEY, JSON, (b"content-encoding", b"br")]}, 415, "invalid_request_error"),
    "a failing upstream": ({"body": {**ASK, "model": "fault-500"}}, 502, "api_error"),
    "a limited upstream": ({"body": {**ASK, "model": "fault-429"}}, 429, "rate_limit_error"),
    "another method": ({"method": "DELETE"}, 405, "invalid_request_error"),
    "an unknown path": ({"path": "/v1/messages/batches"}, 404, "not_found_error"),
    "an unknown path with the version": (
        {"path": "/v1/skills/x", "headers": [VERSION]},
        404,
        "not_found_error",
    ),
    "an unknown model in the list": (
        {"method": "GET", "path": "/v1/models/none", "headers": [KEY, VERSION], "body": b""},
        404,
        "not_found_error",
    ),
}


@pytest.mark.parametrize(("sent", "status", "kind"), REFUSALS.values(), ids=REFUSALS)
async def test_rejections(sent, status, kind, prepare, autojump_clock):
    """A rejection by any part has Anthropic's shape and the request's id."""
    async with world(api_keys=["secret"], max_body_bytes=1000) as it:
        prepare(it.app)
        received, headers, text = await call(
            it, **{"path": PATH, "body": ASK, "headers": [KEY, JSON], **sent}
        )
        body = json.loads(text)
        assert (received, body["type"], body["error"]["type"]) == (status, "error", kind)
        assert body["request_id"] == headers["request-id"]
        assert_own_headers(headers)
        if kind != "request_too_large":
            judge_error(body)


async def test_keys():
    """A key comes from x-api-key or as a bearer token; with both, the bearer token decides unless it is
    empty."""
    async with world(api_keys=["secret"]) as it:
        bearer, wrong = (b"authorization", b"Bearer secret"), (b"authorization", b"Bearer no")
        for keys, status in (
            ([KEY], 200),
            ([bearer], 200),
            ([(b"x-api-key", b"no"), bearer], 200),
            ([KEY, wrong], 401),
            ([KEY, (b"authorization", b"Bearer ")], 200),
        ):
            assert (await ask(it, headers=[JSON, *keys]))[0] == status


async def test_an_overloaded_server(prepare):
    """A server at its limit returns 529, overloaded_error, and the time to retry."""
    async with world(max_requests=1, max_queue_size=0) as it:
        prepare(it.app)
        release = await it.server.state.concurrency.acquire()
        status, headers, text = await ask(it)
        release()
        assert (status, judge_error(json.loads(text)).error.type) == (529, "overloaded_error")
        assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")


OVERFLOWS = {
    "DashScope": ("Range of input length should be [1, 8]", "prompt is too long: 9 tokens > 8 maximum"),
    "vLLM": (
        "This model's maximum context length is 100 tokens. However, your request has 300 input tokens.",
        "prompt is too long: 300 tokens > 100 maximum",
    ),
    "vLLM, the answer": (
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length "
        "is 8192 tokens and your request has 5000 input tokens (4096 > 8192 - 5000).",
        "input length and `max_tokens` exceed context limit: 5000 + 4096 > 8192, decrease",
    ),
    "no numbers": ("context_length_exceeded", "prompt is too long: 1000001 tokens > 1000000 maximum"),
}


@pytest.mark.parametrize(("upstream_message", "prefix"), OVERFLOWS.values(), ids=OVERFLOWS)
async def test_context_overflow(upstream_message, prefix, prepare, autojump_clock):
    """A prompt that is too long gets the message at which Claude Code compacts, with the known numbers."""
    async with world() as it:
        prepare(it.app)
        body = json.dumps({"error": {"message": upstream_message, "type": "invalid_request_error"}}).encode()
        it.emulator.script(ScriptedReply((body,), status=400, content_type="application/json"))
        status, _, text = await ask(it)
        error = json.loads(text)["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert error["message"].startswith(prefix)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", HELLO),
        ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
        ("/v1/responses", {"model": MODEL, "input": "hi"}),
    ],
)
async def test_context_overflow_at_openais_endpoints(path, body, autojump_clock):
    """Other endpoints report the numbers too, in OpenAI's wording."""
    upstream_message = {"message": "Range of input length should be [1, 8]", "type": "invalid_request_error"}
    raw = json.dumps({"error": upstream_message}).encode()
    refusal = ScriptedReply((raw,), status=400, content_type="application/json")
    prefix = "This model's maximum context length is 8 tokens. However, your messages resulted in 9 "
    async with world() as it:
        for streamed in (False, True):
            it.emulator.script(refusal)
            status, _, answer = await it.post({**body, "stream": streamed}, path)
            error = answer["error"]
            assert (status, error["code"]) == (400, "context_length_exceeded")
            assert error["message"].startswith(prefix)


async def test_rate_limits(prepare, tmp_path, autojump_clock):
    """Anthropic's headers report a key's remaining limit and its exhaustion; counting uses a request."""
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", rpm=2, tpm=5000)
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        prepare(it.app)
        headers = [JSON, (b"x-api-key", secret.encode())]
        status, first, text = await ask(it, f"{PATH}/count_tokens", headers=headers)
        assert (status, first["anthropic-ratelimit-requests-remaining"]) == (200, "1")
        assert first["anthropic-ratelimit-tokens-remaining"] == "5000"
        status, second, _ = await ask(it, headers=headers)
        assert (status, second["anthropic-ratelimit-requests-remaining"]) == (200, "0")
        assert second["anthropic-ratelimit-requests-reset"].endswith("Z")
        status, third, text = await ask(it, headers=headers)
        assert (status, judge_error(json.loads(text)).error.type) == (429, "rate_limit_error")
        assert int(third["retry-after"]) <= 60
        assert_own_headers(third)


async def test_estimates_follow_reports(prepare, tmp_path):
    """The upstream's reported prompt tokens correct later estimates: those of a stream and of a limit."""
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", tpm=100_000)
    usage = {"prompt_tokens": 40_000, "completion_tokens": 2, "total_tokens": 40_002}
    reply = ScriptedReply((BEGUN + chunk({}, "stop", usage=usage) + DONE,))
    body = {"messages": [{"role": "user", "content": "1" * 40_000}], "stream": True, "max_tokens": 1}
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        prepare(it.app)
        it.emulator.script(reply, reply)
        headers = [JSON, (b"x-api-key", secret.encode())]
        estimates = []
        for _ in range(2):
            _, _, text = await ask(it, headers=headers, **body)
            start = json.loads(frames(text.encode())[0][1])
            estimates.append(start["message"]["usage"]["input_tokens"])
        assert estimates[0] == 10_001
        assert 35_000 <= estimates[1] <= 40_000
        status, _, text = await ask(it, headers=headers, **body)  # 20,000 tokens are left
        assert (status, judge_error(json.loads(text)).error.type) == (429, "rate_limit_error")


async def test_count_tokens(prepare):
    """Counting needs no account, accepts any field, and sends nothing to the upstream."""
    async with world(accounts=accounts("one")) as it:
        prepare(it.app)
        before = len(it.emulator.requests)
        for body in (
            ASK,
            {**ASK, "max_tokens": None, "stream": True, "extra": 1},
            {**ASK, "model": "claude-x"},
        ):
            status, headers, text = await call(it, path=f"{PATH}/count_tokens", body=body, headers=[JSON])
            assert status == 200
            assert 4 <= judge(MessageTokensCount, json.loads(text)).input_tokens <= 10
            assert_own_headers(headers)
        long = {**ASK, "messages": [{"role": "user", "content": f"{n} hello " * 50} for n in range(100)]}
        _, _, text = await call(it, path=f"{PATH}/count_tokens", body=long, headers=[JSON])
        assert 10_000 <= json.loads(text)["input_tokens"] <= 20_000
        status, _, text = await call(it, path=f"{PATH}/count_tokens", body={"model": MODEL}, headers=[JSON])
        assert (status, judge_error(json.loads(text)).error.type) == (400, "invalid_request_error")
        assert len(it.emulator.requests) == before


async def test_names_that_a_pattern_covers(prepare):
    """Claude's names that an alias pattern covers are listed with their models; without patterns, none."""
    aliases = {"claude-*haiku*": "qwen3.8-flash", "claude-*": MODEL}
    for table, expected in ((aliases, set(aliases.values())), ({}, set()), ({"*": MODEL}, set())):
        async with world(aliases=table) as it:
            prepare(it.app)
            page = json.loads((await call(it, "GET", "/v1/models?limit=1000", b"", [VERSION]))[2])
            names = {item["id"]: item["display_name"] for item in page["data"] if "claude" in item["id"]}
            served = {"qwen3.8-flash" if "haiku" in name else MODEL for name in names}
            assert served == expected
            assert all(
                names[name] == f"{name} ({'qwen3.8-flash' if 'haiku' in name else MODEL})" for name in names
            )


async def test_models(prepare):
    """The list and one model have Anthropic's shape for its clients, in pages, and OpenAI's for others."""
    async with world(aliases={"claude-opus-4-8": MODEL}) as it:
        prepare(it.app)
        _, headers, text = await call(it, "GET", "/v1/models", b"", [VERSION])
        page = json.loads(text)
        models = {judge(ModelInfo, item).id: item for item in page["data"]}
        assert models["claude-opus-4-8"]["display_name"] == f"claude-opus-4-8 ({MODEL})"
        assert models[MODEL]["max_input_tokens"] > 0
        assert page["has_more"] is False
        assert_own_headers(headers)
        first = json.loads((await call(it, "GET", "/v1/models?limit=1", b"", [VERSION]))[2])
        after = f"/v1/models?limit=1000&after_id={first['last_id']}"
        rest = json.loads((await call(it, "GET", after, b"", [VERSION]))[2])
        assert first["has_more"]
        assert [item["id"] for item in first["data"] + rest["data"]] == [item["id"] for item in page["data"]]
        for name in (MODEL, "claude-opus-4-8"):
            _, _, text = await call(it, "GET", f"/v1/models/{name}", b"", [VERSION])
            assert judge(ModelInfo, json.loads(text)).id == name
        assert "object" in json.loads((await call(it, "GET", "/v1/models", b"", []))[2])


async def test_head():
    """Claude Code's first request, HEAD / without a key, gets a 200."""
    async with world(api_keys=["secret"]) as it:
        assert (await call(it, "HEAD", "/", b"", []))[0] == 200


async def test_openai_s_endpoints_do_not_change(prepare):
    """OpenAI's endpoints on the same server do not change."""
    async with world() as it:
        prepare(it.app)
        status, headers, body = await it.post(HELLO)
        assert (status, body["object"]) == (200, "chat.completion")
        assert "request-id" not in headers
        status, headers, body = await it.post({}, headers=[VERSION])
        assert (status, body["error"]["code"]) == (400, "missing_required_parameter")
        assert "request-id" not in headers


@pytest.mark.parametrize("path", [PATH, "/v1/responses"])
async def test_qwens_own_params(path, prepare):
    """The parameters that the models' data list reach the upstream from any API, unknown ones are named."""
    async with world() as it:
        prepare(it.app)
        sent = {"top_k": 7, "repetition_penalty": 1.1, "vl_high_resolution_images": True}
        body = {**(ASK if path == PATH else {"model": MODEL, "input": "hi"}), **sent, "field_of_tomorrow": 1}
        status, headers, _ = await call(it, path=path, body=body, headers=[JSON])
        upstream = it.emulator.requests[-1].body
        assert (status, headers["x-qproxy-ignored-params"]) == (200, "field_of_tomorrow")
        assert {name: upstream.get(name) for name in sent} == sent


async def test_prompt_bytes(prepare):
    """The upstream's prompt of each turn of a conversation starts with the bytes of the one before."""
    history = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "system", "content": "Be brief."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Let me see.", "signature": "s"},
                {
                    "type": "tool_use",
                    "id": "t",
                    "name": "get_weather",
                    "input": {"city": "Paris", "days": 1.0},
                },
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It is sunny."}]},
        {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
    ]
    for family in ("dashscope", "open"):
        async with world(
            accounts=accounts("one", kind=family) if family == "open" else accounts("one")
        ) as it:
            prepare(it.app)
            earlier = b""
            for number, count in enumerate((2, 4, 6)):
                billing = f"x-anthropic-billing-header: cch={number};"
                system = [{"type": "text", "text": billing}, {"type": "text", "text": "You are an agent."}]
                await ask(it, messages=history[:count], system=system, tools=[TOOL])
                body = it.emulator.requests[-1].body
                sent = json.dumps([body["tools"], body["messages"]]).encode()[:-2]
                assert sent.startswith(earlier)
                assert b"cch" not in sent
                earlier = sent
