"""The token of an account is refreshed before it expires, once, and survives transient errors."""

import errno
import json
import os

import pytest
import trio

from qproxy.auth.credential_store import StorageError
from qproxy.auth.refresh_schedule import MAX_BACKOFF, backoff, plan_refresh
from qproxy.auth.refresher import RELOAD_INTERVAL
from qproxy.auth.token_state import FORCE_WINDOW, MAX_FORCED
from qproxy.backends.credentials import credential_opener
from qproxy.backends.local import credential_file
from qproxy.bootstrap import auth
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator.identity import FAULTS, TOKEN_PATH
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.errors import UpstreamError
from tests.auth.helpers import EPOCH, HOST, LIFETIME, signed


def sent_refresh_tokens(it):
    """Return the refresh tokens that were sent, in order."""
    return [
        s.body["refresh_token"]
        for s in it.emulator.requests
        if s.path == TOKEN_PATH and "refresh_token" in s.body
    ]


async def test_a_token_is_refreshed_before_it_expires(tmp_path, autojump_clock):
    """The refresh runs in the background 20 minutes before expiry, without a request; the file has the newest
    tokens."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        assert first.base_url == f"{HOST}/v1"
        await trio.sleep(LIFETIME - 1300)
        assert sent_refresh_tokens(it) == []
        await trio.sleep(200)
        assert len(sent_refresh_tokens(it)) == 1
        second = await source.credential()
        assert (second.generation, second.token) == (first.generation + 1, it.on_disk().access_token)
        assert it.emulator.identity.accepts_token(second.token)
        assert source.status().state == "ready"


def record_refresh_times(it):
    """Return a growing list with Trio's time of every refresh from now on."""
    times, reply = [], it.emulator.identity.reply

    def recording_reply(method, path, query, body, origin):
        if path == TOKEN_PATH and "refresh_token" in body:
            times.append(trio.current_time())
        return reply(method, path, query, body, origin)

    it.emulator.identity.reply = recording_reply
    return times


@pytest.mark.parametrize("ahead", [0.0, 30.0, 1200.0])
@pytest.mark.parametrize("lifetime", [45.0, 120.0, 3601.3, LIFETIME])
async def test_a_refresh_starts_when_it_is_due(lifetime, ahead, tmp_path, autojump_clock):
    """It starts at its time, between any two file checks, and before requests would have to wait."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        times, expiry = record_refresh_times(it), (it.on_disk().expiry_date / 1000) - EPOCH
        await trio.sleep(1.7)
        source = it.source(ahead=ahead)
        await trio.sleep(lifetime - 2)
        plan = plan_refresh(lifetime, ahead, 0.5)
        assert expiry - times[0] == pytest.approx(plan.refresh_margin, abs=0.1)
        assert plan.refresh_margin > plan.margin == min(30.0, lifetime / 4)
        assert source.status().refreshes >= 1


@pytest.mark.parametrize("lifetime", [40.0, 120.0, LIFETIME])
async def test_no_request_gets_a_token_that_is_about_to_expire(lifetime, tmp_path, autojump_clock):
    """Whatever the identity server does, a token has more time left than the margin, or an error is
    raised."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        source, margin = it.source(), min(30.0, lifetime / 4)
        last = await source.credential()
        it.emulator.identity.script(*[FAULTS["503"]] * 1000)
        await trio.sleep(lifetime - margin - 3)
        reject = 0
        for _ in range(int(margin) * 2):
            await trio.sleep(0.5)
            left = it.on_disk().seconds_left(it.wall())
            try:
                assert (await source.credential()).token == last.token
            except UpstreamError:
                reject += 1
                assert left <= margin
                assert source.status().state in ("expired", "refreshing")
            else:
                assert left > margin
        assert reject > margin
        it.emulator.identity._script[TOKEN_PATH].clear()
        await trio.sleep(MAX_BACKOFF)
        assert it.emulator.identity.accepts_token((await source.credential()).token)


