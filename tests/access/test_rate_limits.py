"""Requests and tokens per minute: reserved, settled, returned, and reported in headers."""

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qproxy.access.api_keys import ApiKey
from qproxy.access.rate_limits import KeyRateLimiter, KeyRateLimiters, output_limit
from qproxy.backends.local import key_file
from qproxy.backends.local.rate_limits import MemoryRateLimits
from qproxy.emulator import FAULTS, PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.limits.token_bucket import TokenBucket
from qproxy.wire import json_codec
from qproxy.wire.endpoints.openai_api import format_duration, rate_limit_headers
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn
from qproxy.wire.token_estimate import prompt_size
from qproxy.wire.token_ratios import PromptSize
from tests.helpers import HELLO, frames, world


def key(**limits):
    return ApiKey("key_1", "0" * 64, "bob", **limits)


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def limiter_of(limited_key, clock):
    return KeyRateLimiter(limited_key, MemoryRateLimits(clock=clock), clock=clock)


async def test_requests_per_minute(clock):
    """A minute's worth can be reserved at once; then one is refilled every 60/rpm seconds."""
    limiter = limiter_of(key(rpm=3), clock)
    for _ in range(3):
        await limiter.reserve(10**9)
    with pytest.raises(RequestError, match="3 requests per minute") as refusal:
        await limiter.reserve(1)
    assert (refusal.value.status, refusal.value.retry_after) == (429, 20.0)
    clock.now = 20.0
    await limiter.reserve(1)
    clock.now = 39.0
    with pytest.raises(RequestError):
        await limiter.reserve(1)


async def test_tokens_per_minute(clock):
    """An estimate is replaced by the usage, debts included; an estimate above the limit waits for a full
    bucket."""
    limiter = limiter_of(key(tpm=600), clock)
    reservation = await limiter.reserve(500)
    with pytest.raises(RequestError, match="600 tokens per minute"):
        await limiter.reserve(200)
    reservation.settle(100)
    reservation.settle(0)
    (await limiter.reserve(500)).settle(1100)
    with pytest.raises(RequestError) as refusal:
        await limiter.reserve(100)
    assert refusal.value.retry_after == 70.0
    clock.now = 120.0
    await limiter.reserve(10_000)
    with pytest.raises(RequestError):
        await limiter.reserve(1)


async def test_a_rejected_request_uses_nothing(clock):
    """A request rejected for its tokens uses up no request."""
    limiter = limiter_of(key(rpm=1, tpm=60), clock)
    (await limiter.reserve(60)).settle(60, counts=False)
    with pytest.raises(RequestError, match="tokens"):
        await limiter.reserve(60)
    assert limiter.status()[0][:3] == ("requests", 1, 1)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 30)), max_size=30))
async def test_settling_with_no_usage_returns_the_reservation(steps):
    """Reservations settled with zero usage leave the bucket as full as time makes it."""
    clock = Clock()
    limiter = limiter_of(key(rpm=1000, tpm=1000), clock)
    for tokens, _, pause in steps:
        clock.now += pause
        (await limiter.reserve(tokens)).settle(0, counts=False)
    fields = rate_limit_headers(limiter.status(), 0.0)
    assert fields["x-ratelimit-reset-tokens"] == fields["x-ratelimit-reset-requests"] == "0ms"


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 20)), max_size=60))
def test_a_minute_has_at_most_its_limit_and_one_burst(steps):
    """Within any t seconds at most capacity + capacity * t / 60 is granted."""
    bucket, now, taken = TokenBucket(100, 0.0), 0.0, 0
    for count, pause in steps:
        now += pause
        if bucket.wait(count, now) == 0:
            bucket.acquire(count, now)
            taken += count
        assert taken <= 100 + 100 * now / 60 + 1e-6


def test_changed_limits_of_a_key_replace_its_limiter(clock):
    """The limiter belongs to the current version of the key; a key without limits has none."""
    limiters = KeyRateLimiters(MemoryRateLimits(clock=clock), clock=clock)
    assert limiters.for_key(key()) is None
    first = limiters.for_key(key(rpm=1))
    assert limiters.for_key(key(rpm=1)) is first
    second = limiters.for_key(key(rpm=2))
    assert second is not first
    assert limiters.for_key(key(rpm=1)) is not first


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (360, "6m0s")]
)
def test_spans(seconds, text):
    """Durations are formatted as OpenAI formats them."""
    assert format_duration(seconds) == text


def test_output_limit():
    """The output limit of a turn is the requested maximum, under either of its names."""
    for params, limit in (({}, 0), ({"max_tokens": 50}, 50), ({"max_completion_tokens": 7.0}, 7)):
        assert output_limit(Turn("", 0, "m", [], params=params)) == limit
    assert output_limit(Turn("", 0, "m", [], params={"max_tokens": "many"})) == 0


