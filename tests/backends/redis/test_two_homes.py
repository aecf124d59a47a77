"""Two servers with homes of their own and one Valkey server, as one client sees them behind a balancer.

Their user on the Valkey server has the rights that docs/scaling.md gives it, and no others.
"""

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import httpx2
import openai
import pytest
import trio

import qproxy
from qproxy import config as configuration
from qproxy.emulator import Emulator
from tests.backends.redis.members import KEY
from tests.backends.redis.server import Server
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.disconnects import until
from tests.helpers import HELLO, MODEL, World, world
from tests.integration.test_background import slow
from tests.integration.test_openai_sdk import QUESTION
from tests.relay.test_tool_loop import ASK, MIXED, THEIRS, add, next_request, saying
from tests.server.test_in_process import SDK

GUIDE = Path(qproxy.__file__).parent.parent / "docs" / "scaling.md"
pytestmark = SDK


class Balancer(httpx2.AsyncBaseTransport):
    """Sends each request to the next server."""

    def __init__(self, homes):
        self._transports = cycle([home.client.transport(httpx2) for home in homes])

    async def handle_async_request(self, request):
        return await next(self._transports).handle_async_request(request)


@dataclass
class Installation:
    """Two servers, what is behind them, and a client in front of both."""

    one: World
    two: World
    emulator: Emulator

    @asynccontextmanager
    async def sdk(self, key="any"):
        """Return OpenAI's SDK, whose requests go to both servers in turn."""
        async with httpx2.AsyncClient(transport=Balancer([self.one, self.two])) as http_client:
            yield openai.AsyncOpenAI(
                http_client=http_client, base_url="http://in-process/v1", api_key=key, max_retries=0
            )


def settings_of(home, server):
    """Return the settings of a server whose files are in its home."""
    names = [name for name in configuration.SETTINGS if name.endswith("_file") or name == "ledger"]
    loaded = configuration.load(environ={"QPROXY_HOME": str(home)})
    seal = home.parent / "seal"
    seal.write_text(KEY)
    return {
        **{name: getattr(loaded, name) for name in names},
        "admin_key": ADMIN_KEY,
        "wrong_keys_per_minute": 2,
        "shared_state": str(server.address).replace("://", "://qproxy:password@"),
        "shared_state_key_file": str(seal),
        "shared_state_timeout": 5.0,
        "shared_state_connect_timeout": 5.0,
    }


def create_user(server):
    """Create the user of the guide."""
    (rights,) = re.findall(r"^user qproxy (on >password .*)$", GUIDE.read_text(), re.MULTILINE)
    for each in server.servers:
        assert each.execute("ACL", "SETUSER", "qproxy", "reset", *rights.split()) == b"OK"