async def test_a_failed_refresh_is_retried_before_requests_wait(tmp_path, autojump_clock):
    """A backoff of up to a minute does not extend into the thirty seconds before expiry."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        times, expiry = record_refresh_times(it), (it.on_disk().expiry_date / 1000) - EPOCH
        it.source()
        it.emulator.identity.script(*[FAULTS["503"]] * 1000)
        await trio.sleep(LIFETIME - 29.5)
        assert times[-1] == pytest.approx(expiry - 30, abs=0.1)
        assert times[-1] - times[-2] < times[-2] - times[-3] == MAX_BACKOFF * 0.75


@pytest.mark.parametrize("left", [100.0, 29.0, 12.0, 1.0])
@pytest.mark.parametrize("lifetime", [60.0, 120.0, LIFETIME])
async def test_a_start_near_expiry_keeps_the_margin(lifetime, left, tmp_path, autojump_clock):
    """The margin depends on the token, whenever its file was read: the first request gets a token with more
    left, or waits."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        first = it.on_disk()
        await trio.sleep(max(0.0, lifetime - left))
        source = it.source()
        credential = await source.credential()
        assert source._token_state.schedule == plan_refresh(lifetime, 1200.0, 0.5)
        assert (credential.token == first.access_token) == (left >= lifetime / 2 and lifetime < 1200)
        assert it.on_disk().seconds_left(it.wall()) > min(30.0, lifetime / 4)


async def test_a_file_without_the_lifetime_of_its_token(tmp_path, autojump_clock):
    """A token of another program gets the full margin, and the lifetime of the next token is known."""
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
async def test_very_short_lifetimes_cause_no_refresh_loop(lifetime, tmp_path, autojump_clock):
    """The identity server gets at most one request per file check while no request needs a token."""
    async with signed(tmp_path, token_lifetime=lifetime) as it:
        await it.sign_in()
        it.source()
        await trio.sleep(20 * RELOAD_INTERVAL)
        assert 1 < len(sent_refresh_tokens(it)) <= 21


async def test_a_suspended_machine_is_noticed(tmp_path, autojump_clock):
    """If only the wall clock has advanced, the token is refreshed within one file check, without a
    request."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.wall.shift = LIFETIME - 20
        await trio.sleep(RELOAD_INTERVAL + 0.1)
        assert source.status().refreshes == 1


async def test_a_revoked_token_that_worked_is_refreshed_at_once(tmp_path, autojump_clock):
    """An accepted token that is revoked is refreshed immediately, each time, up to MAX_FORCED refreshes."""
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
        assert len(sent_refresh_tokens(it)) == MAX_FORCED + 1


async def test_requests_with_an_expired_token_wait_for_one_refresh(tmp_path, autojump_clock):
    """A hundred concurrent requests cause one refresh and get the same token; a cancelled one does not stop
    it."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        await trio.sleep(LIFETIME + 60)
        source = it.source(keep=False)
        tokens = []

        async def request_token():
            tokens.append((await source.credential()).token)

        async def cancel_at_once():
            with trio.move_on_after(0):
                await request_token()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at_once)
            for _ in range(100):
                nursery.start_soon(request_token)
            await trio.testing.wait_all_tasks_blocked()
            it.nursery.start_soon(source.run)
        assert len(sent_refresh_tokens(it)) == 1
        assert tokens == [it.on_disk().access_token] * 100


async def test_a_cancelled_request_does_not_abort_the_refresh(tmp_path, autojump_clock):
    """If the only waiting request is cancelled during the refresh, the tokens are kept."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        await trio.sleep(LIFETIME + 60)
        source = it.source()
        with trio.move_on_after(0):
            await source.credential()
        await trio.sleep(1)
        assert len(sent_refresh_tokens(it)) == 1
        assert source.status().usable


async def test_a_stop_waits_for_the_refresh_in_flight(tmp_path, autojump_clock):
    """Cancelling the refresh task during a refresh still receives and saves the response."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        await trio.sleep(LIFETIME + 60)
        before = it.on_disk()
        with trio.CancelScope() as scope:
            source = it.source(keep=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.run)
                while not sent_refresh_tokens(it):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert it.on_disk() != before
        assert it.emulator.identity.accepts_token(it.on_disk().access_token)


