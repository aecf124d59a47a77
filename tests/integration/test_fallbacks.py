"""Fallback models serve what a request's own model cannot, before the first event."""

import json

import pytest

from qproxy.backends.local import key_file
from qproxy.config.fallbacks import FallbackConfig
from qproxy.emulator import ScriptedReply
from qproxy.wire.models import ModelRow
from tests.helpers import MODEL, accounts, world

OTHER = "qwen3.8-flash"
WIDE = "qwen-max"
"""With the context of `ROWS`."""
HELLO = [{"role": "user", "content": "hello"}]
REQUESTS = {
    "chat": ("/v1/chat/completions", {"model": MODEL, "messages": HELLO}),
    "completions": ("/v1/completions", {"model": MODEL, "prompt": "a"}),
    "responses": ("/v1/responses", {"model": MODEL, "input": "hello"}),
    "messages": ("/v1/messages", {"model": MODEL, "messages": HELLO, "max_tokens": 50}),
}


def failure(status, code, message="no"):
    error = json.dumps({"error": {"code": code, "message": message}}).encode()
    return ScriptedReply((error,), status=status, content_type="application/json")


QUOTA = failure(400, "Arrearage", "Access denied, please make sure your account is in good standing.")
CAUSES = {
    "quota": QUOTA,
    "overload": failure(503, "ServiceUnavailable", "Too many requests. Service is overloaded"),
    "context": failure(400, "InvalidParameter", "Range of input length should be [1, 991808]"),
    "content_filter": failure(400, "data_inspection_failed", "Input data may contain inappropriate content."),
    "retired": failure(404, "model_not_found", "The model does not exist or you do not have access to it."),
}
ROWS = (
    ModelRow("qwen-max", context=2_000_000, inputs=["text", "image"]),
    ModelRow("no-tools", tools=False),
    ModelRow("text", inputs=["text"]),
)


def fallbacks(*models, **settings):
    return (FallbackConfig("qwen3.7-*", list(models or (OTHER,)), **settings),)


def fail(it, reply, times=1):
    for _ in range(times):
        it.emulator.script(reply)


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_every_text_endpoint_falls_back(path, body, autojump_clock):
    """After an exhausted quota the next model answers under the requested name, and the headers name it."""
    async with world(fallbacks=fallbacks()) as it:
        fail(it, QUOTA)
        status, headers, answer = await it.post(body, path)
        assert (status, answer["model"]) == (200, MODEL)
        assert headers["x-qproxy-served-model"] == OTHER
        assert headers["x-qproxy-fallback"] == "quota"
        assert [seen.body["model"] for seen in it.emulator.requests] == [MODEL, OTHER]


async def test_a_stream_falls_back_before_its_first_event(autojump_clock):
    """A streamed response starts with the fallback's first event."""
    async with world(fallbacks=fallbacks()) as it:
        fail(it, QUOTA)
        status, text = await it.stream({"model": MODEL, "messages": HELLO})
        assert status == 200
        assert "[DONE]" in text
        assert it.emulator.requests[-1].body["model"] == OTHER


@pytest.mark.parametrize("cause", CAUSES)
async def test_each_cause_has_its_switch(cause, autojump_clock):
    """A rule covers a cause that it names, and no other one."""
    for on in ([cause], [other for other in CAUSES if other != cause]):
        async with world(model_rows=ROWS, fallbacks=fallbacks(WIDE, on=on)) as it:
            fail(it, CAUSES[cause], times=3 if cause == "overload" else 1)
            status, headers, _ = await it.post({"model": MODEL, "messages": HELLO})
            assert (status == 200, headers.get("x-qproxy-fallback")) == (
                (True, cause) if on == [cause] else (False, None)
            )


async def test_unsuitable_models_are_passed_over(autojump_clock):
    """A model without tools, pictures or a larger context is passed over for the next one."""
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a"}}]}]
    cases = (
        ({"messages": HELLO, "tools": [function]}, "quota", "no-tools"),
        ({"messages": picture}, "quota", "text"),
        ({"messages": HELLO}, "context", "qwen3-max"),
    )
    for body, cause, unsuitable in cases:
        async with world(model_rows=ROWS, fallbacks=fallbacks(unsuitable, WIDE)) as it:
            fail(it, CAUSES[cause])
            await it.post({"model": MODEL, **body})
            assert it.emulator.requests[-1].body["model"] == WIDE, unsuitable


async def test_fallbacks_are_tried_in_order(autojump_clock):
    """A fallback that fails as well is followed by the next one; at last the first error is returned."""
    async with world(fallbacks=fallbacks(OTHER, "qwen3-max"), accounts=accounts("one")) as it:
        fail(it, QUOTA, times=2)
        _, headers, _ = await it.post({"model": MODEL, "messages": HELLO})
        assert headers["x-qproxy-served-model"] == "qwen3-max"
        fail(it, QUOTA, times=2)
        it.emulator.script(CAUSES["content_filter"])
        status, headers, answer = await it.post({"model": MODEL, "messages": HELLO})
        assert (status, answer["error"]["code"]) == (429, "insufficient_quota")
        assert "x-qproxy-served-model" not in headers


async def test_the_models_of_a_key_hold_for_fallbacks(tmp_path, autojump_clock):
    """A model that the client's key may not use is passed over."""
    path = tmp_path / "keys"
    _, secret = key_file.create(path, models=(MODEL, "qwen3-max"))
    async with world(
        fallbacks=fallbacks(OTHER, "qwen3-max"), keys_file=str(path), insecure_no_auth=False
    ) as it:
        fail(it, QUOTA)
        header = (b"authorization", b"Bearer " + secret.encode())
        _, headers, _ = await it.post({"model": MODEL, "messages": HELLO}, headers=[header])
        assert headers["x-qproxy-served-model"] == "qwen3-max"


async def test_a_retired_model_falls_back():
    """A model that the catalog knows to be retired is replaced without a request to it."""
    table = (FallbackConfig("qwen-turbo", [OTHER], on=["retired"]),)
    rows = (ModelRow("qwen-turbo", retires="2020-01-01"),)
    listed = accounts("one", models=["qwen3*"])
    async with world(fallbacks=table, model_rows=rows, accounts=listed) as it:
        status, headers, _ = await it.post({"model": "qwen-turbo", "messages": HELLO})
        assert (status, headers["x-qproxy-fallback"]) == (200, "retired")
        assert [seen.body["model"] for seen in it.emulator.requests if seen.body] == [OTHER]
