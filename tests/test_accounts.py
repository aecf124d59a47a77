"""Accounts: choosing is pure, leasing waits, and errors are remembered."""

import pytest
import trio

from qproxy.accounts import Account, Accounts, Nothing, Wait, another, choose
from qproxy.auth import StaticKey
from qproxy.trying import Action, decide
from qproxy.wire.errors import Overloaded, QproxyError, Retry, UpstreamError


def account(name, **fields) -> Account:
    return Account(name, StaticKey("http://x"), **fields)


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


def test_accounts_known_to_list_the_model_come_first():
    """A server that lists the model is preferred to one that does not."""
    a, b = account("a", known_models=frozenset()), account("b", known_models=frozenset({"m"}))
    assert all(choose([a, b], "m", now=0, affinity=str(n)) is b for n in range(20))


async def test_leases_wait_and_give_up(autojump_clock):
    """A lease waits for a free account, for queue_timeout at most, and is given back after a cancellation."""
    accounts = Accounts([account("a", max_in_flight=1)], queue_timeout=2.0)

    async def hold(seconds):
        async with accounts.lease("m"):
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, 1)
        await trio.testing.wait_all_tasks_blocked()
        async with accounts.lease("m") as leased:
            assert trio.current_time() >= 1
            assert leased.in_flight == 1
            with pytest.raises(Overloaded):
                async with accounts.lease("m"):
                    raise AssertionError("not reached")
        nursery.start_soon(hold, 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert accounts.accounts[0].in_flight == 0
    assert "sk" not in repr(accounts)


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
