"""An account's token is there when it is needed: renewed ahead of time, once, and never lost to trouble."""

import errno
import json
import os

import pytest
import trio

from qproxy.auth.credential_store import StorageError
from qproxy.auth.refresh_schedule import MAX_BACKOFF, backoff, plan_refresh
from qproxy.auth.refresher import RELOAD_INTERVAL
from qproxy.auth.token_state import FORCE_WINDOW, MAX_FORCED
from qproxy.backends.factory import credential_opener
from qproxy.backends.local import credential_file
from qproxy.bootstrap import auth
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator.identity import FAULTS, TOKEN_PATH
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.errors import UpstreamError
from tests.auth.helpers import EPOCH, HOST, LIFETIME, signed


def refreshes(it):
    """The refresh tokens that were sent, in order."""
    return [
        s.body["refresh_token"]
        for s in it.emulator.requests
        if s.path == TOKEN_PATH and "refresh_token" in s.body
    ]


async def test_a_token_is_renewed_ahead_of_its_end(tmp_path, autojump_clock):
    """In the background, 20 minutes before the end, without a request; the file has the newest."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        assert first.base_url == f"{HOST}/v1"
        await trio.sleep(LIFETIME - 1300)
        assert refreshes(it) == []
        await trio.sleep(200)
        assert len(refreshes(it)) == 1
        second = await source.credential()
        assert (second.generation, second.token) == (first.generation + 1, it.on_disk().access_token)
        assert it.emulator.identity.accepts_token(second.token)
        assert source.status().state == "ready"


def refreshed_at(it):
    """Trio's clock at every refresh from now on; a list that grows."""
    times, reply = [], it.emulator.identity.reply

    def watched(method, path, query, body, origin):
        if path == TOKEN_PATH and "refresh_token" in body:
            times.append(trio.current_time())
        return reply(method, path, query, body, origin)

    it.emulator.identity.reply = watched
    return times


@pytest.mark.parametrize("ahead", [0.0, 30.0, 1200.0])
@pytest.mark.parametrize("lifetime", [45.0, 120.0, 3601.3, LIFETIME])
async def test_a_renewal_is_slept_to(lifetime, ahead, tmp_path, autojump_clock):
    """It begins when it is due, wherever that is between two looks, and before requests would have to
    wait."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        times, ends = refreshed_at(it), (it.on_disk().expiry_date / 1000) - EPOCH
        await trio.sleep(1.7)
        source = it.source(ahead=ahead)
        await trio.sleep(lifetime - 2)
        plan = plan_refresh(lifetime, ahead, 0.5)
        assert ends - times[0] == pytest.approx(plan.refresh_margin, abs=0.1)
        assert plan.refresh_margin > plan.margin == min(30.0, lifetime / 4)
        assert source.status().refreshes >= 1


@pytest.mark.parametrize("lifetime", [40.0, 120.0, LIFETIME])
async def test_no_request_begins_with_a_token_that_is_about_to_end(lifetime, tmp_path, autojump_clock):
    """Whatever the identity server does: it has more left than the margin, or there is none."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        source, margin = it.source(), min(30.0, lifetime / 4)
        last = await source.credential()
        it.emulator.identity.script(*[FAULTS["503"]] * 1000)
        await trio.sleep(lifetime - margin - 3)
        refused = 0
        for _ in range(int(margin) * 2):
            await trio.sleep(0.5)
            left = it.on_disk().seconds_left(it.wall())
            try:
                assert (await source.credential()).token == last.token
            except UpstreamError:
                refused += 1
                assert left <= margin
                assert source.status().state in ("expired", "refreshing")
            else:
                assert left > margin
        assert refused > margin
        it.emulator.identity._script[TOKEN_PATH].clear()
        await trio.sleep(MAX_BACKOFF)
        assert it.emulator.identity.accepts_token((await source.credential()).token)


