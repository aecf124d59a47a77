"""Affinity keys of a conversation: its account stays the same across turns."""

import json

from qproxy.relay.affinity import affinity_key, prompt_key
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
