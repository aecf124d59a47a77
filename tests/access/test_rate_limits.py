"""Requests and tokens a minute: reserved, settled, given back, and told in headers."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey
from qproxy.access.rate_limits import KeyRateLimiter, KeyRateLimiters, estimate, format_duration
from qproxy.emulator import FAULTS, PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.limits.token_bucket import TokenBucket
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn
from tests.helpers import HELLO, frames, world


def key(**limits):
    return ApiKey("key_1", "0" * 64, "bob", **limits)


def test_requests_a_minute():
    """A minute's worth can be taken at once; then one comes back every 60/rpm seconds."""
    meter = KeyRateLimiter(key(rpm=3), 0.0)
    for _ in range(3):
        meter.reserve(10**9, 0.0)
    with pytest.raises(RequestError, match="3 requests a minute") as refusal:
        meter.reserve(1, 0.0)
    assert (refusal.value.status, refusal.value.retry_after) == (429, 20.0)
    meter.reserve(1, 20.0)
    with pytest.raises(RequestError):
        meter.reserve(1, 39.0)


def test_tokens_a_minute():
    """An estimate is exchanged for what was used, debts included; one above the limit waits for a full bucket."""
    meter = KeyRateLimiter(key(tpm=600), 0.0)
    reservation = meter.reserve(500, 0.0)
    with pytest.raises(RequestError, match="600 tokens a minute"):
        meter.reserve(200, 0.0)
    reservation.settle(100, 0.0)
    reservation.settle(0, 0.0)
    meter.reserve(500, 0.0).settle(1100, 0.0)
    with pytest.raises(RequestError) as refusal:
        meter.reserve(100, 0.0)
    assert refusal.value.retry_after == 70.0
    meter.reserve(10_000, 120.0)
    with pytest.raises(RequestError):
        meter.reserve(1, 120.0)


def test_a_refusal_takes_nothing():
    """What is refused for its tokens has not used up a request."""
    meter = KeyRateLimiter(key(rpm=1, tpm=60), 0.0)
    meter.reserve(60, 0.0).settle(60, 0.0, counts=False)
    with pytest.raises(RequestError, match="tokens"):
        meter.reserve(60, 0.0)
    assert meter.headers(0.0)["x-ratelimit-remaining-requests"] == "1"


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 30)), max_size=30))
def test_settling_what_was_reserved_gives_it_back(steps):
    """Whatever is reserved and settled with nothing used leaves the bucket as full as time makes it."""
    meter, now = KeyRateLimiter(key(rpm=1000, tpm=1000), 0.0), 0.0
    for tokens, _, pause in steps:
        now += pause
        meter.reserve(tokens, now).settle(0, now, counts=False)
    fields = meter.headers(now)
    assert fields["x-ratelimit-reset-tokens"] == fields["x-ratelimit-reset-requests"] == "0ms"


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 20)), max_size=60))
def test_no_minute_has_more_than_its_limit_and_one_burst(steps):
    """Within any run of t seconds at most capacity + capacity * t / 60 is taken."""
    bucket, now, taken = TokenBucket(100, 0.0), 0.0, 0
    for count, pause in steps:
        now += pause
        if bucket.wait(count, now) == 0:
            bucket.acquire(count, now)
            taken += count
        assert taken <= 100 + 100 * now / 60 + 1e-6


def test_a_key_whose_limits_change_begins_anew():
    """The meter belongs to the key as it is written now; a key without limits has none."""
    meters = KeyRateLimiters()
    assert meters.for_key(None, 0.0) is None
    assert meters.for_key(key(), 0.0) is None
    first = meters.for_key(key(rpm=1), 0.0)
    assert meters.for_key(key(rpm=1), 0.0) is first
    second = meters.for_key(key(rpm=2), 0.0)
    assert second is not first
    assert meters.for_key(key(rpm=1), 0.0) is not first


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (360, "6m0s")]
)
def test_spans(seconds, text):
    """Durations are written as OpenAI writes them."""
    assert format_duration(seconds) == text


