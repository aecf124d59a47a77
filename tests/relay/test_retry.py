"""Retries: number, duration and the client's error for each row of the upstream's table."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qproxy.config.accounts import AccountConfig
from qproxy.emulator import FAULTS, CloseConnection, Emulator, PauseStep, ScriptedReply
from qproxy.emulator.faults import event, json_reply
from qproxy.emulator.server import CHAT_PATH
from qproxy.limits.circuit_breaker import MAX_PAUSE, THRESHOLD, CircuitBreaker, is_outage
from qproxy.relay.retry import REJECTION_STATUSES, Action, next_action
from qproxy.wire.errors import LimitKind, OverloadedError, RequestError, RetryHint, UpstreamError
from tests.accounts.factories import refusal as limit_error
from tests.helpers import HELLO, accounts, world


def error_reply(status, code, message="no", **headers):
    return json_reply({"error": {"message": message, "code": code, "type": code}}, status, **headers)


# An upstream's response; the calls with one account and with two; the client's status and x-should-retry.
ROWS = {
    "bad parameter": (error_reply(400, "invalid_parameter_error"), 1, 1, 400, None),
    "prompt too long": (error_reply(400, "x", "Range of input length should be [1, 99]"), 1, 1, 400, None),
    "moderation": (error_reply(400, "data_inspection_failed"), 1, 1, 400, None),
    "arrears": (error_reply(400, "Arrearage"), 1, 2, 429, "false"),
    "our key": (error_reply(401, "invalid_api_key"), 1, 2, 502, "false"),
    "no access": (error_reply(403, "Model.AccessDenied"), 1, 2, 403, None),
    "no such model": (error_reply(404, "model_not_found"), 1, 2, 404, None),
    "too large": (error_reply(413, "x"), 1, 1, 413, None),
    "requests a minute": (error_reply(429, "limit_requests"), 1, 2, 429, "true"),
    "tokens a minute": (error_reply(429, "insufficient_quota"), 1, 2, 429, "true"),
    "a burst": (error_reply(429, "limit_burst_rate"), 3, 3, 429, "true"),
    "throttling": (error_reply(429, "throttling"), 3, 3, 429, "true"),
    "free tier": (error_reply(403, "AllocationQuota.FreeTierOnly"), 1, 2, 429, "false"),
    "internal": (error_reply(500, "internal_error"), 3, 3, 502, "true"),
    "their time-out": (error_reply(500, "InternalError.Timeout"), 1, 1, 504, "false"),
    "overload": (error_reply(503, "ServiceUnavailable"), 3, 3, 503, "true"),
    "overload, for long": (error_reply(503, "ServiceUnavailable", retry_after="9"), 1, 2, 503, "true"),
    "gateway": (ScriptedReply((b"bad gateway",), 502, "text/plain"), 3, 3, 502, "true"),
    "gateway time-out": (ScriptedReply((b"slow",), 504, "text/plain"), 1, 1, 504, "false"),
    "a web page": (FAULTS["fault-html"][1], 2, 2, 502, "true"),
    "an empty stream": (FAULTS["fault-empty"][1], 2, 2, 502, "true"),
    "only comments": (ScriptedReply((b": hi\n\n",)), 2, 2, 502, "true"),
    "only the end": (ScriptedReply((b"data: [DONE]\n\n",)), 2, 2, 502, "true"),
    "a cut before the head": (ScriptedReply((CloseConnection(),)), 3, 3, 502, "true"),
    "an error as the first event": (
        ScriptedReply((event({"error": {"code": "limit_burst_rate"}}),)),
        3,
        3,
        429,
        "true",
    ),
}


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with another"])
@pytest.mark.parametrize(("reply", "alone", "two", "status", "should"), ROWS.values(), ids=ROWS.keys())
async def test_attempts(reply, alone, two, status, should, others, autojump_clock):
    """The number of calls, the status and x-should-retry are those of the table, within 10 s; two accounts
    alternate."""
    async with world(accounts=accounts(*(["one", "two"] if others else ["one"]))) as it:
        it.emulator.script(*[reply] * 9)
        actual, headers, body = await it.post(HELLO)
        assert (actual, headers.get("x-should-retry")) == (status, should), body
        calls = [seen.headers["host"] for seen in it.emulator.requests]
        assert len(calls) == (two if others else alone)
        assert len(set(calls)) == min(len(calls), 2 if others else 1)
        assert trio.current_time() < 10
        assert it.sound()


async def test_an_empty_response_names_its_cause(autojump_clock):
    """The 502 of an empty stream describes the received bytes."""
    async with world() as it:
        it.emulator.script(*[FAULTS["fault-empty"][1]] * 2, *[ScriptedReply((b": hi\n\n",))] * 2)
        assert "an empty body" in (await it.post(HELLO))[2]["error"]["message"]
        assert "6 bytes without content" in (await it.post(HELLO))[2]["error"]["message"]


async def test_no_attempt_starts_late(autojump_clock):
    """Slow failures are not retried without end: no attempt starts after twenty seconds."""

    async def hang(host, port):
        await trio.sleep_forever()

    async with world(upstream_connect_timeout=15.0) as it:
        it.server.state.relay.transport._connect = hang
        status, _, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (504, "upstream_timeout")
        assert trio.current_time() == pytest.approx(30.2)


@pytest.mark.parametrize(("waits", "header"), [("7", "7"), ("0.2", "1"), ("3600", "120")])
async def test_retry_after_is_forwarded(waits, header, autojump_clock):
    """The upstream's Retry-After reaches the client, in whole seconds and at most 120 of them."""
    async with world() as it:
        it.emulator.script(*[error_reply(429, "limit_requests", retry_after=waits)] * 2)
        _, headers, _ = await it.post(HELLO)
        assert headers["retry-after"] == header
        assert int(headers["retry-after-ms"]) == min(float(waits) * 1000, 120_000)