async def test_a_renewal_that_failed_is_tried_again_before_requests_wait(tmp_path, autojump_clock):
    """A pause of up to a minute does not go beyond the thirty seconds before the end."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        times, ends = refreshed_at(it), (it.on_disk().expiry_date / 1000) - EPOCH
        it.source()
        it.emulator.identity.script(*[FAULTS["503"]] * 1000)
        await trio.sleep(LIFETIME - 29.5)
        assert times[-1] == pytest.approx(ends - 30, abs=0.1)
        assert times[-1] - times[-2] < times[-2] - times[-3] == MAX_BACKOFF * 0.75


@pytest.mark.parametrize("left", [100.0, 29.0, 12.0, 1.0])
@pytest.mark.parametrize("lifetime", [60.0, 120.0, LIFETIME])
async def test_a_start_near_the_end_changes_no_margin(lifetime, left, tmp_path, autojump_clock):
    """The margin is the token's own, whenever its file was read: the first request has more left, or
    waits."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        first = it.on_disk()
        await trio.sleep(max(0.0, lifetime - left))
        source = it.source()
        credential = await source.credential()
        assert source._token_state.schedule == plan_refresh(lifetime, 1200.0, 0.5)
        assert (credential.token == first.access_token) == (left >= lifetime / 2 and lifetime < 1200)
        assert it.on_disk().seconds_left(it.wall()) > min(30.0, lifetime / 4)


async def test_a_file_that_does_not_say_how_long_its_token_lasts(tmp_path, autojump_clock):
    """Another program's: the margin is the whole one, and the next token is known."""
    async with signed(tmp_path, token_lifetime=40.0) as it:
        await it.sign_in()
        found = it.on_disk()
        it.write(TokenSet(found.access_token, found.refresh_token, "Bearer", found.expiry_date, HOST))
        await trio.sleep(15)
        source = it.source()
        assert (await source.credential()).token == it.on_disk().access_token != found.access_token
        assert it.on_disk().lifetime == 40.0
        await trio.sleep(15)
        assert source.status().refreshes == 1


@pytest.mark.parametrize("lifetime", [0.01, 1.0, 4.0])
async def test_tokens_that_last_no_time_set_no_pace(lifetime, tmp_path, autojump_clock):
    """The identity server is asked once a look at most, while no request wants a token."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        it.source()
        await trio.sleep(20 * RELOAD_INTERVAL)
        assert 1 < len(refreshes(it)) <= 21


async def test_a_machine_that_was_suspended_is_noticed(tmp_path, autojump_clock):
    """Only the wall clock has gone on: the token is renewed within one look, without a request."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.wall.shift = LIFETIME - 20
        await trio.sleep(RELOAD_INTERVAL + 0.1)
        assert source.status().refreshes == 1


async def test_a_token_that_worked_is_renewed_whenever_it_is_revoked(tmp_path, autojump_clock):
    """At once, and again and again, up to a bound that no identity server would mind."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        for _ in range(MAX_FORCED):
            credential = await source.credential()
            source.report_accepted(credential)
            it.emulator.identity.expire()
            assert await source.report_rejected(credential, "no")
        credential = await source.credential()
        source.report_accepted(credential)
        assert not await source.report_rejected(credential, "no")
        assert source.status().state == "refused"
        source.report_accepted(credential)
        assert source.status().state == "ready"
        await trio.sleep(FORCE_WINDOW + 1)
        assert await source.report_rejected(credential, "no")
        assert len(refreshes(it)) == MAX_FORCED + 1


async def test_requests_that_find_an_ended_token_wait_for_one_refresh(tmp_path, autojump_clock):
    """A hundred at once cause one refresh and get the same token; one that leaves does not stop it."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        await trio.sleep(LIFETIME + 60)
        source = it.source(keep=False)
        got = []

        async def ask():
            got.append((await source.credential()).token)

        async def leave_soon():
            with trio.move_on_after(0):
                await ask()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_soon)
            for _ in range(100):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            it.nursery.start_soon(source.run)
        assert len(refreshes(it)) == 1
        assert got == [it.on_disk().access_token] * 100