@asynccontextmanager
async def installation(server, tmp_path, monkeypatch, functions=()):
    """Two servers in front of one emulator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    create_user(server)
    emulator = Emulator()
    async with (
        world(emulator=emulator, functions=functions, **settings_of(tmp_path / "one", server)) as one,
        world(emulator=emulator, functions=functions, **settings_of(tmp_path / "two", server)) as two,
    ):
        yield Installation(one, two, emulator)


@pytest.fixture
async def homes(valkey, tmp_path, monkeypatch):
    """Return an installation."""
    async with installation(valkey, tmp_path, monkeypatch) as it:
        yield it


async def seen(holds):
    """Wait until one server has seen what the other one did."""
    with trio.fail_after(20):
        await until(holds)


def roles(it):
    """Return the roles of the messages that the model was last sent."""
    return [message["role"] for message in it.emulator.requests[-1].body["messages"]]


async def test_a_chain_of_responses_goes_from_server_to_server(homes):
    """Each response continues one of the other server, streamed or whole; both can read and delete it."""
    async with homes.sdk() as client:
        previous = None
        for number in range(4):
            options = {"model": MODEL, "input": f"{number}", "previous_response_id": previous}
            if number % 2:
                events = [event async for event in await client.responses.create(**options, stream=True)]
                previous = events[-1].response.id
            else:
                previous = (await client.responses.create(**options)).id
            assert roles(homes) == [*["user", "assistant"] * number, "user"]
        for _ in range(2):
            assert (await client.responses.retrieve(previous)).id == previous
            items = await client.responses.input_items.list(previous, order="asc")
            assert len(items.data) == 7
        await client.responses.delete(previous)
        for _ in range(2):
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(previous)


@pytest.mark.parametrize("group", ["cluster", "sentinel"])
async def test_a_group_of_servers_is_used_as_one(group, request, tmp_path, monkeypatch):
    """Keys, responses and messages go over the servers of a cluster, or the primary that Sentinel names."""
    server = request.getfixturevalue(group)
    async with installation(server, tmp_path, monkeypatch) as it:
        _, secret = await it.one.server.state.authentication.api_keys.create(name="bob", rpm=60)
        await seen(lambda: len(it.two.server.state.authentication.api_keys.list_keys()) == 1)
        async with it.sdk(secret) as client:
            previous = None
            for number in range(4):
                options = {"model": MODEL, "input": f"{number}", "previous_response_id": previous}
                previous = (await client.responses.create(**options)).id
                assert roles(it) == [*["user", "assistant"] * number, "user"]


async def test_chats_need_nothing_shared(homes):
    """Both servers answer a chat, streamed and whole."""
    async with homes.sdk() as client:
        for _ in range(2):
            answer = await client.chat.completions.create(**HELLO)
            assert "Hello there" in answer.choices[0].message.content
        chunks = [chunk async for chunk in await client.chat.completions.create(**HELLO, stream=True)]
        assert len(chunks) > 3


async def test_a_conversation_is_continued_on_both(homes):
    """Items that either server adds are there for the next response."""
    async with homes.sdk() as client:
        conversation = await client.conversations.create(metadata={"topic": "weather"})
        for number in range(3):
            await client.responses.create(model=MODEL, input=f"{number}", conversation=conversation.id)
            assert roles(homes) == [*["user", "assistant"] * number, "user"]
        items = await client.conversations.items.list(conversation.id, order="asc")
        assert len(items.data) == 6
        await client.conversations.delete(conversation.id)


async def test_a_background_response_is_seen_and_cancelled_from_the_other_server(homes):
    """One server generates it; the other one reports its state, its events, and cancels it."""
    homes.emulator.script(slow())
    async with homes.sdk() as client:
        queued = await client.responses.create(model=MODEL, input="Hello", background=True)
        for _ in range(2):
            found = await client.responses.retrieve(queued.id)
            assert found.status in ("queued", "in_progress")
        for _ in range(2):
            cancelled = await client.responses.cancel(queued.id)
            assert cancelled.status == "cancelled"
        assert (await client.responses.retrieve(queued.id)).status == "cancelled"


async def test_hidden_tool_rounds_are_restored_on_the_other_server(valkey, tmp_path, monkeypatch):
    """The model sees the result of a tool that the first server ran, in a turn of the second one."""
    async with installation(valkey, tmp_path, monkeypatch, [add]) as homes, homes.sdk() as client:
        homes.emulator.script(MIXED, saying("All."))
        first = await client.chat.completions.create(**ASK, tools=[THEIRS])
        reply = first.choices[0].message.model_dump(exclude_none=True)
        await client.chat.completions.create(**next_request(reply, "r1", "r2"))
    results = [m["content"] for m in homes.emulator.requests[-1].body["messages"] if m["role"] == "tool"]
    assert results[0] == "5"


async def test_a_key_is_accepted_and_revoked_everywhere(homes):
    """A key that one server created is accepted by both until one revokes it, also for their responses."""
    keys_of = [home.server.state.authentication.api_keys for home in (homes.one, homes.two)]
    key, secret = await keys_of[0].create(name="bob")
    await seen(lambda: len(keys_of[1].list_keys()) == 1)
    async with homes.sdk(secret) as client:
        first = await client.responses.create(model=MODEL, input="Hi")
        await client.responses.create(model=MODEL, input="Hi", previous_response_id=first.id)
        amy, other = await keys_of[0].create(name="amy")
        await seen(lambda: len(keys_of[1].list_keys()) == 2)
        async with homes.sdk(other) as stranger:
            for _ in range(2):
                with pytest.raises(openai.NotFoundError):
                    await stranger.responses.retrieve(first.id)
        await keys_of[1].revoke("bob")
        await seen(lambda: any(each.revoked for each in keys_of[0].list_keys()))
        for _ in range(2):
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert (key.name, amy.name) == ("bob", "amy")


async def test_a_dashboard_session_is_one_for_both(homes):
    """A login on one server counts on the other, until a logout on either."""
    browser = Browser(homes.one.app)
    page = await browser.login()
    assert page.status == 200
    browser.app = homes.two.app
    page = await browser.get("/dashboard/keys")
    assert page.status == 200
    assert (await browser.fill(page, "/dashboard/logout")).status == 303
    browser.app = homes.one.app
    assert (await browser.get("/dashboard/keys")).status == 303


async def test_guesses_of_the_admin_key_are_counted_together(homes):
    """After two wrong keys from an address both servers reject it, but not its owner, whom one has let in."""
    peer = "203.0.113.9"
    assert (await Browser(homes.one.app, peer=peer).login()).status == 200
    for home in (homes.one, homes.two):
        assert (await Browser(home.app, peer=peer).login("wrong")).status != 429
    for home in (homes.one, homes.two):
        assert (await Browser(home.app, peer=peer).login("wrong")).status == 429
        assert (await Browser(home.app, peer=peer).login()).status == 200


async def test_a_killed_server_costs_responses_their_storage_and_nothing_else(tmp_path, monkeypatch):
    """While it is away chats and responses succeed, and a stored response cannot be read; then it can."""
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    try:
        async with installation(server, tmp_path, monkeypatch) as it, it.sdk() as client:
            first = await client.responses.create(model=MODEL, input="Hi")
            server.kill()
            await seen(lambda: not it.one.server.state.shared_state.statistics().is_connected)
            assert (await client.chat.completions.create(**HELLO)).choices
            lost = await client.responses.create(model=MODEL, input="Hi")
            for _ in range(2):
                with pytest.raises(openai.InternalServerError, match="shared_state"):
                    await client.responses.retrieve(first.id)
            server.start()
            create_user(server)
            for home in (it.one, it.two):
                await seen(lambda home=home: home.server.state.shared_state.statistics().is_connected)
            for _ in range(2):
                assert (await client.responses.retrieve(first.id)).id == first.id
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(lost.id)
    finally:
        server.close()