def test_prompt_sizes():
    """Text, reasoning and calls count by their bytes, tools by their JSON, images by their number."""
    parts = [
        {"type": "text", "text": "x" * 400},
        {"type": "image_url", "image_url": {"url": "data:" + "x" * 10**6}},
    ]
    messages = [{"role": "user", "content": "y" * 40}, {"role": "user", "content": parts}, {"role": "user"}]
    assert prompt_size(Turn("", 0, "m", messages)) == PromptSize(440, images=1)
    call = {"id": "c", "type": "function", "function": {"name": "", "arguments": "z" * 80}}
    answer = {"role": "assistant", "content": None, "reasoning_content": "r" * 120, "tool_calls": [call]}
    assert prompt_size(Turn("", 0, "m", [answer])) == PromptSize(200)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert prompt_size(Turn("", 0, "m", [], tools=tools)) == PromptSize(len(json_codec.dumps(tools)))
    assert prompt_size(Turn("", 0, "m", [], tools=tools, tools_bytes=9)) == PromptSize(9)


def create_key(tmp_path, **limits):
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", **limits)
    return [(b"authorization", b"Bearer " + secret.encode())], {"keys_file": str(tmp_path / "keys.json")}


def used_tokens(it, tmp_path):
    """Return the tokens used by the only key."""
    (known,) = key_file.read(tmp_path / "keys.json")
    tokens = it.server.state.usage_limiter.rate_limits(known)[-1]
    assert tokens.unit == "tokens"
    return tokens.limit - tokens.remaining


async def test_rate_limit_headers(tmp_path, autojump_clock):
    """A key with limits gets them in every response, a 429 has Retry-After, and keys without limits get no
    such headers."""
    headers, setting = create_key(tmp_path, rpm=2, tpm=1000)
    async with world(**setting) as it:
        _, fields, body = await it.post(HELLO, headers=headers)
        assert fields["x-ratelimit-limit-requests"] == "2"
        assert fields["x-ratelimit-remaining-requests"] == "1"
        assert fields["x-ratelimit-reset-requests"] == "30s"
        assert used_tokens(it, tmp_path) == pytest.approx(body["usage"]["total_tokens"])
        await it.post(HELLO, headers=headers)
        status, fields, body = await it.post(HELLO, headers=headers)
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert fields["retry-after"] == "30"
        assert len(it.emulator.requests) == 2
    async with world() as it:
        assert not any("ratelimit" in name for name in (await it.post(HELLO))[1])


BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
CALL = {"index": 0, "id": "call_1", "type": "function",
        "function": {"name": "f", "arguments": json.dumps({"a": "word " * 1000})}}  # fmt: skip
ZEROS = b'data: {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}\n\n'
USED = {
    "a refused request": (FAULTS["fault-filter"][1], False, 0),
    "a server without tokens to tell": (ScriptedReply((BEGUN, chunk({}, "stop"), DONE)), False, range(2, 20)),
    "a long text in one event, without tokens to tell": (
        ScriptedReply((chunk({"content": "word " * 5000}), chunk({}, "stop"), DONE)),
        False,
        range(6250, 6290),
    ),
    "long reasoning and arguments": (
        ScriptedReply(
            (
                chunk({"reasoning_content": "word " * 1000}),
                chunk({"tool_calls": [CALL]}),
                chunk({}, "tool_calls"),
                DONE,
            )
        ),
        False,
        range(2500, 2550),
    ),
    "a report of no tokens": (
        ScriptedReply((chunk({"content": "word " * 1000}), chunk({}, "stop"), ZEROS, DONE)),
        False,
        range(1250, 1290),
    ),
    "a client that leaves before the answer": (ScriptedReply((PauseStep(1000),)), True, range(1, 20)),
    "a client that leaves in mid-answer": (ScriptedReply((BEGUN, PauseStep(1000))), True, range(2, 20)),
}


@pytest.mark.parametrize(("reply", "leaves", "used"), USED.values(), ids=USED.keys())
async def test_unused_tokens_are_returned(reply, leaves, used, tmp_path, autojump_clock):
    """The reserved max_tokens are returned when the request finishes, for any outcome."""
    headers, setting = create_key(tmp_path, tpm=100_000)
    async with world(**setting) as it:
        it.emulator.script(reply)
        with trio.move_on_after(0.001 if leaves else 10):
            await it.post({**HELLO, "max_tokens": 50_000, "stream": leaves}, headers=headers)
        assert round(used_tokens(it, tmp_path)) in (used if isinstance(used, range) else [used])


async def test_a_stream_settles_its_reservation(tmp_path, autojump_clock):
    """A stream is charged for the usage its upstream reported, even if the client did not request usage."""
    headers, setting = create_key(tmp_path, tpm=100_000)
    async with world(**setting) as it:
        async with it.client.request(
            "POST",
            "/v1/chat/completions",
            headers=[(b"content-type", b"application/json"), *headers],
            body=b'{"model":"qwen-plus","stream":true,"messages":[{"role":"user","content":"Hi"}],"max_tokens":9000}',
        ) as response:
            assert frames((await response.read()).decode())[-1] == "[DONE]"
        assert 0 < used_tokens(it, tmp_path) < 100