async def test_a_request_that_leaves_does_not_tear_the_refresh(tmp_path, autojump_clock):
    """The one request that asked is cancelled while the answer is on its way: the tokens are kept all the
    same."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        await trio.sleep(LIFETIME + 60)
        source = it.source()
        with trio.move_on_after(0):
            await source.credential()
        await trio.sleep(1)
        assert len(refreshes(it)) == 1
        assert source.status().usable


async def test_a_stop_waits_for_the_refresh_under_way(tmp_path, autojump_clock):
    """Cancelling the keeper in the middle of a refresh lets the answer come in and be saved."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        await trio.sleep(LIFETIME + 60)
        before = it.on_disk()
        with trio.CancelScope() as scope:
            source = it.source(keep=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.run)
                while not refreshes(it):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert it.on_disk() != before
        assert it.emulator.identity.accepts_token(it.on_disk().access_token)


async def test_one_refresh_for_each_refused_generation(tmp_path, autojump_clock):
    """Chat's 401 forces a refresh once, however many requests were refused; another 401 is put into words."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        newer = []

        async def refused():
            newer.append(await source.report_rejected(first, "no"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(refused)
        assert newer == [True] * 10
        assert len(refreshes(it)) == 1
        second = await source.credential()
        assert not await source.report_rejected(second, f"invalid access token {second.token}")
        assert len(refreshes(it)) == 1
        status = source.status()
        assert status.state == "refused"
        assert "401" in status.message
        assert "invalid access token ***" in status.message
        await trio.sleep(601)
        assert await source.report_rejected(second, "no")
        assert source.status().state == "ready"


TROUBLE = ["html", "html-401", "503", "500-text", "empty", "no-token", "cut", "429", "hang"]


@pytest.mark.parametrize("fault", TROUBLE)
async def test_trouble_loses_nothing(fault, tmp_path, autojump_clock):
    """Every answer but a refusal in JSON is tried again with backoff, and the token in use stays in use."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        it.emulator.identity.script(*[FAULTS[fault]] * 3)
        await trio.sleep(LIFETIME - 1190)
        assert source.status().state in ("retrying", "refreshing")
        assert (await source.credential()).token == first.token
        await trio.sleep(300)
        assert source.status().state == "ready"
        assert (await source.credential()).token != first.token
        assert len(set(refreshes(it))) == 1


async def test_trouble_that_outlasts_the_token_is_said_and_ends(tmp_path, autojump_clock):
    """With an ended token requests are refused in words, without asking at their pace, until a refresh
    works."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.emulator.identity.script(*[FAULTS["503"]] * 1000)
        await trio.sleep(LIFETIME + 1)
        asked = len(refreshes(it))
        for _ in range(50):
            with pytest.raises(UpstreamError, match="identity server failed") as caught:
                await source.credential()
        assert len(refreshes(it)) - asked <= 1
        assert caught.value.code == "upstream_credentials_exhausted"
        assert source.status().state == "expired"
        it.emulator.identity._script[TOKEN_PATH].clear()
        await trio.sleep(MAX_BACKOFF + 10)
        assert (await source.credential()).token == it.on_disk().access_token


async def test_a_refusal_needs_a_new_sign_in_and_gets_one(tmp_path, autojump_clock):
    """400 in JSON: no further refresh; the token serves to its end; a new sign-in is seen by itself."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.emulator.identity.script(FAULTS["refused"])
        await trio.sleep(LIFETIME - 1100)
        assert source.status().state == "ending"
        assert (await source.credential()).token
        await trio.sleep(1200)
        with pytest.raises(UpstreamError, match="qproxy login --account me"):
            await source.credential()
        assert source.status().state == "login_needed"
        assert len(refreshes(it)) == 1
        await it.sign_in()
        await trio.sleep(6)
        assert source.status().state == "ready"


async def test_a_refusal_is_believed_only_after_the_file_was_read_again(tmp_path, autojump_clock):
    """Another program that knows no lock has rotated the token: its newer ones are used, and nobody must sign
    in."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        theirs = it.on_disk()
        sent: list[object] = []
        reply = it.emulator.identity.reply

        def rotated_meanwhile(method, path, query, body, origin):
            if path == TOKEN_PATH and not sent:
                sent.append(body)
                answer = reply(method, path, query, body, origin)  # it is they who got this one
                granted = json.loads(answer.steps[0])
                it.write(
                    TokenSet(
                        granted["access_token"],
                        granted["refresh_token"],
                        "Bearer",
                        theirs.expiry_date + 9_999_000,
                        HOST,
                    )
                )
                return FAULTS["refused"]
            return reply(method, path, query, body, origin)

        it.emulator.identity.reply = rotated_meanwhile
        assert await source.report_rejected(first, "no")
        assert (await source.credential()).token == it.on_disk().access_token
        assert it.emulator.identity.reused_count == 0
        assert source.status().state == "ready"


async def test_a_newer_file_is_taken_up_instead_of_a_refresh(tmp_path, autojump_clock):
    """Another process has refreshed: this one notices, and spends nothing."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source, other = it.source(), it.source()
        first = await source.credential()
        assert await other.report_rejected(await other.credential(), "no")
        assert await source.report_rejected(first, "no")
        assert len(refreshes(it)) == 1
        assert (await source.credential()).token == (await other.credential()).token