async def test_one_refresh_for_each_rejected_generation(tmp_path, autojump_clock):
    """A 401 of chat forces one refresh, however many requests were rejected; a second 401 sets the state's
    message."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        results = []

        async def reject():
            results.append(await source.report_rejected(first, "no"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(reject)
        assert results == [True] * 10
        assert len(sent_refresh_tokens(it)) == 1
        second = await source.credential()
        assert not await source.report_rejected(second, f"invalid access token {second.token}")
        assert len(sent_refresh_tokens(it)) == 1
        status = source.status()
        assert status.state == "refused"
        assert "401" in status.message
        assert "invalid access token ***" in status.message
        await trio.sleep(601)
        assert await source.report_rejected(second, "no")
        assert source.status().state == "ready"


TRANSIENT_FAULTS = ["html", "html-401", "503", "500-text", "empty", "no-token", "cut", "429", "hang"]


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
async def test_transient_errors_lose_no_token(fault, tmp_path, autojump_clock):
    """Every response except a JSON error is retried with backoff, and the current token stays in use."""
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
        assert len(set(sent_refresh_tokens(it))) == 1


async def test_errors_that_outlast_the_token_end_with_a_refresh(tmp_path, autojump_clock):
    """With an expired token requests fail without refreshes of their own, until a refresh succeeds."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.emulator.identity.script(*[FAULTS["503"]] * 1000)
        await trio.sleep(LIFETIME + 1)
        refreshes_before = len(sent_refresh_tokens(it))
        for _ in range(50):
            with pytest.raises(UpstreamError, match="identity server failed") as caught:
                await source.credential()
        assert len(sent_refresh_tokens(it)) - refreshes_before <= 1
        assert caught.value.code == "upstream_credentials_exhausted"
        assert source.status().state == "expired"
        it.emulator.identity._script[TOKEN_PATH].clear()
        await trio.sleep(MAX_BACKOFF + 10)
        assert (await source.credential()).token == it.on_disk().access_token


async def test_a_rejected_refresh_requires_a_new_login(tmp_path, autojump_clock):
    """After a 400 in JSON there is no further refresh; the token serves until it expires; a new login is
    picked up automatically."""
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
        assert len(sent_refresh_tokens(it)) == 1
        await it.sign_in()
        await trio.sleep(6)
        assert source.status().state == "ready"


async def test_a_rejected_refresh_rereads_the_file_first(tmp_path, autojump_clock):
    """If a program that ignores the lock has rotated the token, its newer tokens are used, and no login is
    needed."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        stored = it.on_disk()
        sent: list[object] = []
        reply = it.emulator.identity.reply

        def rotate_first(method, path, query, body, origin):
            if path == TOKEN_PATH and not sent:
                sent.append(body)
                response = reply(method, path, query, body, origin)  # the other program gets this response
                granted = json.loads(response.steps[0])
                it.write(
                    TokenSet(
                        granted["access_token"],
                        granted["refresh_token"],
                        "Bearer",
                        stored.expiry_date + 9_999_000,
                        HOST,
                    )
                )
                return FAULTS["refused"]
            return reply(method, path, query, body, origin)

        it.emulator.identity.reply = rotate_first
        assert await source.report_rejected(first, "no")
        assert (await source.credential()).token == it.on_disk().access_token
        assert it.emulator.identity.reused_count == 0
        assert source.status().state == "ready"


async def test_a_newer_file_replaces_a_refresh(tmp_path, autojump_clock):
    """If another process has refreshed, this one uses its token and sends no refresh."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source, other = it.source(), it.source()
        first = await source.credential()
        assert await other.report_rejected(await other.credential(), "no")
        assert await source.report_rejected(first, "no")
        assert len(sent_refresh_tokens(it)) == 1
        assert (await source.credential()).token == (await other.credential()).token


async def test_a_logout_is_noticed(tmp_path, autojump_clock):
    """Removing the file ends the login within seconds."""
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


async def test_fields_missing_in_a_refresh_response_are_kept(tmp_path, autojump_clock):
    """A response without a refresh token and a resource keeps both; unknown fields stay in the file."""
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


