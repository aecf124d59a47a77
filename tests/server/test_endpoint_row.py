"""A new API is one module and one row: a toy API has its own shape in every response of the server."""

import json
import time

import pytest
import trio

from qproxy.backends.local import key_file
from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.wire.endpoints import ENDPOINTS
from tests.helpers import HELLO, MODEL, World, h1, world
from tests.telemetry.test_metrics import samples, value
from tests.toy_endpoint import ERROR_SCHEMA, PATH, SCHEMA, TOY

ROWS = (*ENDPOINTS, TOY)
ASK = {"ask": "Hello there", "model": MODEL}
JSON = (b"content-type", b"application/json")
KEY = (b"x-toy-key", b"secret")
UPGRADE = [
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
]
BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
REST = chunk({"content": "lo"}) + chunk({}, "stop") + DONE


async def call(it: World, method="POST", path=f"/v1{PATH}", body: object = ASK, headers=(JSON,)):
    """Return (status, headers, text) of a response."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with it.client.request(method, path, headers=headers, body=raw) as response:
        text = (await response.read()).decode()
    return response.status, {n.decode(): v.decode() for n, v in response.headers}, text


def assert_own_headers(headers):
    """A response has the headers of the toy, and none that are OpenAI's alone."""
    assert headers["toy-request"] == headers["x-request-id"]
    assert headers["toy-ms"].isdecimal()
    others = ("openai-", "x-ratelimit-", "retry-after", "x-should-retry")
    assert not [name for name in headers if name.startswith(others)]


async def _nothing():
    return None


@pytest.fixture(params=["fast path", "quart"])
def prepare(request):
    """Return a function that makes an app serve through the fast path or Quart's router."""
    return lambda app: app.before_request(_nothing) if request.param == "quart" else None


async def test_a_whole_response(prepare):
    """A whole response is the toy's, at both paths; OpenAI's endpoints do not change."""
    async with world(endpoints=ROWS) as it:
        prepare(it.app)
        for path in (PATH, f"/v1{PATH}"):
            status, headers, text = await call(it, path=path)
            assert (status, headers["content-type"]) == (200, "application/json")
            assert json.loads(text)["id"].startswith("toy-")
            assert json.loads(text)["said"]
            assert_own_headers(headers)
        status, head, answer = await it.post(HELLO)
        assert (status, answer["object"]) == (200, "chat.completion")
        assert "openai-processing-ms" in head
        assert "toy-request" not in head


async def test_a_stream(prepare, autojump_clock):
    """The text, keep-alive and end of a stream are the toy's."""
    async with world(endpoints=ROWS) as it:
        prepare(it.app)
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(35), REST)))
        status, headers, text = await call(it, body={**ASK, "live": True})
        assert (status, text) == (200, "+Hel\n~\n~\n+lo\n=end toy-\n")
        assert_own_headers(headers)
        assert it.sound()


async def test_a_failure_in_mid_stream(prepare, autojump_clock):
    """A truncated upstream and a request timeout are faults with the request's id."""
    async with world(endpoints=ROWS, client_request_timeout=100.0) as it:
        prepare(it.app)
        for steps, kind in (((BEGUN,), "upstream_error"), ((BEGUN, PauseStep(1000)), "request_timeout")):
            it.emulator.script(ScriptedReply(steps))
            status, headers, text = await call(it, body={**ASK, "live": True})
            first, *_, last = text.splitlines()
            fault = json.loads(last.removeprefix("!"))["fault"]
            assert (status, first) == (200, "+Hel")
            assert (fault["kind"], fault["request"]) == (kind, headers["toy-request"])
        assert it.sound()


REFUSALS = {
    "no key": ({"headers": [JSON]}, 401, "invalid_api_key"),
    "a wrong key": ({"headers": [JSON, (b"x-toy-key", b"no")]}, 401, "invalid_api_key"),
    "a key in another API's header": ({"headers": [JSON, (b"x-api-key", b"secret")]}, 401, "invalid_api_key"),
    "not JSON": ({"body": b"{"}, 400, "invalid_request_error"),
    "a wrong field": ({"body": {"model": MODEL}}, 400, "no_ask"),
    "a model that is none": ({"body": {**ASK, "model": "gpt-x"}}, 404, "model_not_found"),
    "too large": ({"body": b" " * 2000}, 413, "request_too_large"),
    "no JSON by its type": ({"headers": [KEY, (b"content-type", b"text/plain")]}, 415,
        "unsupported_media_type"),
    "compressed": ({"headers": [KEY, JSON, (b"content-encoding", b"br")]}, 415,
        "unsupported_content_encoding"),
    "a failing upstream": ({"body": {**ASK, "model": "fault-500"}}, 502, "upstream_error"),
    "another method": ({"method": "DELETE"}, 405, "method_not_allowed"),
    "an unknown path of the API": ({"path": "/v1/toy/nothing"}, 404, "unknown_url"),
    "an unknown path, with the API's header": (
        {"path": "/nothing", "headers": [(b"toy-version", b"1")]}, 404, "unknown_url",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "kind"), REFUSALS.values(), ids=REFUSALS)
async def test_rejections(sent, status, kind, prepare, autojump_clock):
    """A rejection by any part is a fault with the request's id."""
    async with world(endpoints=ROWS, api_keys=["secret"], max_body_bytes=1000) as it:
        prepare(it.app)
        received, headers, text = await call(it, **{"headers": [KEY, JSON], **sent})
        fault = json.loads(text)["fault"]
        assert (received, fault["kind"], fault["request"]) == (status, kind, headers["toy-request"])
        assert_own_headers(headers)
        assert (await call(it, headers=[KEY, JSON]))[0] == 200
        assert (await call(it, headers=[(b"authorization", b"Bearer secret"), JSON]))[0] == 200


