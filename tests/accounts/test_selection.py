"""Account selection: a function of the accounts' state, the request and the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.accounts import Account, CapacityWait, Unavailable, has_alternative, select_account
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.limits.circuit_breaker import THRESHOLD
from qproxy.relay.retry import Action, next_action
from qproxy.wire.errors import LimitKind, QproxyError, RetryHint, UpstreamError
from tests.accounts.factories import account, refusal


def test_only_accounts_that_offer_the_model():
    """Patterns decide which accounts may serve a model; no account is a 404."""
    a, b = account("a", models=("qwen-*",)), account("b", models=("other",))
    assert select_account([a, b], "qwen-plus", now=0) is a
    nothing = select_account([a, b], "x", now=0)
    assert isinstance(nothing, Unavailable)
    assert nothing.error.status == 404


def test_a_conversation_keeps_its_account():
    """The same affinity selects the same account; many conversations are distributed by weight."""
    accounts = [account("a"), account("b", weight=3.0)]
    chosen = [select_account(accounts, "m", now=0, affinity=str(n)) for n in range(1000)]
    assert chosen == [select_account(accounts, "m", now=0, affinity=str(n)) for n in range(1000)]
    assert 680 < chosen.count(accounts[1]) < 820


def test_a_busy_account_is_skipped():
    """An account that is much busier than the others is skipped."""
    a, b = account("a"), account("b")
    first = select_account([a, b], "m", now=0, affinity="x")
    assert isinstance(first, Account)
    first.in_flight = 50
    assert select_account([a, b], "m", now=0, affinity="x") is not first


def test_full_cooling_and_tried_accounts():
    """Full accounts are awaited, cooling ones avoided while another is available, tried ones never reused."""
    a, b = account("a", max_in_flight=1), account("b")
    a.in_flight = 1
    assert isinstance(select_account([a], "m", now=0), CapacityWait)
    a.record_success()
    assert a.condition(0).state == "at_capacity"
    b.record_failure(UpstreamError("x", code="insufficient_quota"), 0)
    assert b.condition(1).state == "cooling_down"
    assert select_account([b], "m", now=1) is b
    assert not has_alternative([b], "m", now=1, without=[])
    assert has_alternative([b], "m", now=1000, without=[])
    assert isinstance(select_account([b], "m", now=1000, without=[b]), Unavailable)
    b.record_success()
    assert b.condition(1).state == "ready"


def test_a_cooling_account_is_preferred_to_an_outage_error():
    """With one upstream down and the other cooling down, the cooling one is used."""
    a, b = account("a"), account("b")
    for _ in range(THRESHOLD):
        a.record_failure(UpstreamError("x", retry=RetryHint.SOON), 0)
    b.record_failure(refusal(LimitKind.MINUTE), 0)
    assert (a.condition(0.5).state, b.cooldown_until("") > 0.5) == ("failing", True)
    assert select_account([a, b], "m", now=0.5) is b


def test_a_cooldown_of_a_model_leaves_other_models():
    """An account without one model keeps serving the others, and is skipped for that one."""
    a, b = account("a"), account("b")
    a.record_failure(refusal(LimitKind.MODEL), 0, "m")
    assert all(select_account([a, b], "m", now=1, affinity=str(n)) is b for n in range(20))
    assert {select_account([a, b], "n", now=1, affinity=str(n)) for n in range(20)} == {a, b}
    assert select_account([a], "m", now=1) is a


def test_requests_without_affinity_use_the_least_loaded_account():
    """Requests without a conversation, such as embeddings, are distributed by weight."""
    a, b = account("a"), account("b", weight=3.0)
    for _ in range(40):
        chosen = select_account([a, b], "m", now=0)
        assert isinstance(chosen, Account)
        chosen.requests += 1
    assert (a.requests, b.requests) == (10, 30)


STATES = st.sampled_from(["ready", "cooling_down", "refusing", "at_capacity", "rate_limited", "unavailable"])


def in_state(name, state, weight=1.0) -> Account:
    """Return an account in a state at time 1."""
    it = account(name, weight=weight, max_in_flight=1, rate_limiter=AccountRateLimiter(rpm=1))
    if state == "cooling_down":
        it.record_failure(refusal(LimitKind.QUOTA), 0.0)
    elif state == "refusing":
        it.record_failure(refusal(LimitKind.MODEL), 0.0, "m")
    elif state == "at_capacity":
        it.in_flight = 1
    elif state == "rate_limited":
        it.rate_limiter.acquire(0, 1.0)
    elif state == "unavailable":
        for _ in range(THRESHOLD):
            it.record_failure(UpstreamError("x", retry=RetryHint.SOON), 0.5)
    return it


@given(st.lists(STATES, min_size=1, max_size=6), st.text(max_size=3), st.data())
def test_selection_invariants(states, affinity, data):
    """For any states: selection is pure, prefers a ready account, and uses a single account anyway."""
    accounts = [in_state(str(n), state) for n, state in enumerate(states)]
    without = [a for a in accounts if data.draw(st.booleans())]
    left = {a: state for a, state in zip(accounts, states, strict=True) if a not in without}
    before = repr(accounts)
    choice = select_account(accounts, "m", now=1.0, affinity=affinity, without=without)
    assert repr(accounts) == before
    found = set(left.values())
    if isinstance(choice, Account):
        assert choice not in without
        assert left[choice] == "ready" if "ready" in found else left[choice] in ("cooling_down", "refusing")
    elif isinstance(choice, CapacityWait):
        assert found & {"at_capacity", "rate_limited"}
        assert "ready" not in found
        assert choice.at_capacity == ("at_capacity" in found)
        assert (choice.rate_limited is not None) == ("rate_limited" in found)
    else:
        assert found <= {"unavailable"}
    assert isinstance(choice, Account) or not found & {"ready"}


NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=6, unique=True)


@given(NAMES, st.data())
def test_conversations_stay_when_accounts_change(names, data):
    """Removing an account moves only its conversations; adding one only moves some to it."""
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(names), max_size=len(names)))
    accounts = [account(name, weight=weight) for name, weight in zip(names, weights, strict=True)]
    gone = data.draw(st.sampled_from(accounts))
    for n in range(30):
        before = select_account(accounts, "m", now=0, affinity=f"c{n}")
        after = select_account([a for a in accounts if a is not gone], "m", now=0, affinity=f"c{n}")
        assert before is gone or after is before


def test_accounts_known_to_list_the_model_come_first():
    """An account that lists the model is preferred."""
    a, b = account("a", known_models=frozenset()), account("b", known_models=frozenset({"m"}))
    assert all(select_account([a, b], "m", now=0, affinity=str(n)) is b for n in range(20))


DECISIONS = {
    "never": (RetryHint.NEVER, 1, True, False, Action.GIVE_UP),
    "quickly, alone": (RetryHint.SOON, 1, False, False, Action.SAME_ACCOUNT),
    "quickly, with others": (RetryHint.SOON, 1, True, False, Action.OTHER_ACCOUNT),
    "too often": (RetryHint.SOON, 3, True, False, Action.GIVE_UP),
    "elsewhere": (RetryHint.OTHER_ACCOUNT, 1, True, False, Action.OTHER_ACCOUNT),
    "elsewhere, alone": (RetryHint.OTHER_ACCOUNT, 1, False, False, Action.GIVE_UP),
    "later": (RetryHint.AFTER, 1, True, False, Action.OTHER_ACCOUNT),
    "later, alone": (RetryHint.AFTER, 1, False, False, Action.GIVE_UP),
    "refresh": (RetryHint.REFRESH_TOKEN, 1, True, False, Action.REFRESH_TOKEN),
    "refreshed already": (RetryHint.REFRESH_TOKEN, 2, False, True, Action.GIVE_UP),
    "refreshed already, others": (RetryHint.REFRESH_TOKEN, 2, True, True, Action.OTHER_ACCOUNT),
}


@pytest.mark.parametrize(
    ("retry", "tries", "others", "refreshed", "action"), DECISIONS.values(), ids=DECISIONS.keys()
)
def test_decisions(retry, tries, others, refreshed, action):
    """The decision after an error is a function of the error and of what was tried."""
    error = QproxyError("x", retry=retry)
    assert next_action(error, attempts=tries, others=others, refreshed=refreshed) is action