async def test_signing_out_is_seen(tmp_path, autojump_clock):
    """When the file goes, so does the account."""
    async with signed(tmp_path) as it:
        source = it.source()
        with pytest.raises(UpstreamError, match="Not logged in"):
            await source.credential()
        await it.sign_in()
        assert (await source.credential()).token
        it.file.remove()
        await trio.sleep(6)
        with pytest.raises(UpstreamError, match="Not logged in"):
            await source.credential()


async def test_what_an_answer_leaves_out_stays(tmp_path, autojump_clock):
    """A refresh that names neither a refresh token nor a resource keeps both; unknown fields stay in the
    file."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        before = it.on_disk()
        it.write(
            TokenSet(
                before.access_token,
                before.refresh_token,
                "Bearer",
                before.expiry_date,
                HOST,
                {"note": "mine"},
            )
        )
        it.emulator.identity.rotate = it.emulator.identity.names_resource = False
        source = it.source()
        assert await source.report_rejected(await source.credential(), "no")
        after = it.on_disk()
        assert after.access_token != before.access_token
        assert (after.refresh_token, after.resource_url, after.others) == (
            before.refresh_token,
            HOST,
            {"note": "mine"},
        )


async def test_the_base_follows_the_token(tmp_path, autojump_clock):
    """A refresh can move the account to another host, and to none that may not see the token."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        it.emulator.identity.resource_url = "evil.test"
        assert await source.report_rejected(first, "no")
        with pytest.raises(UpstreamError, match=r"https://evil.test.*oauth_hosts"):
            await source.credential()