def test_estimates():
    """Text counts by its bytes, an image a thousand, tools by their JSON, and the answer what was asked for."""
    parts = [
        {"type": "text", "text": "x" * 400},
        {"type": "image_url", "image_url": {"url": "data:" + "x" * 10**6}},
    ]
    messages = [{"role": "user", "content": "y" * 40}, {"role": "user", "content": parts}, {"role": "user"}]
    assert estimate(Turn("", 0, "m", messages)) == (1111, 0)
    assert estimate(Turn("", 0, "m", messages, params={"max_tokens": 50})) == (1111, 50)


def made(tmp_path, **limits):
    _, secret = api_keys.create(tmp_path / "keys.json", name="bob", **limits)
    return [(b"authorization", b"Bearer " + secret.encode())], {"keys_file": str(tmp_path / "keys.json")}


def spent(it, tmp_path):
    """Tokens that the only key has used."""
    now = trio.current_time()
    bucket = it.server.meters.of(api_keys.read(tmp_path / "keys.json")[0], now).tokens
    return bucket.capacity - bucket.left(now)


async def test_rate_limit_headers(tmp_path, autojump_clock):
    """A key with limits sees them in every answer, a refusal says when to come back, and others see nothing."""
    headers, setting = made(tmp_path, rpm=2, tpm=1000)
    async with world(**setting) as it:
        _, fields, body = await it.post(HELLO, headers=headers)
        assert fields["x-ratelimit-limit-requests"] == "2"
        assert fields["x-ratelimit-remaining-requests"] == "1"
        assert fields["x-ratelimit-reset-requests"] == "30s"
        assert spent(it, tmp_path) == pytest.approx(body["usage"]["total_tokens"])
        await it.post(HELLO, headers=headers)
        status, fields, body = await it.post(HELLO, headers=headers)
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert fields["retry-after"] == "30"
        assert len(it.emulator.requests) == 2
    async with world() as it:
        assert not any("ratelimit" in name for name in (await it.post(HELLO))[1])


BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
USED = {
    "a refused request": (FAULTS["fault-filter"][1], False, 0),
    "a server without tokens to tell": (ScriptedReply((BEGUN, chunk({}, "stop"), DONE)), False, range(2, 20)),
    "a client that leaves before the answer": (ScriptedReply((PauseStep(1000),)), True, 0),
    "a client that leaves in mid-answer": (ScriptedReply((BEGUN, PauseStep(1000))), True, range(2, 20)),
}


@pytest.mark.parametrize(("reply", "leaves", "used"), USED.values(), ids=USED.keys())
async def test_what_is_not_used_is_given_back(reply, leaves, used, tmp_path, autojump_clock):
    """The reserved max_tokens come back when the request is over, however it ends."""
    headers, setting = made(tmp_path, tpm=100_000)
    async with world(**setting) as it:
        it.emulator.script(reply)
        with trio.move_on_after(0.001 if leaves else 10):
            await it.post({**HELLO, "max_tokens": 50_000, "stream": leaves}, headers=headers)
        assert round(spent(it, tmp_path)) in (used if isinstance(used, range) else [used])


async def test_a_stream_settles_too(tmp_path, autojump_clock):
    """A stream is charged for the usage its server told, although its client did not ask for it."""
    headers, setting = made(tmp_path, tpm=100_000)
    async with world(**setting) as it:
        async with it.client.request(
            "POST",
            "/v1/chat/completions",
            headers=[(b"content-type", b"application/json"), *headers],
            body=b'{"model":"qwen-plus","stream":true,"messages":[{"role":"user","content":"Hi"}],"max_tokens":9000}',
        ) as response:
            assert frames((await response.read()).decode())[-1] == "[DONE]"
        assert 0 < spent(it, tmp_path) < 100