@given(
    retry=st.sampled_from(list(RetryHint)),
    tries=st.integers(1, 9),
    others=st.booleans(),
    refreshed=st.booleans(),
    seconds=st.floats(0, 100),
    wait=st.none() | st.floats(0, 100),
)
def test_decisions_are_bounded(retry, tries, others, refreshed, seconds, wait):
    """No attempt starts after 20 s, no third retry except for a new token, and no wait exceeds 2 s."""
    error = UpstreamError("x", retry=retry, retry_after=wait)
    action = next_action(error, attempts=tries, others=others, refreshed=refreshed, seconds=seconds)
    if action is not Action.GIVE_UP:
        assert seconds < 20
        assert retry is not RetryHint.NEVER
        assert (
            tries < 3
            or action is Action.REFRESH_TOKEN
            or (action is Action.OTHER_ACCOUNT and retry in REJECTION_STATUSES)
        )
    if action is Action.SAME_ACCOUNT:
        assert (wait or 0) <= 2
    if action is Action.REFRESH_TOKEN:
        assert not refreshed
    if action is Action.OTHER_ACCOUNT:
        assert others


async def test_every_account_is_tried_before_an_error_is_returned(autojump_clock):
    """Four accounts without quota cost the client nothing if the fifth has some."""
    names = ("one", "two", "three", "four", "five")
    async with world(accounts=accounts(*names, plan="coding")) as it:
        it.emulator.script(*[error_reply(429, "insufficient_quota", "week allocated quota exceeded")] * 4)
        assert (await it.post(HELLO))[0] == 200
        assert {seen.headers["host"] for seen in it.emulator.requests} == {f"{name}.test" for name in names}
        assert it.sound()


async def test_the_most_retryable_error_is_returned(autojump_clock):
    """A rate limit of the account that has the model outranks another account's missing model."""
    for order in (1, -1):
        async with world(accounts=accounts("one", "two")) as it:
            it.emulator.script(
                *[error_reply(429, "limit_requests"), error_reply(404, "model_not_found")][::order]
            )
            status, headers, _ = await it.post(HELLO)
            assert (status, headers["x-should-retry"]) == (429, "true")
            assert 1 < int(headers["retry-after"]) <= 60


