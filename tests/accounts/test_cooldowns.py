"""Cooldowns: their length, their scope, and their end."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.accounts import cooldowns, quota_resets
from qproxy.accounts.account import CONCURRENCY_BACKOFF_SECONDS, MAX_COOLDOWNS
from qproxy.accounts.cooldowns import BACKOFF, PROBE_SECONDS
from qproxy.wire.errors import LimitKind, RetryHint, UpstreamError
from tests.accounts.factories import account, refusal

WALL = datetime(2026, 8, 12, 3, 4, 5, tzinfo=UTC).timestamp()  # a Wednesday; in China 11:04
HOUR, DAY = 3600.0, 86400.0


def at(year, month, day, hour=0, minute=0):
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp() - WALL


NAMED = {
    "Token Plan": ("Your token-plan 1-week quota has been exhausted. The quota will reset at 08-14 09:18:00 "
                   "UTC.", at(2026, 8, 14, 9, 18)),
    "a year, by China's clock": ("It will reset at 2026-08-13 00:00:00", at(2026, 8, 12, 16)),
    "an offset": ("reset at 2026-08-13T00:00:00+08:00", at(2026, 8, 12, 16)),
    "UTC and an offset": ("Resets at 2026-08-12 12:00 (UTC+8)", at(2026, 8, 12, 4)),
    "west": ("resets at 2026-08-12 00:00:00 -0430", at(2026, 8, 12, 4, 30)),
    "an hour of today": ("will reset at 18:30 UTC", at(2026, 8, 12, 18, 30)),
    "an hour of tomorrow": ("will reset at 03:00 UTC", at(2026, 8, 13, 3)),
    "a span": ("Your quota will reset after 2h7m23s.", 2 * HOUR + 7 * 60 + 23),
    "a span in words": ("Please try again in 1 hour and 30 minutes", 1.5 * HOUR),
    "days": ("resets in 3 days", 3 * DAY),
    "an epoch": (f"reset at {int(WALL) + 60}", 60.0),
    "an epoch in ms": (f"reset at {int(WALL) + 60}000", 60.0),
    "gone by": ("will reset at 2026-08-11 00:00:00 UTC", None),
    "too far": ("will reset at 2027-08-11 00:00:00 UTC", None),
    "no such day": ("will reset at 02-31 00:00:00 UTC", None),
    "no such hour": ("will reset at 08-14 25:00:00 UTC", None),
    "only words": ("quota exceeded; it will reset soon", None),
    "credit": ("Your credit balance is low: 12:30", None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), NAMED.values(), ids=NAMED.keys())
def test_a_named_reset(text, seconds):
    """A reset time in a message is parsed in every known format; other text gives None."""
    found = quota_resets.reset_time_in(text, WALL)
    assert (None if found is None else found - WALL) == seconds


def test_a_reset_after_new_year():
    """A date without a year is the next such date."""
    december = datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()
    found = quota_resets.reset_time_in("will reset at 01-02 00:00:00 UTC", december)
    assert found == datetime(2027, 1, 2, tzinfo=UTC).timestamp()


PERIODS = {
    "hour allocated quota exceeded": 5 * HOUR,
    "5-hour quota": 5 * HOUR,
    "week allocated quota exceeded": at(2026, 8, 16, 16),  # Monday in China
    "Your token-plan 1-week quota has been exhausted.": at(2026, 8, 16, 16),
    "weekly quota exceeded": at(2026, 8, 16, 16),
    "month allocated quota exceeded": at(2026, 8, 31, 16),
    "daily quota": at(2026, 8, 12, 16),
    "free allocated quota exceeded": None,
    "quota": None,
}


@pytest.mark.parametrize(("text", "seconds"), PERIODS.items(), ids=PERIODS.keys())
def test_a_period(text, seconds):
    """Five hours, a day, a week from Monday and a month end by China's calendar."""
    found = quota_resets.next_period_reset(text, WALL)
    assert (None if found is None else found - WALL) == seconds