async def test_an_unknown_path_outside_every_api():
    """An unknown path outside every API gets the default API's error, OpenAI's."""
    async with world(endpoints=ROWS) as it:
        status, headers, text = await call(it, path="/v1/nothing")
        assert (status, json.loads(text)["error"]["code"]) == (404, "unknown_url")
        assert "toy-request" not in headers


async def test_an_overloaded_server(prepare):
    """The API determines the status of an overload and its retry header."""
    async with world(endpoints=ROWS, max_requests=1, max_queue_size=0) as it:
        prepare(it.app)
        release = await it.server.state.concurrency.acquire()
        status, headers, text = await call(it)
        release()
        assert (status, json.loads(text)["fault"]["kind"]) == (529, "overloaded")
        assert headers["toy-wait"] == "1.0"


async def test_an_exception_in_the_server(prepare, monkeypatch):
    """An exception in the server is a fault."""
    async with world(endpoints=ROWS) as it:
        prepare(it.app)
        monkeypatch.setattr(it.server.state.concurrency, "acquire", None)
        status, headers, text = await call(it)
        assert (status, json.loads(text)["fault"]["kind"]) == (500, "internal_error")
        assert_own_headers(headers)


async def test_a_websocket():
    """A WebSocket's handshake on the path is rejected in the API's shape."""
    async with world(endpoints=ROWS) as it:
        async with h1(it.app) as client:
            await client.send("GET", f"/v1{PATH}", b"", UPGRADE)
            status, text = await client.response()
        assert (status, json.loads(text)["fault"]["kind"]) == (426, "websocket_not_supported")


async def test_rate_limits(prepare, tmp_path, autojump_clock):
    """The toy's headers report a key's remaining limit and the wait when it is exhausted."""
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", rpm=1)
    async with world(endpoints=ROWS, keys_file=str(tmp_path / "keys.json")) as it:
        prepare(it.app)
        headers = [JSON, (b"x-toy-key", secret.encode())]
        status, first, _ = await call(it, headers=headers)
        assert (status, first["toy-left-requests"]) == (200, "0")
        assert 58 <= int(first["toy-back-requests"]) - time.time() <= 62
        status, second, text = await call(it, headers=headers)
        assert (status, json.loads(text)["fault"]["kind"]) == (429, "rate_limit_exceeded")
        assert second["toy-wait"] == "60.0"
        assert_own_headers(second)


async def test_pages():
    """A page of an allowed origin may read the toy's headers."""
    async with world(endpoints=ROWS, cors_origins=["https://app.test"]) as it:
        _, headers, _ = await call(it, headers=[JSON, (b"origin", b"https://app.test")])
        exposed = headers["access-control-expose-headers"].split(", ")
        assert exposed[:2] == ["toy-request", "toy-ms"]
        assert "x-qproxy-overhead-ms" in exposed
        assert "openai-processing-ms" not in exposed


async def test_models():
    """If APIs share a path, the client's headers decide."""
    async with world(endpoints=ROWS) as it:
        toy = [(b"toy-version", b"1")]
        for path, key, other in (("/v1/models", "toys", "data"), (f"/v1/models/{MODEL}", "toy", "id")):
            assert key in json.loads((await call(it, "GET", path, b"", toy))[2])
            assert other in json.loads((await call(it, "GET", path, b"", []))[2])
        status, _, text = await call(it, "GET", "/v1/models/none", b"", toy)
        assert (status, json.loads(text)["fault"]["kind"]) == (404, "model_not_found")


async def test_metrics():
    """Requests are counted under the row's operation and path."""
    async with world(endpoints=ROWS, admin_key="admin") as it:
        await call(it)
        _, _, text = await call(it, "GET", "/metrics", b"", [(b"authorization", b"Bearer admin")])
        found = samples(text.encode())
        labels = {"gen_ai_provider_name": "qwen", "gen_ai_request_model": MODEL}
        name = "gen_ai_server_time_to_first_token_seconds_count"
        assert value(found, name, gen_ai_operation_name="toy_talk", **labels) == 1
        labels = {"endpoint": PATH, "model": MODEL, "status": "200", "outcome": "ok"}
        assert value(found, "qproxy_requests_total", **labels) == 1


async def test_openapi():
    """The document has the toy's schema, its errors and its key header, and OpenAI's entries do not
    change."""
    async with world(endpoints=ROWS) as it:
        document = json.loads((await call(it, "GET", "/openapi.json", b"", []))[2])
        toy, chat = (document["paths"][path]["post"] for path in (f"/v1{PATH}", "/v1/chat/completions"))
        assert toy["requestBody"]["content"]["application/json"]["schema"] == SCHEMA
        assert "text/event-stream" in toy["responses"]["200"]["content"]
        assert toy["responses"]["4XX"] == {"$ref": "#/components/responses/ToyError"}
        assert chat["responses"]["4XX"] == {"$ref": "#/components/responses/OpenAIError"}
        assert {"x-toy-key": []} in toy["security"]
        assert {"x-toy-key": []} not in chat["security"]
        components = document["components"]
        error = components["responses"]["ToyError"]["content"]["application/json"]["schema"]
        assert error == ERROR_SCHEMA
        assert components["securitySchemes"]["x-toy-key"]["name"] == "x-toy-key"


async def test_a_disconnect(autojump_clock):
    """A client that disconnects in mid-stream leaves nothing held."""
    async with world(endpoints=ROWS) as it:
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(1000))))
        raw = json.dumps({**ASK, "live": True}).encode()
        with trio.move_on_after(1):
            async with it.client.request("POST", PATH, headers=[JSON], body=raw) as response:
                await response.read()
        await trio.sleep(1)
        assert it.sound()