def test_errors_raised_by_qproxy_set_should_retry():
    """An overload is retryable; a client's mistake is left to the client's rules."""
    assert OverloadedError("x").should_retry is True
    assert RequestError("x").should_retry is None
    assert RequestError("x", status=429, type="rate_limit_error").should_retry is True


# The circuit breaker

DOWN = UpstreamError("x", retry=RetryHint.SOON)


def open_circuit(now=0.0):
    circuit = CircuitBreaker()
    for _ in range(THRESHOLD):
        circuit.record_result(DOWN, now)
    return circuit


def test_a_circuit_opens_half_opens_and_closes():
    """Consecutive failures open it, one probe at a time may pass, failures double the pause, a success closes
    it."""
    circuit = CircuitBreaker()
    for _ in range(THRESHOLD - 1):
        circuit.record_result(DOWN, 0.0)
    assert circuit.state(0.0) == "closed"
    circuit.record_result(DOWN, 0.0)
    assert (circuit.state(0.0), circuit.wait(0.0)) == ("open", 1.0)
    assert circuit.state(1.0) == "half-open"
    circuit.before_request(1.0)
    assert circuit.state(1.0) == "open"
    circuit.record_result(DOWN, 1.5)
    assert circuit.wait(1.5) == 2.0
    circuit.before_request(3.5)
    circuit.record_result(None, 4.0)
    assert circuit.state(4.0) == "closed"
    circuit.record_result(DOWN, 4.0)
    assert circuit.state(4.0) == "closed"


def test_an_undecided_probe_is_followed_by_another():
    """A client that disconnects does not keep the circuit open."""
    circuit = open_circuit()
    circuit.before_request(1.0)
    assert circuit.wait(1.0) == 1.0
    assert circuit.wait(2.0) == 0.0


def test_failures_in_flight_do_not_lengthen_the_pause():
    """A hundred requests in flight when the circuit opened do not count."""
    circuit = open_circuit()
    for _ in range(100):
        circuit.record_result(DOWN, 0.5)
    assert circuit.wait(0.5) == 0.5
    now = 1.0
    for _ in range(20):
        circuit.before_request(now)
        circuit.record_result(DOWN, now)
        assert circuit.wait(now) <= MAX_PAUSE
        now += circuit.wait(now)


def test_a_rejection_is_no_outage():
    """Only an outage counts as a failure; a rejection shows that the server is up."""
    assert not is_outage(UpstreamError("x", status=429, retry=RetryHint.SOON))
    assert not is_outage(
        UpstreamError("x", status=502, code="upstream_credentials_exhausted", retry=RetryHint.REFRESH_TOKEN)
    )
    assert is_outage(UpstreamError("x", status=504, code="upstream_timeout"))
    circuit = CircuitBreaker()
    for _ in range(50):
        circuit.record_result(DOWN, 0.0)
        circuit.record_result(UpstreamError("x", status=400), 0.0)
    assert circuit.state(0.0) == "closed"


async def test_a_server_that_is_down_gets_no_requests(autojump_clock):
    """With one account an open circuit rejects at once; the account is used again once the server is up."""
    async with world() as it:
        await _open_circuit_of_server(it)
        requests_before = len(it.emulator.requests)
        status, headers, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
        assert headers["x-should-retry"] == "true"
        assert len(it.emulator.requests) == requests_before
        await trio.sleep(1.1)
        assert (await it.post(HELLO))[0] == 200


async def _open_circuit_of_server(it):
    """Send requests that fail on every attempt, until the first attempt of the last one opens the circuit."""
    it.emulator.script(*[ScriptedReply((CloseConnection(),))] * 3 * THRESHOLD)
    for number in range(THRESHOLD):
        assert (await it.post(HELLO))[0] == (503 if number == THRESHOLD - 1 else 502)
    it.emulator.clear()