@given(st.text(max_size=80), st.floats(1.7e9, 1.9e9))
def test_any_text(text, wall):
    """Any text is accepted, and no cooldown exceeds a month."""
    for words in (text, f"will reset at {text}", f"resets in {text}"):
        found = quota_resets.reset_time_in(words, wall)
        assert found is None or wall < found <= wall + quota_resets.MAX_RESET


SECONDS = {
    "a burst": (refusal(LimitKind.BURST), 2.0, None),
    "a header": (refusal(LimitKind.BURST, waits=17.0), 17.0, 17.0),
    "a header longer than a rate limit": (refusal(LimitKind.MINUTE, waits=7200.0), 300.0, 300.0),
    "a header of a quota": (refusal(LimitKind.QUOTA, waits=7200.0), 7200.0, 7200.0),
    "a reset after the end of the period": (refusal(LimitKind.QUOTA,
        "daily quota exceeded, resets at 2026-09-01 00:00 UTC"), 24 * HOUR, at(2026, 9, 1)),
    "a minute": (refusal(LimitKind.MINUTE), 55.0, None),
    "a quota": (refusal(LimitKind.QUOTA), 300.0, None),
    "a quota that names its reset": (refusal(LimitKind.QUOTA, "will reset at 08-14 09:18:00 UTC"),
        at(2026, 8, 14, 9, 18), at(2026, 8, 14, 9, 18)),
    "a quota of a week": (refusal(LimitKind.QUOTA, "week allocated quota exceeded"), HOUR,
        at(2026, 8, 16, 16)),
    "overdue": (refusal(LimitKind.QUOTA, "overdue payments or no credit"), 300.0, None),
    "a model": (refusal(LimitKind.MODEL), 600.0, None),
    "access": (refusal(LimitKind.ACCESS), 60.0, None),
}  # fmt: skip


@pytest.mark.parametrize(("error", "pause", "reset"), SECONDS.values(), ids=SECONDS.keys())
def test_seconds(error, pause, reset):
    """A cooldown ends at the upstream's time, at the next minute, at the reset, or after a backoff."""
    rest = cooldowns.cooldown_for(error, error.limit, 0, WALL)
    assert (rest.until - WALL, rest.reset_at and rest.reset_at - WALL) == (pause, reset)


@given(st.sampled_from(list(BACKOFF)), st.integers(0, 60), st.none() | st.floats(0, 1e7), st.floats(1e9, 2e9))
def test_a_cooldown_is_bounded(limit, failed_probes, waits, wall):
    """The next probe is sent within the hour or at the upstream's time, however many have failed."""
    rest = cooldowns.cooldown_for(refusal(limit, waits=waits), limit, failed_probes, wall)
    assert 0 <= rest.until - wall <= (BACKOFF[limit].max if waits is None else quota_resets.MAX_RESET) + 1e-3


SCOPES = {
    "a minute on pay-as-you-go": (LimitKind.MINUTE, "payg", "m"),
    "a minute on a plan": (LimitKind.MINUTE, "coding", ""),
    "a burst of a login": (LimitKind.BURST, "oauth", ""),
    "a model": (LimitKind.MODEL, "coding", "m"),
    "a model's free quota": (LimitKind.FREE, "payg", "m"),
    "a quota": (LimitKind.QUOTA, "payg", ""),
    "access": (LimitKind.ACCESS, "payg", ""),
    "concurrency": (LimitKind.CONCURRENCY, "payg", ""),
}


@pytest.mark.parametrize(("limit", "plan", "key"), SCOPES.values(), ids=SCOPES.keys())
def test_scope_of_a_limit(limit, plan, key):
    """Rate limits cover a model on pay-as-you-go, and the account on a plan."""
    it = account("a", plan=plan)
    it.record_failure(refusal(limit), 0.0, "m")
    assert list(it.cooldowns) == [key]


OURS = {
    "quota": (UpstreamError("x", code="insufficient_quota"), LimitKind.QUOTA),
    "login needed": (UpstreamError("x", code="upstream_credentials_exhausted"), LimitKind.ACCESS),
    "later": (UpstreamError("x", retry=RetryHint.AFTER), LimitKind.BURST),
    "broken": (UpstreamError("x", retry=RetryHint.SOON), LimitKind.NONE),
}


