"""A chat request passes through the app, the relay, the transport and an emulated Qwen in memory."""

import json
import logging
from contextlib import suppress

import pytest
import trio
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qproxy import create_app
from qproxy.config import Config
from qproxy.emulator import FAULTS, CloseConnection, Emulator, ScriptedReply
from qproxy.emulator.faults import DONE, chunk, event, json_reply
from tests.helpers import HELLO, MODEL, accounts, frames, world

WEATHER: dict = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [WEATHER],
}
JSON_HEADER = ("content-type", "application/json")


async def test_whole_response():
    """A plain request gets a chat.completion with the client's model name and qproxy's headers."""
    async with world() as it:
        status, headers, body = await it.post(HELLO)
        assert status == 200
        assert body["choices"][0]["message"]["content"].endswith("You said: Hello there")
        ChatCompletion.model_validate(body, strict=True)
        assert body["usage"]["total_tokens"] > 0
        assert headers["x-request-id"].startswith("req_")
        assert headers["x-qproxy-upstream-request-id"] == "emu-1"
        assert float(headers["x-qproxy-overhead-ms"]) >= 0
        assert it.sound()


async def test_the_upstream_is_always_streamed():
    """A whole response from DashScope is assembled from a stream that requests usage."""
    async with world() as it:
        await it.post(HELLO)
        sent = it.emulator.requests[0]
        assert sent.body["stream"] is True
        assert sent.body["stream_options"] == {"include_usage": True}
        assert sent.headers["authorization"] == "Bearer sk-test-key"
        assert sent.headers["user-agent"].startswith("qproxy/")
        assert sent.headers["accept-encoding"] == "identity"


async def test_an_open_server_gets_the_client_s_request():
    """DashScope's rules do not touch an open server, and a whole response is requested whole."""
    async with world(accounts=accounts("open", kind="openai_compatible"), emulator=Emulator()) as it:
        it.emulator.script(
            json_reply(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
                }
            )
        )
        status, _, body = await it.post(
            {
                **HELLO,
                "model": "llama-3",
                "temperature": 2,
                "user": "me",
                "messages": [{"role": "developer", "content": "x"}, *HELLO["messages"]],
            }
        )
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "hi"
        assert body["choices"][0]["finish_reason"] == "stop"
        sent = it.emulator.requests[0].body
        assert (sent["stream"], sent["temperature"], sent["user"]) == (False, 2, "me")
        assert sent["messages"][0]["role"] == "developer"


async def test_stream():
    """Every chunk of a stream is valid, [DONE] ends it, and usage is present only on request."""
    async with world() as it:
        status, text = await it.stream(HELLO)
        assert status == 200
        data = frames(text)
        assert data[-1] == "[DONE]"
        for item in data[:-1]:
            ChatCompletionChunk.model_validate(json.loads(item), strict=True)
        assert "usage" not in text
        _, text = await it.stream({**HELLO, "stream_options": {"include_usage": True}})
        last = json.loads(frames(text)[-2])
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] > 0
        assert it.sound()


