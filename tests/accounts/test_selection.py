"""Which account is asked: a function of the accounts as they are, of the wish and of the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.accounts import Account, Nothing, Wait, another, choose
from qproxy.accounts.rate_limit import Pace
from qproxy.limits.circuit_breaker import THRESHOLD
from qproxy.relay.retry import Action, decide
from qproxy.wire.errors import Limit, QproxyError, Retry, UpstreamError
from tests.accounts.factories import account, refusal


def test_only_accounts_that_offer_the_model():
    """Patterns decide who may serve a model; none is a 404."""
    a, b = account("a", models=("qwen-*",)), account("b", models=("other",))
    assert choose([a, b], "qwen-plus", now=0) is a
    nothing = choose([a, b], "x", now=0)
    assert isinstance(nothing, Nothing)
    assert nothing.error.status == 404


def test_a_conversation_keeps_its_account():
    """The same affinity meets the same account; many conversations are spread by weight."""
    accounts = [account("a"), account("b", weight=3.0)]
    chosen = [choose(accounts, "m", now=0, affinity=str(n)) for n in range(1000)]
    assert chosen == [choose(accounts, "m", now=0, affinity=str(n)) for n in range(1000)]
    assert 680 < chosen.count(accounts[1]) < 820


def test_a_busy_account_is_relieved():
    """One that is far busier than the rest is passed over."""
    a, b = account("a"), account("b")
    first = choose([a, b], "m", now=0, affinity="x")
    assert isinstance(first, Account)
    first.in_flight = 50
    assert choose([a, b], "m", now=0, affinity="x") is not first


def test_full_resting_and_tried_accounts():
    """Full ones are waited for, resting ones avoided while another is awake, tried ones never asked again."""
    a, b = account("a", max_in_flight=1), account("b")
    a.in_flight = 1
    assert isinstance(choose([a], "m", now=0), Wait)
    assert a.state(0) == "full"
    b.failed(UpstreamError("x", code="insufficient_quota"), 0)
    assert b.state(1) == "resting"
    assert choose([b], "m", now=1) is b
    assert not another([b], "m", now=1, without=[])
    assert another([b], "m", now=1000, without=[])
    assert isinstance(choose([b], "m", now=1000, without=[b]), Nothing)
    b.succeeded()
    assert b.state(1) == "ready"


def test_a_resting_account_is_asked_before_we_say_that_all_are_down():
    """One server is down and the other asked for a pause: the other one's own word is worth more than a 503 of ours."""
    a, b = account("a"), account("b")
    for _ in range(THRESHOLD):
        a.failed(UpstreamError("x", retry=Retry.QUICKLY), 0)
    b.failed(refusal(Limit.MINUTE), 0)
    assert (a.state(0.5), b.resting_until("") > 0.5) == ("down", True)
    assert choose([a, b], "m", now=0.5) is b


def test_a_refused_model_is_the_models_matter():
    """An account that lacks one model keeps serving the others, and is passed over for that one."""
    a, b = account("a"), account("b")
    a.failed(refusal(Limit.MODEL), 0, "m")
    assert all(choose([a, b], "m", now=1, affinity=str(n)) is b for n in range(20))
    assert {choose([a, b], "n", now=1, affinity=str(n)) for n in range(20)} == {a, b}
    assert choose([a], "m", now=1) is a


def test_requests_of_no_conversation_go_where_least_is_under_way():
    """Embeddings and the like have no prompt cache to meet again, so they are shared out by weight."""
    a, b = account("a"), account("b", weight=3.0)
    for _ in range(40):
        chosen = choose([a, b], "m", now=0)
        assert isinstance(chosen, Account)
        chosen.requests += 1
    assert (a.requests, b.requests) == (10, 30)


STATES = st.sampled_from(["ready", "resting", "refusing", "full", "paced", "down"])