@pytest.mark.parametrize(("error", "limit"), OURS.values(), ids=OURS.keys())
def test_errors_raised_by_qproxy(error, limit):
    """Errors without an upstream's limit are classified by code."""
    assert cooldowns.classify(error) is limit


def test_a_cooldown_ends_with_one_probe():
    """After a cooldown one request is the probe, and its failure doubles the cooldown."""
    it = account("a", wall_clock=lambda: WALL)
    it.record_failure(refusal(LimitKind.QUOTA), 0.0)
    assert it.cooldown_until("m") == 300.0
    it.before_request("m", 10.0)  # the only account, used during its cooldown: this is no probe
    it.record_failure(refusal(LimitKind.QUOTA), 11.0)
    assert it.cooldowns[""].failed_probes == 0
    until = it.cooldown_until("m")
    it.before_request("m", until)
    assert it.cooldown_until("m") == until + PROBE_SECONDS
    it.record_failure(refusal(LimitKind.QUOTA), until + 1)
    assert (it.cooldowns[""].failed_probes, it.cooldown_until("m")) == (1, until + 1 + 600.0)
    it.before_request("m", until + 601)
    it.record_success("m", until + 601)
    assert it.cooldowns == {}


def test_an_undecided_probe_is_followed_by_another():
    """A probe whose client disconnects does not exclude the account."""
    it = account("a")
    it.record_failure(refusal(LimitKind.QUOTA), 0.0)
    it.before_request("m", 300.0)
    it.before_request("m", 300.0 + PROBE_SECONDS)
    assert it.cooldown_until("m") == 300.0 + 2 * PROBE_SECONDS


def test_an_earlier_request_ends_no_cooldown():
    """A response to a request sent before the cooldown started does not end it."""
    it = account("a")
    it.record_failure(refusal(LimitKind.QUOTA), 5.0)
    it.record_success("m", 4.0)
    assert it.quota == "no"
    it.record_success("m", 6.0)
    assert not it.cooldowns
    assert it.quota is None


def test_a_short_cooldown_does_not_replace_a_long_one():
    """A burst limit does not shorten the cooldown of an exhausted quota."""
    it = account("a", plan="coding")
    it.record_failure(refusal(LimitKind.QUOTA), 0.0)
    it.record_failure(refusal(LimitKind.BURST), 1.0)
    assert it.cooldown_until("m") == pytest.approx(300.0)


def test_a_concurrency_error_lowers_the_concurrency_limit():
    """After a concurrency error fewer requests run concurrently for a minute."""
    it = account("a")
    for _ in range(3):
        it.before_request("m", 0.0)
    it.record_failure(refusal(LimitKind.CONCURRENCY), 0.0, "m")
    it.in_flight -= 1
    assert it.at_capacity(1.0)
    it.in_flight -= 1
    assert not it.at_capacity(1.0)
    it.in_flight = 9
    assert not it.at_capacity(CONCURRENCY_BACKOFF_SECONDS)


def test_a_rate_limit_gets_a_retry_after():
    """A rate limit error without Retry-After gets the time to the next minute."""
    error = refusal(LimitKind.MINUTE)
    account("a", wall_clock=lambda: WALL).record_failure(error, 1.0, "m")
    assert error.retry_after == pytest.approx(55.0)


def test_a_new_token_ends_the_cooldown_of_the_old_one():
    """A refreshed token ends a cooldown about access, but not one about a quota."""
    it = account("a", plan="oauth")
    it.record_failure(refusal(LimitKind.ACCESS), 0.0, "m")
    it.token_refreshed()
    assert not it.cooldowns
    it.record_failure(refusal(LimitKind.QUOTA), 0.0, "m")
    it.token_refreshed()
    assert it.cooldowns


def test_the_number_of_cooldowns_is_bounded():
    """The cooldowns of an account are bounded, however many model names clients send."""
    it = account("a")
    it.record_failure(refusal(LimitKind.QUOTA), 0.0)
    for n in range(3 * MAX_COOLDOWNS):
        it.record_failure(refusal(LimitKind.MODEL), float(n), f"m{n}")
    assert len(it.cooldowns) <= MAX_COOLDOWNS
    assert "" in it.cooldowns