async def test_tool_call_and_its_result():
    """The model calls a declared tool with valid arguments and responds to its result in text."""
    async with world() as it:
        _, _, body = await it.post(ASK)
        choice = body["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        call = choice["message"]["tool_calls"][0]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        result = {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "sunny"}]}
        _, _, body = await it.post({**ASK, "messages": [*ASK["messages"], choice["message"], result]})
        assert "sunny" in body["choices"][0]["message"]["content"]


async def test_every_path_answers_without_v1_and_with_a_slash():
    """/chat/completions equals /v1/chat/completions, and a trailing slash is accepted."""
    async with world() as it:
        for path in ("/v1/chat/completions", "/chat/completions", "/v1/chat/completions/"):
            assert (await it.post(HELLO, path))[0] == 200, path


async def test_models():
    """Upstream model lists are merged, cached and filtered to text models; aliases are listed."""
    async with world(aliases={"gpt-4o": MODEL}) as it:
        status, body = await it.get("/v1/models")
        assert status == 200
        names = [entry["id"] for entry in body["data"]]
        assert MODEL in names
        assert "gpt-4o" in names
        assert "qwen-image-plus" not in names
        assert (await it.get("/v1/models/gpt-4o"))[1]["object"] == "model"
        assert (await it.get(f"/models/{MODEL}"))[1]["context_length"] == 1_000_000
        status, body = await it.get("/v1/models/org/none")
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert len([r for r in it.emulator.requests if r.path.endswith("/models")]) == 1
        assert it.server.state.counters.outcomes == {"ok": 3, "error": 1}


async def test_models_of_a_silent_server_come_from_the_table(autojump_clock):
    """An upstream that does not list its models costs five seconds once, and the published models are
    listed."""

    class Silent(Emulator):
        def _reply(self, seen):
            return FAULTS["fault-silent"][1]

    async with world(emulator=Silent()) as it:
        status, body = await it.get("/v1/models")
        assert status == 200
        assert MODEL in [entry["id"] for entry in body["data"]]
        assert trio.current_time() <= 6


async def test_an_alias_is_echoed_and_resolved():
    """The client sees its own model name; the upstream gets the model behind the alias."""
    async with world(aliases={"gpt-4o": MODEL}) as it:
        _, _, body = await it.post({**HELLO, "model": "gpt-4o"})
        assert body["model"] == "gpt-4o"
        assert it.emulator.requests[0].body["model"] == MODEL


async def test_ignored_parameters_are_named():
    """A parameter that Qwen does not support is left out and named in a header; strict_params rejects it."""
    async with world() as it:
        _, headers, _ = await it.post({**HELLO, "user": "u", "logit_bias": {}})
        assert headers["x-qproxy-ignored-params"] == "logit_bias, user"
        assert "user" not in it.emulator.requests[0].body
    async with world(strict_params=True) as it:
        status, _, body = await it.post({**HELLO, "logit_bias": {}})
        assert (status, body["error"]["param"]) == (400, "logit_bias")


REFUSED = {
    "bad json": (b"{", 400, None),
    "nan": (b'{"model": NaN}', 400, None),
    "deep": (b"[" * 100_000, 400, "invalid_value"),
    "not utf-8": (b'"\xff"', 400, None),
    "no messages": (b'{"model": "m"}', 400, "missing_required_parameter"),
    "unknown model": (json.dumps({**HELLO, "model": "nope"}).encode(), 404, "model_not_found"),
    "a long model name": (json.dumps({**HELLO, "model": "m" * 1001}).encode(), 400, "invalid_value"),
}


@pytest.mark.parametrize(("body", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_rejections_have_openai_shape(body, status, code):
    """Every rejection is OpenAI's error object with its four keys."""
    async with world() as it:
        received, _, answer = await it.post(body)
        assert received == status
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["code"] == code


async def test_wrong_urls_methods_types_and_sizes():
    """404, 405, 415 and 413 use the same error shape."""
    async with world(max_body_bytes=100) as it:
        assert (await it.get("/v1/nope"))[1]["error"]["code"] == "unknown_url"
        status, body = await it.get("/v1/completions")
        assert (status, body["error"]["code"]) == (405, "method_not_allowed")
        status, _, body = await it.post({**HELLO, "x": "y" * 200})
        assert (status, body["error"]["code"]) == (413, "request_too_large")
    async with (
        world() as it,
        it.client.request(
            "POST", "/v1/chat/completions", headers=[(b"content-type", b"text/plain")], body=b"{}"
        ) as response,
    ):
        assert response.status == 415


async def test_client_keys():
    """With keys set, only a key itself authenticates, listed plain or by its digest; otherwise qproxy returns
    401."""
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    for keys in (["secret"], [digest]):
        async with world(api_keys=keys) as it:
            for headers in ([], [(b"authorization", b"Bearer wrong")]):
                status, _, body = await it.post(HELLO, headers=headers)
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
                assert (await it.get("/v1/models", headers))[0] == 401
            assert (await it.post(HELLO, headers=[(b"authorization", b"Bearer secret")]))[0] == 200
            assert (await it.get("/livez"))[0] == 200


FAILURES = {
    "fault-401": (502, "upstream_credentials_exhausted"),
    "fault-429": (429, "rate_limit_exceeded"),
    "fault-quota": (429, "rate_limit_exceeded"),
    "fault-500": (502, "upstream_error"),
    "fault-503": (503, "overloaded"),
    "fault-html": (502, "upstream_invalid_response"),
    "fault-filter": (400, "content_filter"),
    "fault-empty": (502, "upstream_error"),
    "fault-silent": (504, "upstream_timeout"),
    "fault-error-first": (429, "rate_limit_exceeded"),
}


@pytest.mark.parametrize(("model", "status", "code"), [(k, *v) for k, v in FAILURES.items()], ids=FAILURES)
async def test_a_failure_before_the_response_keeps_its_status(model, status, code, autojump_clock):
    """An upstream failure before its first event is an HTTP error status, streamed or not."""
    if model == "fault-quota":
        code = "insufficient_quota"
    for stream in (False, True):
        async with world(accounts=accounts("one", plan="coding" if model == "fault-quota" else "payg")) as it:
            received, headers, body = await it.post({**HELLO, "model": model, "stream": stream})
            assert (received, body["error"]["code"]) == (status, code)
            assert headers["content-type"] == "application/json"
            if model == "fault-429":
                assert headers["retry-after"] == "7"
            if code in ("insufficient_quota", "upstream_credentials_exhausted"):
                assert headers["x-should-retry"] == "false"
            assert it.sound()


LATE = ("fault-cut", "fault-end", "fault-hang", "fault-garbage", "fault-error-late")


@pytest.mark.parametrize("model", LATE)
async def test_a_failure_in_mid_response_is_one_frame(model, autojump_clock):
    """After the first byte a failure is one error frame without [DONE]; a whole response gets an error
    status."""
    async with world() as it:
        status, text = await it.stream({**HELLO, "model": model})
        assert status == 200
        last = json.loads(frames(text)[-1])
        assert last["error"]["type"] == "server_error"
        assert "[DONE]" not in text
        status, _, body = await it.post({**HELLO, "model": model})
        assert status in (502, 504)
        assert body["error"]["message"]
        assert it.sound()


async def test_error_finish_is_an_error():
    """error_finish hides its error in the content, which never reaches the client as a response."""
    async with world() as it:
        _, text = await it.stream({**HELLO, "model": "fault-error-finish"})
        assert json.loads(frames(text)[-1])["error"]["code"] == "rate_limit_exceeded"
        assert "Throttling" not in "".join(frames(text)[:-1])


async def test_quick_retries_and_no_more(autojump_clock):
    """A 503 is sent three times, a 400 once, and an empty response is retried."""
    async with world() as it:
        it.emulator.script(*[FAULTS["fault-503"][1]] * 5)
        assert (await it.post(HELLO))[0] == 503
        assert len(it.emulator.requests) == 3
    async with world() as it:
        it.emulator.script(FAULTS["fault-filter"][1])
        assert (await it.post(HELLO))[0] == 400
        assert len(it.emulator.requests) == 1
    async with world() as it:
        it.emulator.script(FAULTS["fault-empty"][1])
        assert (await it.post(HELLO))[0] == 200
        assert len(it.emulator.requests) == 2


async def test_nothing_is_retried_after_the_first_byte(autojump_clock):
    """A response is not restarted after its first byte."""
    async with world() as it:
        await it.stream({**HELLO, "model": "fault-cut"})
        assert len(it.emulator.requests) == 1


async def test_another_account_takes_over():
    """An exhausted account is replaced by another one, and gets no request during its cooldown."""
    async with world(accounts=accounts("one", "two", plan="coding")) as it:
        it.emulator.script(FAULTS["fault-quota"][1])
        assert (await it.post(HELLO))[0] == 200
        assert len(it.emulator.requests) == 2
        hosts = [seen.headers["host"] for seen in it.emulator.requests]
        assert hosts[0] != hosts[1]
        assert (await it.post(HELLO))[0] == 200
        assert it.emulator.requests[2].headers["host"] == hosts[1]


async def test_a_limit_in_an_error_is_learnt():
    """A 400 that names the range of max_tokens leads to a second attempt with a clamped value."""
    async with world() as it:
        it.emulator.script(
            json_reply(
                {
                    "error": {
                        "message": "Range of max_tokens should be [1, 100]",
                        "code": "invalid_parameter_error",
                    }
                },
                400,
            )
        )
        assert (await it.post({**HELLO, "model": "qwen-custom", "max_tokens": 500}))[0] == 200
        assert [seen.body["max_tokens"] for seen in it.emulator.requests] == [500, 100]


async def test_a_whole_json_response_to_a_stream_request_is_streamed():
    """A whole JSON response to a stream request reaches the client as a stream."""
    async with world() as it:
        message = {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
        it.emulator.script(
            json_reply(
                {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
            )
        )
        _, text = await it.stream(HELLO)
        assert [json.loads(item)["choices"][0]["delta"] for item in frames(text)[:-1]] == [
            {"role": "assistant", "content": None}, {"reasoning_content": "hm"}, {"content": "hi"}, {},
        ]  # fmt: skip


async def test_an_error_object_with_status_200_is_an_error():
    """A plain JSON error with status 200 is not a success."""
    async with world() as it:
        it.emulator.script(json_reply({"code": "DataInspectionFailed", "message": "no", "request_id": "r-9"}))
        status, headers, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (400, "content_filter")
        assert headers["x-qproxy-upstream-request-id"] == "r-9"


async def test_all_events_of_one_read_leave_in_one_write():
    """Events of one read reach the client in few writes."""
    async with world() as it:
        pieces = b"".join(chunk({"content": str(n)}) for n in range(20)) + chunk({}, "stop") + DONE
        it.emulator.script(ScriptedReply((pieces,)))
        raw = json.dumps({**HELLO, "stream": True}).encode()
        async with it.client.request(
            "POST", "/v1/chat/completions", headers=[(b"content-type", b"application/json")], body=raw
        ) as response:
            sizes = []
            while data := await response.receive():
                sizes.append(data.count(b"data:"))
        assert sum(sizes) == 23
        assert len(sizes) <= 3


async def test_cors_is_off_unless_set():
    """Without cors_origins no origin is allowed; with them preflight and response carry the headers."""
    origin = [(b"origin", b"https://app.test")]
    async with world() as it:
        assert "access-control-allow-origin" not in (await it.post(HELLO, headers=origin))[1]
    async with world(cors_origins=["https://app.test"]) as it:
        assert (await it.post(HELLO, headers=origin))[1]["access-control-allow-origin"] == "https://app.test"
        async with it.client.request("OPTIONS", "/v1/chat/completions", headers=origin) as response:
            assert response.status == 204
            assert (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS") in response.headers


async def test_health():
    """Liveness depends on nothing; readiness reports that the server is draining."""
    async with world() as it:
        assert await it.get("/livez") == (200, {"status": "ok"})
        assert (await it.get("/readyz"))[0] == 200
        it.server.state.in_flight.draining = True
        assert (await it.get("/readyz"))[0] == 503
        assert (await it.get("/"))[0] == 200


async def test_one_log_line_and_no_secret(caplog):
    """A request is one log line with numbers and names, without a prompt, a response or a key."""
    caplog.set_level(logging.DEBUG)
    async with world(api_keys=["client-secret"]) as it:
        await it.post(HELLO, headers=[(b"authorization", b"Bearer client-secret")])
        await it.post({**HELLO, "model": "fault-401"}, headers=[(b"authorization", b"Bearer client-secret")])
        lines = [record for record in caplog.records if record.name == "qproxy.request"]
        assert [line.fields["status"] for line in lines] == [200, 502]
        assert lines[0].fields["outcome"] == "ok"
        assert lines[0].fields["account"] == "one"
        assert it.server.state.counters.outcomes == {"ok": 1, "error": 1}
        assert it.server.state.counters.rules["parallel_calls"] == 0
        everything = caplog.text + repr(it) + repr([line.__dict__ for line in caplog.records])
        for secret in ("sk-test-key", "client-secret", "Hello there"):
            assert secret not in everything


async def test_the_connection_to_the_upstream_is_kept():
    """Consecutive requests use one connection."""
    async with world() as it:
        for _ in range(3):
            await it.post(HELLO)
        assert it.emulator.connections == 1


async def test_a_cut_before_the_head_is_tried_again(autojump_clock):
    """A connection that closes before the response head causes a quick retry."""
    async with world() as it:
        it.emulator.script(
            ScriptedReply((CloseConnection(),)),
            ScriptedReply((event({"error": {"message": "x", "code": "data_inspection_failed"}}),)),
        )
        assert (await it.post(HELLO))[0] == 400
        assert len(it.emulator.requests) == 2


async def test_an_app_is_served_once(monkeypatch, tmp_path):
    """The first lifespan closes the app's resources: a second one fails with a message."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    app, events_sent = create_app(Config(upstream="http://127.0.0.1:9/v1", ledger="none")), []

    async def send(message):
        events_sent.append((message["type"].removeprefix("lifespan."), message.get("message", "")))

    async def serve(*events):
        messages = [{"type": f"lifespan.{event}"} for event in events]

        async def receive():
            return messages.pop(0)

        with suppress(IndexError, ExceptionGroup):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    await serve("startup", "shutdown")
    await serve("startup")
    assert [kind for kind, _ in events_sent] == ["startup.complete", "shutdown.complete", "startup.failed"]
    assert "served before" in events_sent[-1][1]


MESSAGE = {"role": "assistant", "content": "Hello, how are you?"}
UNREPORTED = {"id": "x", "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
APIS = {
    "/v1/chat/completions": (HELLO, None),
    "/v1/responses": ({"model": MODEL, "input": "Hello there"}, "output_tokens"),
    "/v1/messages": ({**HELLO, "max_tokens": 9}, "output_tokens"),
}


@pytest.mark.parametrize("path", APIS)
async def test_usage_without_an_upstream_report(path):
    """Chat returns null; the other APIs return an estimate that a header marks."""
    body, field = APIS[path]
    async with world(accounts=accounts("own", kind="openai_compatible"), emulator=Emulator()) as it:
        it.emulator.script(json_reply(UNREPORTED))
        status, headers, response = await it.post(body, path)
        assert status == 200
        assert headers["x-qproxy-notes"] == "usage estimated: the upstream reported none"
        if field is None:
            assert response["usage"] is None
        else:
            assert response["usage"]["input_tokens"] > 0
            assert response["usage"][field] == 5
        assert "x-qproxy-notes" not in (await it.post(body, path))[1]
