"""The device flow follows RFC 8628: poll intervals, terminal errors, and transient errors that are
retried."""

import pytest
import trio

from qproxy.auth.credential_store import StorageError
from qproxy.auth.device_flow import next_poll
from qproxy.emulator.identity import DEVICE_PATH, FAULTS, TOKEN_PATH
from qproxy.wire.oauth import AuthorizationPending, SlowDown, TransientError
from tests.auth.helpers import LIFETIME, signed


def polls(it):
    return [seen for seen in it.emulator.requests if seen.path == TOKEN_PATH]


async def test_a_login_saves_its_tokens(tmp_path, autojump_clock):
    """A flow from code to approval saves the tokens as received, and a poll has only the required fields."""
    async with signed(tmp_path) as it:
        assert (await it.sign_in()).state == "signed_in"
        tokens = it.on_disk()
        assert tokens.access_token.startswith("emu-access-")
        assert tokens.seconds_left(it.wall()) == pytest.approx(LIFETIME, abs=1)
        start_request = it.emulator.requests[0]
        assert start_request.body["code_challenge_method"] == "S256"
        assert "x-request-id" in start_request.headers
        assert "x-request-id" not in polls(it)[0].headers
        assert set(polls(it)[0].body) == {"grant_type", "client_id", "device_code", "code_verifier"}


async def test_polls_every_five_seconds_and_five_more_after_each_slow_down(tmp_path, autojump_clock):
    """The first poll is sent after one interval; slow_down, with 400 or 429, stays in effect."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS["slow_down"], FAULTS["slow_down-400"])
        times = []
        reply = it.emulator.identity.reply

        def timed_reply(method, path, *rest):
            if path == TOKEN_PATH:
                times.append(trio.current_time())
            return reply(method, path, *rest)

        it.emulator.identity.reply = timed_reply
        started = trio.current_time()
        with trio.move_on_after(60):
            await it.flow().run()
        assert [round(time - started) for time in times] == [5, 15, 30, 45, 60][: len(times)]
        assert len(times) >= 4


POLLS = {
    "pending": (5.0, 5.0, AuthorizationPending(), (5.0, 5.0)),
    "pending after trouble": (5.0, 40.0, AuthorizationPending(), (5.0, 5.0)),
    "slow down": (5.0, 5.0, SlowDown(), (10.0, 10.0)),
    "slow down at the end": (58.0, 58.0, SlowDown(), (60.0, 60.0)),
    "trouble": (5.0, 5.0, TransientError(""), (5.0, 10.0)),
    "trouble at the end": (5.0, 50.0, TransientError(""), (5.0, 60.0)),
    "a long interval": (90.0, 90.0, TransientError(""), (90.0, 90.0)),
}


@pytest.mark.parametrize(("interval", "pause", "result", "expected"), POLLS.values(), ids=POLLS.keys())
def test_next_poll(interval, pause, result, expected):
    """The interval and the next pause follow from each result of a poll."""
    assert next_poll(interval, pause, result) == expected


async def test_the_interval_of_the_server_is_used(tmp_path, autojump_clock):
    """An interval that the server sends replaces the default."""
    async with signed(tmp_path, interval=11.0) as it:
        with trio.move_on_after(30):
            await it.flow().run()
        assert len(polls(it)) == 2


@pytest.mark.parametrize("fault", ["html", "html-401", "503", "500-text", "empty", "no-token", "cut", "429"])
async def test_transient_errors_are_retried(fault, tmp_path, autojump_clock):
    """After an HTML page, a 5xx, a truncated or an invalid response, the flow polls again and logs in."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS[fault])
        assert (await it.sign_in()).state == "signed_in"
        assert len(polls(it)) == 2


@pytest.mark.parametrize(
    ("fault", "state"), [("denied", "denied"), ("refused", "failed")], ids=["denied", "another error"]
)
async def test_a_terminal_error_ends_the_flow(fault, state, tmp_path, autojump_clock):
    """After a denial or an error in JSON no further poll is sent."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS[fault])
        progress = await it.flow().run()
        assert progress.state == state
        assert len(polls(it)) == 1
        assert not it.path.exists()


async def test_a_denied_login(tmp_path, autojump_clock):
    """A denial in the browser ends the flow with the next poll."""
    async with signed(tmp_path) as it:
        assert (await it.sign_in(approve=False)).state == "denied"


async def test_a_device_code_expires(tmp_path, autojump_clock):
    """The flow expires after expires_in by the monotonic clock, whatever the wall clock shows and even if the
    server hangs."""
    async with signed(tmp_path, device_lifetime=60.0) as it:
        started = trio.current_time()
        flow = it.flow()
        it.wall.shift = -1e6
        it.emulator.identity.script(*[FAULTS["hang"]])
        progress = await flow.run()
        assert progress.state == "expired"
        assert trio.current_time() - started <= 61


async def test_a_flow_without_a_code_fails(tmp_path, autojump_clock):
    """If the server returns no code, the flow fails with the reason."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS["html"], at=DEVICE_PATH)
        progress = await it.flow().run()
        assert progress.state == "failed"
        assert "did not return JSON" in progress.message


async def test_tokens_that_cannot_be_saved_fail_the_login(tmp_path, autojump_clock):
    """If the approved tokens cannot be saved, the flow fails with the reason."""
    async with signed(tmp_path) as it:

        def fail_to_save(tokens):
            raise StorageError("oauth_creds.json cannot be saved: No space left on device.")

        it.file.save = fail_to_save
        progress = await it.sign_in()
        assert progress.state == "failed"
        assert "No space left" in progress.message


async def test_a_flow_can_be_cancelled(tmp_path, autojump_clock):
    """A cancelled flow has the state cancelled, and leaves no file."""
    async with signed(tmp_path) as it:
        flow = it.flow()
        with trio.move_on_after(7):
            await flow.run()
        assert flow.progress.state == "cancelled"
        assert not it.path.exists()
        assert repr(flow) == "<DeviceFlow cancelled>"