@pytest.mark.parametrize("shift", [-1e7, -7200.0, 7200.0, 1e7], ids=["far back", "back", "on", "far on"])
async def test_a_clock_that_jumps_costs_at_most_a_refresh(shift, tmp_path, autojump_clock):
    """Set back, a token does not last longer than it does; set on, it is renewed; never is one sent that has
    ended."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.wall.shift = shift
        for _ in range(20):
            await trio.sleep(LIFETIME / 7)
            credential = await source.credential()
            assert it.emulator.identity.accepts_token(credential.token)
        assert len(refreshes(it)) <= 5
        it.wall.shift = 0.0
        await trio.sleep(10)
        assert it.emulator.identity.accepts_token((await source.credential()).token)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=["full", "read-only", "forbidden"]
)
async def test_a_disk_that_takes_nothing(code, tmp_path, autojump_clock, monkeypatch):
    """The refresh waits while the old token is good, is then done in memory, and is saved once the disk is
    well."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        before = it.path.read_bytes()
        opened, full = os.open, [True]

        def no_room(path, flags, *rest, **more):
            if full[0] and flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
                raise OSError(code, os.strerror(code))
            return opened(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", no_room)
        await trio.sleep(LIFETIME - 600)
        status = source.status()
        assert status.state == "not_saved"
        assert os.strerror(code) in status.message
        assert "is valid until it expires" in status.message
        assert refreshes(it) == []
        assert (await source.credential()).token == first.token
        await trio.sleep(590)
        second = await source.credential()
        assert it.emulator.identity.accepts_token(second.token)
        assert len(refreshes(it)) == 1
        assert "memory only" in source.status().message
        assert it.path.read_bytes() == before
        full[0] = False
        await trio.sleep(6)
        assert it.on_disk().access_token == second.token
        assert source.status().state == "ready"


async def test_a_disk_that_fills_up_between_draft_and_file(tmp_path, autojump_clock, monkeypatch):
    """A rename that fails leaves the old file whole and the new tokens in memory."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first, before = await source.credential(), it.path.read_bytes()
        with monkeypatch.context() as patch:

            def broken(*arguments):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patch.setattr(os, "rename", broken)
            assert await source.report_rejected(first, "no")
            assert it.path.read_bytes() == before
            assert source.status().state == "not_saved"
        await trio.sleep(6)
        assert it.on_disk().access_token == (await source.credential()).token
        assert [path.name for path in it.path.parent.iterdir() if "qproxy-" in path.name] == []


async def test_a_file_that_cannot_be_read_changes_nothing(tmp_path, autojump_clock):
    """While it holds nothing of use, memory does."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        it.path.write_bytes(b"{")
        await trio.sleep(6)
        assert (await source.credential()).token == first.token
        it.path.unlink()
        it.path.symlink_to("/etc/passwd")
        await trio.sleep(6)
        assert (await source.credential()).token == first.token
        assert "symbolic link" in source.status().message


async def test_a_lock_that_is_held_is_waited_for(tmp_path, autojump_clock):
    """Held by another process the refresh waits; let go, it goes on; held for ever, the state says so."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source(shared=True)
        first = await source.credential()
        lock = it.path.with_suffix(".lock")
        lock.write_text("theirs")
        os.utime(lock, (EPOCH + trio.current_time(),) * 2)
        assert not await source.report_rejected(first, "no")
        assert refreshes(it) == []
        assert "Another program has held" in source.status().message
        assert lock.read_text() == "theirs"
        await trio.sleep(60)
        assert await source.report_rejected(first, "no")
        assert not lock.exists()


@pytest.mark.parametrize(
    ("lifetime", "ahead", "spread", "expected"),
    [
        (21600, 1200, 0.5, (1200, 30)),
        (21600, 1200, 0.0, (900, 30)),
        (21600, 1200, 1.0, (1500, 30)),
        (600, 1200, 0.5, (300, 30)),
        (60, 1200, 0.5, (30, 15)),
        (8, 1200, 0.5, (4, 2)),
        (21600, 0, 0.5, (32, 30)),
        (120, 0, 0.5, (32, 30)),
        (40, 0, 0.5, (12, 10)),
        (0, 1200, 0.5, (0, 0)),
    ],
)
def test_schedules(lifetime, ahead, spread, expected):
    """20 minutes ahead, spread; never later than 30 s before the end; the second half of what lasts
    minutes."""
    found = plan_refresh(lifetime, ahead, spread)
    assert (found.refresh_margin, found.margin) == expected


def test_backoff_doubles_to_a_minute():
    """From 2 s on, with jitter of up to a half."""
    assert [backoff(n, 1.0) for n in (1, 2, 3, 6, 99, 10**6)] == [2.0, 4.0, 8.0, 60.0, 60.0, 60.0]
    assert backoff(1, 0.0) == 1.0


async def test_a_source_shows_no_secret(tmp_path, autojump_clock):
    """repr and status have states, times and paths."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        credential = await source.credential()
        tokens = it.on_disk()
        status = source.status()
        shown = f"{source!r} {status!r} {status.to_json()} {credential!r} {tokens!r} {source.refresher!r}"
        for secret in (tokens.access_token, tokens.refresh_token):
            assert secret not in shown
        assert "ready" in shown
        with pytest.raises(StorageError, match="regular file"):
            credential_file.CredentialFile(tmp_path / "accounts").load()


async def test_a_request_waits_as_long_as_a_refresh_may_take(tmp_path, autojump_clock):
    """For the lock, the identity server (oauth_timeout) and the disk; here nobody keeps the account."""
    for seconds in (1.0, 100.0):
        account = AccountConfig("me", "oauth", credentials=str(tmp_path))
        config = Config(accounts=(account,), oauth_timeout=seconds)
        store = credential_opener(config)(account)
        source = auth.build_oauth_source(account, config, store)
        began = trio.current_time()
        with pytest.raises(UpstreamError, match="Not logged in"):
            await source.credential()
        assert trio.current_time() - began == pytest.approx(store.timeout + seconds)