def in_state(name, state, weight=1.0) -> Account:
    """An account as it may be at time 1."""
    it = account(name, weight=weight, max_in_flight=1, pace=Pace(rpm=1))
    if state == "resting":
        it.failed(refusal(Limit.QUOTA), 0.0)
    elif state == "refusing":
        it.failed(refusal(Limit.MODEL), 0.0, "m")
    elif state == "full":
        it.in_flight = 1
    elif state == "paced":
        it.pace.take(0, 1.0)
    elif state == "down":
        for _ in range(THRESHOLD):
            it.failed(UpstreamError("x", retry=Retry.QUICKLY), 0.5)
    return it


@given(st.lists(STATES, min_size=1, max_size=6), st.text(max_size=3), st.data())
def test_choosing_holds_its_promises(states, affinity, data):
    """Whatever the accounts' states: nothing changes, a ready one is chosen if there is one, and a lone one is asked."""
    accounts = [in_state(str(n), state) for n, state in enumerate(states)]
    without = [a for a in accounts if data.draw(st.booleans())]
    left = {a: state for a, state in zip(accounts, states, strict=True) if a not in without}
    before = repr(accounts)
    choice = choose(accounts, "m", now=1.0, affinity=affinity, without=without)
    assert repr(accounts) == before
    found = set(left.values())
    if isinstance(choice, Account):
        assert choice not in without
        assert left[choice] == "ready" if "ready" in found else left[choice] in ("resting", "refusing")
    elif isinstance(choice, Wait):
        assert found & {"full", "paced"}
        assert "ready" not in found
        assert choice.full == ("full" in found)
        assert (choice.paced is not None) == ("paced" in found)
    else:
        assert found <= {"down"}
    assert isinstance(choice, Account) or not found & {"ready"}


NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=6, unique=True)


@given(NAMES, st.data())
def test_conversations_stay_when_accounts_come_and_go(names, data):
    """An account that goes moves its own conversations and no other; one that comes takes some and moves no other."""
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(names), max_size=len(names)))
    accounts = [account(name, weight=weight) for name, weight in zip(names, weights, strict=True)]
    gone = data.draw(st.sampled_from(accounts))
    for n in range(30):
        before = choose(accounts, "m", now=0, affinity=f"c{n}")
        after = choose([a for a in accounts if a is not gone], "m", now=0, affinity=f"c{n}")
        assert before is gone or after is before


def test_accounts_known_to_list_the_model_come_first():
    """A server that lists the model is preferred to one that does not."""
    a, b = account("a", known_models=frozenset()), account("b", known_models=frozenset({"m"}))
    assert all(choose([a, b], "m", now=0, affinity=str(n)) is b for n in range(20))


DECISIONS = {
    "never": (Retry.NEVER, 1, True, False, Action.GIVE_UP),
    "quickly, alone": (Retry.QUICKLY, 1, False, False, Action.AGAIN),
    "quickly, with others": (Retry.QUICKLY, 1, True, False, Action.ELSEWHERE),
    "too often": (Retry.QUICKLY, 3, True, False, Action.GIVE_UP),
    "elsewhere": (Retry.ELSEWHERE, 1, True, False, Action.ELSEWHERE),
    "elsewhere, alone": (Retry.ELSEWHERE, 1, False, False, Action.GIVE_UP),
    "later": (Retry.LATER, 1, True, False, Action.ELSEWHERE),
    "later, alone": (Retry.LATER, 1, False, False, Action.GIVE_UP),
    "refresh": (Retry.REFRESH, 1, True, False, Action.REFRESH),
    "refreshed already": (Retry.REFRESH, 2, False, True, Action.GIVE_UP),
    "refreshed already, others": (Retry.REFRESH, 2, True, True, Action.ELSEWHERE),
}


@pytest.mark.parametrize(
    ("retry", "tries", "others", "refreshed", "action"), DECISIONS.values(), ids=DECISIONS.keys()
)
def test_decisions(retry, tries, others, refreshed, action):
    """What to do after an error is a function of the error and of what was tried."""
    error = QproxyError("x", retry=retry)
    assert decide(error, tries=tries, others=others, refreshed=refreshed) is action
