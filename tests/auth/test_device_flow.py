"""The device flow follows the daemon's rules: intervals, ends, and trouble that ends nothing."""

import pytest
import trio

from qproxy.auth.credential_store import StorageError
from qproxy.auth.device_flow import next_poll
from qproxy.emulator.identity import DEVICE_PATH, FAULTS, TOKEN_PATH
from qproxy.wire.oauth import AuthorizationPending, SlowDown, TransientError
from tests.auth.helpers import LIFETIME, signed


def polls(it):
    return [seen for seen in it.emulator.requests if seen.path == TOKEN_PATH]


async def test_a_sign_in_leaves_tokens_in_the_file(tmp_path, autojump_clock):
    """Code, page, approval, tokens: saved as they came, and no poll carries more than it must."""
    async with signed(tmp_path) as it:
        assert (await it.sign_in()).state == "signed_in"
        tokens = it.on_disk()
        assert tokens.access_token.startswith("emu-access-")
        assert tokens.seconds_left(it.wall()) == pytest.approx(LIFETIME, abs=1)
        begun = it.emulator.requests[0]
        assert begun.body["code_challenge_method"] == "S256"
        assert "x-request-id" in begun.headers
        assert "x-request-id" not in polls(it)[0].headers
        assert set(polls(it)[0].body) == {"grant_type", "client_id", "device_code", "code_verifier"}


async def test_five_seconds_between_polls_and_five_more_for_each_slow_down(tmp_path, autojump_clock):
    """The first poll comes after one interval; slow_down, with 400 or 429, stays in force."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS["slow_down"], FAULTS["slow_down-400"])
        times = []
        reply = it.emulator.identity.reply

        def timed(method, path, *rest):
            if path == TOKEN_PATH:
                times.append(trio.current_time())
            return reply(method, path, *rest)

        it.emulator.identity.reply = timed
        began = trio.current_time()
        with trio.move_on_after(60):
            await it.flow().run()
        assert [round(time - began) for time in times] == [5, 15, 30, 45, 60][: len(times)]
        assert len(times) >= 4


PACES = {
    "pending": (5.0, 5.0, AuthorizationPending(), (5.0, 5.0)),
    "pending after trouble": (5.0, 40.0, AuthorizationPending(), (5.0, 5.0)),
    "slow down": (5.0, 5.0, SlowDown(), (10.0, 10.0)),
    "slow down at the end": (58.0, 58.0, SlowDown(), (60.0, 60.0)),
    "trouble": (5.0, 5.0, TransientError(""), (5.0, 10.0)),
    "trouble at the end": (5.0, 50.0, TransientError(""), (5.0, 60.0)),
    "a long interval": (90.0, 90.0, TransientError(""), (90.0, 90.0)),
}


@pytest.mark.parametrize(("interval", "pause", "answer", "then"), PACES.values(), ids=PACES.keys())
def test_pace(interval, pause, answer, then):
    """The interval and the next pause, answer by answer."""
    assert next_poll(interval, pause, answer) == then


async def test_the_interval_of_the_server_counts(tmp_path, autojump_clock):
    """Where the server names one, it is the one."""
    async with signed(tmp_path, interval=11.0) as it:
        with trio.move_on_after(30):
            await it.flow().run()
        assert len(polls(it)) == 2


@pytest.mark.parametrize("fault", ["html", "html-401", "503", "500-text", "empty", "no-token", "cut", "429"])
async def test_trouble_ends_nothing(fault, tmp_path, autojump_clock):
    """A web page, a 5xx, a cut or a senseless answer: the flow asks again and is signed in."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS[fault])
        assert (await it.sign_in()).state == "signed_in"
        assert len(polls(it)) == 2


@pytest.mark.parametrize(
    ("fault", "state"), [("denied", "denied"), ("refused", "failed")], ids=["denied", "another error"]
)
async def test_a_last_word_is_one(fault, state, tmp_path, autojump_clock):
    """After a denial or an error in JSON nothing more is asked."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS[fault])
        progress = await it.flow().run()
        assert progress.state == state
        assert len(polls(it)) == 1
        assert not it.path.exists()


async def test_denied_on_the_page(tmp_path, autojump_clock):
    """The person's no ends the flow with the next poll."""
    async with signed(tmp_path) as it:
        assert (await it.sign_in(approve=False)).state == "denied"


async def test_a_code_has_an_end(tmp_path, autojump_clock):
    """At expires_in, by the monotonic clock, the flow is over, whatever the wall clock says and the server
    hides."""
    async with signed(tmp_path, device_lifetime=60.0) as it:
        began = trio.current_time()
        flow = it.flow()
        it.wall.shift = -1e6
        it.emulator.identity.script(*[FAULTS["hang"]])
        progress = await flow.run()
        assert progress.state == "expired"
        assert trio.current_time() - began <= 61


async def test_no_code_no_flow(tmp_path, autojump_clock):
    """Where the server gives no code the flow says why."""
    async with signed(tmp_path) as it:
        it.emulator.identity.script(FAULTS["html"], at=DEVICE_PATH)
        progress = await it.flow().run()
        assert progress.state == "failed"
        assert "did not return JSON" in progress.message


async def test_tokens_that_cannot_be_saved_are_a_failure(tmp_path, autojump_clock):
    """The flow says that it was approved and that nothing is left of it."""
    async with signed(tmp_path) as it:

        def full(tokens):
            raise StorageError("oauth_creds.json cannot be saved: No space left on device.")

        it.file.save = full
        progress = await it.sign_in()
        assert progress.state == "failed"
        assert "No space left" in progress.message


async def test_a_flow_can_be_cancelled(tmp_path, autojump_clock):
    """Cancelled in the middle it says so, and leaves no file."""
    async with signed(tmp_path) as it:
        flow = it.flow()
        with trio.move_on_after(7):
            await flow.run()
        assert flow.progress.state == "cancelled"
        assert not it.path.exists()
        assert repr(flow) == "<DeviceFlow cancelled>"