@pytest.mark.parametrize(
    "reply",
    [json_reply({"error": {"message": "Failed to parse input", "code": 500}}, 500),
        ScriptedReply((event({"error": {"message": "x", "code": "InternalError"}}),))],
    ids=["500", "in a 200"],
)  # fmt: skip
async def test_a_request_that_fails_with_a_server_error_opens_no_circuit(reply, autojump_clock):
    """However often the server reports a failure itself, other requests are still sent to it."""
    async with world() as it:
        it.emulator.script(*[reply] * 3 * 2 * THRESHOLD)
        for _ in range(2 * THRESHOLD):
            assert (await it.post(HELLO))[0] == 502
        assert (await it.post(HELLO))[0] == 200


async def test_an_open_circuit_moves_requests_elsewhere(autojump_clock):
    """With another account clients see no error, and the broken one gets no requests."""

    class HalfDown(Emulator):
        def _reply(self, seen):
            if seen.headers["host"] == "one.test":
                return ScriptedReply((CloseConnection(),))
            return super()._reply(seen)

    async with world(accounts=accounts("one", "two"), emulator=HalfDown()) as it:
        for number in range(40):
            message = {"role": "user", "content": f"conversation {number}"}
            assert (await it.post({**HELLO, "messages": [message]}))[0] == 200
        requests_before = [seen.headers["host"] for seen in it.emulator.requests]
        assert requests_before.count("one.test") == THRESHOLD
        assert it.sound()


async def test_one_probe_at_a_time(autojump_clock):
    """While a probe is in flight, no other is sent."""
    async with world() as it, trio.open_nursery() as nursery:
        await _open_circuit_of_server(it)
        requests_before = len(it.emulator.requests)
        it.emulator.script(ScriptedReply((PauseStep(0.5), CloseConnection())))
        await trio.sleep(1.1)
        for _ in range(10):
            nursery.start_soon(it.post, HELLO)
        await trio.sleep(0.2)
        assert len(it.emulator.requests) == requests_before + 1


QUOTA = error_reply(429, "insufficient_quota", "week allocated quota exceeded")


async def test_a_topped_up_account_is_found_at_once(autojump_clock):
    """While all accounts cool down, a request tries others after a rejection, and a success ends that
    cooldown."""
    async with world(accounts=accounts("one", "two", plan="coding")) as it:
        one, two = it.server.state.relay.accounts.accounts
        for account in (one, two):
            account.record_failure(limit_error(LimitKind.QUOTA), trio.current_time())
        it.emulator.script(QUOTA)
        assert (await it.post(HELLO))[0] == 200
        calls = [seen.headers["host"] for seen in it.emulator.requests]
        assert sorted(set(calls)) == sorted(calls)
        assert len(calls) == 2
        assert sorted(bool(account.cooldowns) for account in (one, two)) == [False, True]


async def test_rechecks_are_bounded_and_reach_every_account(autojump_clock):
    """A request tries at most three cooling accounts, and successive requests try all of them."""
    names = [f"a{number}" for number in range(7)]
    async with world(accounts=accounts(*names, plan="coding")) as it:
        for account in it.server.state.relay.accounts.accounts:
            account.record_failure(limit_error(LimitKind.QUOTA), trio.current_time())
        it.emulator.script(*[QUOTA] * 100)
        for _ in range(4):
            before = len(it.emulator.requests)
            assert (await it.post(HELLO))[0] == 429
            assert len(it.emulator.requests) - before == 3
            await trio.sleep(1)
        assert len({seen.headers["host"] for seen in it.emulator.requests}) == len(names)


@pytest.mark.parametrize("limit", [LimitKind.BURST, LimitKind.MINUTE, LimitKind.CONCURRENCY])
async def test_rate_limited_accounts_are_not_rechecked(limit, autojump_clock):
    """A rate limit ends by time alone, so no request is sent to such an account after a rejection."""
    async with world(accounts=accounts("one", "two", plan="coding")) as it:
        for account in it.server.state.relay.accounts.accounts:
            account.record_failure(limit_error(limit), trio.current_time())
        it.emulator.script(*[QUOTA] * 9)
        assert (await it.post(HELLO))[0] == 429
        assert len(it.emulator.requests) == 1