async def test_the_base_url_follows_the_token(tmp_path, autojump_clock):
    """A refresh can move the account to another host, but only to one that oauth_hosts allows."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        it.emulator.identity.resource_url = "evil.test"
        assert await source.report_rejected(first, "no")
        with pytest.raises(UpstreamError, match=r"https://evil.test.*oauth_hosts"):
            await source.credential()


@pytest.mark.parametrize("shift", [-1e7, -7200.0, 7200.0, 1e7], ids=["far back", "back", "on", "far on"])
async def test_a_clock_jump_costs_at_most_a_refresh(shift, tmp_path, autojump_clock):
    """Set back, the clock extends no token; set forward, it causes a refresh; an expired token is never
    sent."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        await source.credential()
        it.wall.shift = shift
        for _ in range(20):
            await trio.sleep(LIFETIME / 7)
            credential = await source.credential()
            assert it.emulator.identity.accepts_token(credential.token)
        assert len(sent_refresh_tokens(it)) <= 5
        it.wall.shift = 0.0
        await trio.sleep(10)
        assert it.emulator.identity.accepts_token((await source.credential()).token)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=["full", "read-only", "forbidden"]
)
async def test_a_disk_that_cannot_be_written(code, tmp_path, autojump_clock, monkeypatch):
    """The refresh waits while the old token is valid, then runs in memory, and is saved once the disk is
    writable."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first = await source.credential()
        before = it.path.read_bytes()
        opened, full = os.open, [True]

        def fail_to_create(path, flags, *rest, **more):
            if full[0] and flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
                raise OSError(code, os.strerror(code))
            return opened(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", fail_to_create)
        await trio.sleep(LIFETIME - 600)
        status = source.status()
        assert status.state == "not_saved"
        assert os.strerror(code) in status.message
        assert "is valid until it expires" in status.message
        assert sent_refresh_tokens(it) == []
        assert (await source.credential()).token == first.token
        await trio.sleep(590)
        second = await source.credential()
        assert it.emulator.identity.accepts_token(second.token)
        assert len(sent_refresh_tokens(it)) == 1
        assert "memory only" in source.status().message
        assert it.path.read_bytes() == before
        full[0] = False
        await trio.sleep(6)
        assert it.on_disk().access_token == second.token
        assert source.status().state == "ready"


async def test_a_rename_that_fails(tmp_path, autojump_clock, monkeypatch):
    """A rename that fails leaves the old file unchanged and the new tokens in memory."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source()
        first, before = await source.credential(), it.path.read_bytes()
        with monkeypatch.context() as patch:

            def fail_to_rename(*arguments):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patch.setattr(os, "rename", fail_to_rename)
            assert await source.report_rejected(first, "no")
            assert it.path.read_bytes() == before
            assert source.status().state == "not_saved"
        await trio.sleep(6)
        assert it.on_disk().access_token == (await source.credential()).token
        assert [path.name for path in it.path.parent.iterdir() if "qproxy-" in path.name] == []


async def test_an_unreadable_file_changes_nothing(tmp_path, autojump_clock):
    """While the file is invalid, the tokens in memory are used."""
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


async def test_waits_for_a_held_lock(tmp_path, autojump_clock):
    """A refresh waits for a lock held by another process, continues when it is released, and reports one that
    stays held."""
    async with signed(tmp_path) as it:
        await it.sign_in()
        source = it.source(shared=True)
        first = await source.credential()
        lock = it.path.with_suffix(".lock")
        lock.write_text("theirs")
        os.utime(lock, (EPOCH + trio.current_time(),) * 2)
        assert not await source.report_rejected(first, "no")
        assert sent_refresh_tokens(it) == []
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
    """A refresh is due 20 minutes before expiry, with jitter; at least 30 s before; in the second half of a
    lifetime of minutes."""
    found = plan_refresh(lifetime, ahead, spread)
    assert (found.refresh_margin, found.margin) == expected


def test_backoff_doubles_to_a_minute():
    """Backoff starts at 2 s, with jitter of up to a half."""
    assert [backoff(n, 1.0) for n in (1, 2, 3, 6, 99, 10**6)] == [2.0, 4.0, 8.0, 60.0, 60.0, 60.0]
    assert backoff(1, 0.0) == 1.0


async def test_repr_and_status_have_no_secret(tmp_path, autojump_clock):
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
    """The wait is bounded by the lock, the identity server (oauth_timeout) and the disk; here no refresh task
    runs."""
    for seconds in (1.0, 100.0):
        account = AccountConfig("me", "oauth", credentials=str(tmp_path))
        config = Config(accounts=(account,), oauth_timeout=seconds)
        store = credential_opener(config)(account)
        source = auth.build_oauth_source(account, config, store)
        started = trio.current_time()
        with pytest.raises(UpstreamError, match="Not logged in"):
            await source.credential()
        assert trio.current_time() - started == pytest.approx(store.timeout + seconds)
