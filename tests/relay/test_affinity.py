"""Affinity keys of a conversation: its account stays the same across turns."""

import json

import trio

from qproxy.accounts.prompt_homes import MAX_AGE, MAX_PROMPTS, PromptHomes
from qproxy.emulator.faults import json_reply
from qproxy.relay.affinity import affinity_key, prefix_keys, prompt_key
from qproxy.wire.events import Turn
from tests.helpers import HELLO, accounts, world


def turn(*contents, **fields):
    """Return a turn of user messages."""
    return Turn("", 0, "m", [{"role": "user", "content": text} for text in contents], **fields)


def test_affinity_by_the_first_messages():
    """Without a client's id, the key depends on the messages up to the user's first."""
    first = affinity_key(turn("hi"))
    assert first == affinity_key(turn("hi", "more")) == prompt_key(turn("hi"))
    assert first != affinity_key(turn("ho"))
    assert affinity_key(turn()) == ""


def test_affinity_by_the_clients_id():
    """A session, otherwise a prompt_cache_key, decides regardless of the messages; the key does not contain
    it."""
    session = affinity_key(turn("hi", session="s-1"))
    assert session == affinity_key(turn("compacted", session="s-1", params={"prompt_cache_key": "k"}))
    cached = affinity_key(turn("hi", params={"prompt_cache_key": "s-1"}))
    assert cached == session
    assert "s-1" not in session
    assert session != affinity_key(turn("hi", session="s-2"))
    assert prompt_key(turn("hi", session="s-1")) == prompt_key(turn("hi"))
    assert affinity_key(turn("hi", params={"prompt_cache_key": 7})) == prompt_key(turn("hi"))


async def test_a_session_keeps_its_account():
    """Requests of one session reach one account, however the session is named; sessions spread over the
    accounts."""
    async with world(accounts=accounts("one", "two", "three")) as it:

        async def account(path, session, number, **body):
            headers = [(b"x-claude-code-session-id", session.encode())] if "user_id" not in str(body) else []
            messages = [{"role": "user", "content": f"{session} {number}"}]
            await it.post({**HELLO, "max_tokens": 9, **body, "messages": messages}, path, headers)
            return dict(it.emulator.requests[-1].headers)["host"]

        for sent in (
            lambda name: ("/v1/messages", {}),
            lambda name: ("/v1/messages", {"metadata": {"user_id": json.dumps({"session_id": name})}}),
            lambda name: ("/v1/chat/completions", {"prompt_cache_key": name}),
        ):
            found = {}
            for session in "abcdef":
                path, body = sent(session)
                found[session] = {await account(path, session, number, **body) for number in range(3)}
            assert all(len(hosts) == 1 for hosts in found.values())
            assert len(set.union(*found.values())) > 1


def test_prefix_keys_grow_with_the_conversation():
    """A longer conversation has the keys of the shorter one; a named session has one key."""
    short, long = prefix_keys(turn("a", "b")), prefix_keys(turn("a", "b", "c"))
    assert (long[:2], len(long)) == (short, 3)
    assert prefix_keys(turn("a", "x"))[0] == short[0]
    assert prefix_keys(turn("a", "x"))[1] != short[1]
    assert prefix_keys(turn("a", session="s")) == prefix_keys(turn("b", "c", session="s"))


def test_homes_are_bounded_in_number_and_age():
    """The longest known beginning decides; old ones are forgotten, and the oldest of too many."""
    homes = PromptHomes()
    homes.remember([b"a"], "one", 0.0)
    homes.remember([b"a", b"ab"], "two", 1.0)
    assert homes.find([b"a", b"ab", b"abc"], 2.0) == "two"
    assert homes.find([b"a", b"ax"], 2.0) == "one"
    assert homes.find([b"a", b"ab"], 1.0 + MAX_AGE) == ""
    assert homes.find([], 2.0) == ""
    for number in range(MAX_PROMPTS):
        homes.remember([str(number).encode()], "three", 3.0)
    assert homes.find([b"a", b"ab"], 3.0) == ""


async def test_a_conversation_that_moved_stays_where_its_prompt_is(autojump_clock):
    """After a failure a conversation stays with the account that took it over; the move is counted."""
    async with world(accounts=accounts("one", "two"), metrics_access="open") as it:
        messages = [{"role": "user", "content": "hi"}]

        async def account():
            status, _, _ = await it.post({**HELLO, "messages": messages})
            assert status == 200
            messages.extend([{"role": "assistant", "content": "a"}, {"role": "user", "content": "more"}])
            return dict(it.emulator.requests[-1].headers)["host"]

        async def moves():
            async with it.client.request("GET", "/metrics") as response:
                lines = (await response.read()).decode().splitlines()
            found = [line for line in lines if line.startswith("qproxy_prompt_cache_moves_total{")]
            return sum(float(line.rpartition(" ")[2]) for line in found)

        first = await account()
        it.emulator.script(json_reply({"error": {"message": "busy", "code": "Throttling"}}, 429))
        moved = await account()
        assert moved != first
        assert await moves() == 1
        await trio.sleep(600)  # the cooldown is over, and the first account could be used again
        assert await account() == moved
        assert await moves() == 1