NAMED = AccountConfig("named", base_url="http://named.test/v1", key="sk-test-key", models=["qwen3.7-*"])
CATCH_ALL = AccountConfig("any", base_url="http://any.test/v1", key="sk-test-key")
NO_MODEL = error_reply(404, "model_not_found")
CAUSES = {
    "a failure": (error_reply(500, "internal_error"), 502),
    "an overload": (error_reply(503, "overloaded"), 503),
    "no access": (error_reply(403, "access_denied", "unpurchased"), 403),
    "a minute's limit": (error_reply(429, "limit_requests"), 429),
    "a wrong key": (error_reply(401, "invalid_api_key"), 502),
}


def answer_by_host(emulator, **replies):
    """Let the servers behind the accounts respond differently."""
    emulator._models[CHAT_PATH] = lambda seen: replies[seen.headers["host"].removesuffix(".test")]


@pytest.mark.parametrize(("reply", "status"), CAUSES.values(), ids=CAUSES)
async def test_the_account_that_names_the_model_decides(reply, status, autojump_clock):
    """The client gets the error of the account that names the model, whichever was tried first."""
    orders = set()
    for number in range(5):
        async with world(accounts=(NAMED, CATCH_ALL)) as it:
            answer_by_host(it.emulator, named=reply, any=NO_MODEL)
            found, _, body = await it.post({**HELLO, "messages": [{"role": "user", "content": str(number)}]})
            assert (found, body["error"]["code"] == "model_not_found") == (status, False)
            orders.add(it.emulator.requests[0].headers["host"])
    assert orders == {"named.test", "any.test"}


async def test_a_cooling_account_that_names_the_model_is_tried(autojump_clock):
    """A catch-all's "no such model" does not hide a rate limit of the account that names the model."""
    async with world(accounts=(NAMED, CATCH_ALL)) as it:
        named = it.server.state.relay.accounts.accounts[0]
        named.record_failure(limit_error(LimitKind.MINUTE), trio.current_time())
        answer_by_host(it.emulator, named=error_reply(429, "limit_requests"), any=NO_MODEL)
        status, headers, _ = await it.post(HELLO)
        assert (status, headers["x-should-retry"]) == (429, "true")


async def test_an_outage_of_the_account_that_names_the_model(autojump_clock):
    """A catch-all's "no such model" does not hide that the account that names the model is down."""
    async with world(accounts=(NAMED, CATCH_ALL)) as it:
        named = it.server.state.relay.accounts.accounts[0]
        for _ in range(THRESHOLD):
            named.record_failure(DOWN, trio.current_time())
        answer_by_host(it.emulator, any=NO_MODEL)
        status, headers, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (503, "upstream_unavailable")
        assert "retry-after" in headers


async def test_a_model_that_no_account_has(autojump_clock):
    """If every account reports that it lacks the model, the client gets that error."""
    async with world(accounts=(NAMED, CATCH_ALL)) as it:
        answer_by_host(it.emulator, named=NO_MODEL, any=NO_MODEL)
        status, _, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (404, "model_not_found")


REDIRECTS = {
    "with a Location": ("https://me:pw@new.test/v1/chat/completions?key=1", "new.test/v1/chat/completions "),
    "relative": ("/v2/", "redirects to /v2/ "),
    "without one": ("", "another address"),
}


@pytest.mark.parametrize(("location", "message"), REDIRECTS.values(), ids=REDIRECTS)
async def test_a_redirect_is_named(location, message, autojump_clock):
    """A redirect is not followed, as it would send the key elsewhere: its target is in the error."""
    async with world() as it:
        it.emulator.script(ScriptedReply((b"<html>moved</html>",), 301, headers=(("location", location),)))
        status, headers, body = await it.post(HELLO)
        assert (status, headers["x-should-retry"]) == (502, "false")
        assert message in body["error"]["message"]
        assert "base_url" in body["error"]["message"]
        assert "key=1" not in body["error"]["message"]
        assert "pw" not in body["error"]["message"]
