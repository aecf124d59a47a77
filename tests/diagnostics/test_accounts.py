"""An account under examination: what its server does wrong is found, and what to do about it is said."""

import ssl
import time
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme

from qproxy.bootstrap.models import package_catalog
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, resolve_account
from qproxy.diagnostics import Finding, exit_code, network
from qproxy.diagnostics.accounts import AccountCheck, account_check
from qproxy.emulator import Emulator
from qproxy.emulator.faults import DONE, ScriptedReply, chunk
from qproxy.transport import UpstreamTransport
from tests.auth.helpers import signed
from tests.defaults import transport_limits
from tests.helpers import world

BASE = "http://127.0.0.1:1/v1"
OPEN = AccountConfig("mine", "openai_compatible", base_url=BASE)
KEYED = AccountConfig("mine", base_url=BASE, key="sk-mine")


async def examined(emulator=None, entry=KEYED, **settings):
    """What an examination of one account finds."""
    async with world(emulator=emulator, accounts=(entry,), **settings) as it:
        relay = it.server.state.relay
        found: list[Finding] = []
        await account_check(
            resolve_account(entry), relay.accounts.accounts[0], relay, Config(**settings)
        ).online(found)
        assert it.sound()
    return found


def states(found):
    return {finding.name: finding.state for finding in found}


async def test_an_account_that_is_well():
    """Key, way, models, chat, tools and embeddings are looked at, for a few tokens."""
    found = await examined()
    assert states(found) == {
        "key": "ok", "connection": "ok", "clock": "skipped", "models": "ok", "chat, whole": "ok", "chat, streamed": "ok",
        "tool call, whole": "ok", "tool call, streamed": "ok", "embeddings": "ok",
    }  # fmt: skip
    assert 0 < sum(finding.tokens for finding in found) < 500
    assert "sk-mine" not in str(found)


WRONG = {
    "key": ("fault-401", "region and plan"),
    "quota": ("fault-quota", "wait until the quota is reset"),
    "minute": ("fault-429", "wait a minute"),
    "nothing": ("fault-empty", ""),
    "no end": ("fault-end", ""),
    "page": ("fault-html", ""),
}


@pytest.mark.parametrize(("model", "advice"), WRONG.values(), ids=WRONG.keys())
async def test_chat_that_fails(model, advice, autojump_clock):
    """The error is told in the server's words, with what to do; tools are not asked for after it."""
    found = await examined(default_model=model)
    (chat,) = [finding for finding in found if finding.name == "chat, whole"]
    assert chat.failed
    assert chat.message.startswith(f"{model}: ")
    assert advice in chat.advice
    assert "tool call, whole" not in states(found)
    assert exit_code(found) == 1


async def test_a_key_that_is_refused():
    """The list of models says it first."""
    found = await examined(Emulator(keys={"sk-other"}))
    assert states(found)["models"] == "failed"
    assert "region and plan" in next(finding for finding in found if finding.failed).advice


async def test_calls_that_needed_mending_and_calls_that_do_not_come():
    """What qproxy mends is named, and a server without a tool parser is found out."""
    emulator = Emulator()
    first = chunk({"role": "assistant", "content": ""})
    entry = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "x"}'}}
    mended = ScriptedReply((first, chunk({"tool_calls": [entry]}), chunk({}, "stop"), DONE))
    words = ScriptedReply((first, chunk({"content": "Sunny."}), chunk({}, "stop"), DONE))
    emulator.script(words, words, mended, words)
    found = {finding.name: finding for finding in await examined(emulator, OPEN)}
    assert "(mended: " in found["tool call, whole"].message
    assert found["tool call, streamed"].state == "warning"
    assert "--tool-call-parser" in found["tool call, streamed"].advice


MODELS = {
    "the default": (KEYED, {"default_model": "qwen-max"}, "qwen-max"),
    "an alias": (KEYED, {"default_model": "gpt", "aliases": {"gpt": "qwen-plus"}}, "qwen-plus"),
    "its own": (AccountConfig("mine", "openai_compatible", base_url=BASE, models=["qwen3-max"]), {}, "qwen3-max"),
    "the cheapest": (KEYED, {}, "qwen-flash"),
    "of a pattern": (AccountConfig("mine", "openai_compatible", base_url=BASE, models=["*-max"]), {}, "qwen4-max"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "settings", "model"), MODELS.values(), ids=MODELS.keys())
async def test_which_model_is_asked(entry, settings, model):
    """The operator's default, else the cheapest by its name among those that are offered."""
    found = {finding.name: finding for finding in await examined(entry=entry, **settings)}
    assert found["chat, whole"].message.startswith(f"{model} ")


async def test_nothing_to_ask():
    """An account that offers no model that is listed is not asked."""
    found = await examined(
        entry=AccountConfig("mine", "openai_compatible", base_url=BASE, models=["llama-*"])
    )
    assert states(found)["chat"] == "skipped"
    assert package_catalog().find("llama-3") is None


async def test_a_login(tmp_path, autojump_clock):
    """A signed-in account says until when; one that nobody is signed in to says how to."""
    async with signed(tmp_path) as it, world() as server:
        entry = resolve_account(AccountConfig("me", kind="oauth"))
        one = account_check(
            entry, server.server.state.relay.accounts.accounts[0], server.server.state.relay, Config()
        )
        one.wall_clock, one.account.source = it.wall, it.source(keep=False)
        (nobody,) = [finding for finding in await one.offline() if finding.name == "signed in"]
        assert (nobody.state, nobody.advice) == ("failed", "qproxy login --account me")
        online: list[Finding] = []
        await one.online(online)
        assert (online[-1].state, online[-1].advice) == ("failed", "qproxy login --account me")
        assert (await it.sign_in()).state == "signed_in"
        (somebody,) = [finding for finding in await one.offline() if finding.name == "signed in"]
        assert (somebody.state, "is good until" in somebody.message) == ("ok", True)
        access = it.on_disk().access_token
        assert access not in str([*online, somebody, one])
        assert isinstance(one, AccountCheck)


CLOCKS = {
    "right": ("Thu, 01 Jan 1970 00:16:40 GMT", "ok"),
    "ahead": ("Thu, 01 Jan 1970 00:10:00 GMT", "warning"),
    "behind": ("Thu, 01 Jan 1970 01:10:00 GMT", "warning"),
    "unsaid": ("", "skipped"),
    "nonsense": ("soon", "skipped"),
}


@pytest.mark.parametrize(("date", "state"), CLOCKS.values(), ids=CLOCKS.keys())
def test_clocks(date, state):
    """Ours is compared with the server's Date field."""
    assert network.check_clock(date, "x", 1000.0).state == state


@asynccontextmanager
async def over_tls(authority, trusted=True):
    """A transport whose connections are met by TLS, with a certificate for 127.0.0.1."""
    ours, theirs = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    if trusted:
        authority.configure_trust(ours)
    async with trio.open_nursery() as nursery:

        async def meet(stream):
            tls = trio.SSLStream(stream, theirs, server_side=True)
            try:
                await tls.do_handshake()
                await tls.receive_some(1)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

        async def connect(host, port):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(meet, theirs)
            return ours

        yield UpstreamTransport(transport_limits(), ssl_context=ours, connect=connect)
        nursery.cancel_scope.cancel()


async def test_certificates():
    """A good one is told with its end, one that ends soon is a warning, one of a stranger a failure with advice."""
    authority, now = trustme.CA(), time.time()
    async with over_tls(authority) as transport:
        found = await network.check_route("https://127.0.0.1:1/v1", transport, "x", now)
        assert states(found) == {"connection": "ok", "TLS": "ok"}
    peer = {"notAfter": "Jan  8 00:00:00 1970 GMT"}
    assert network.check_certificate(peer, "TLSv1.3", "x", 0.0).state == "warning"
    async with over_tls(authority, trusted=False) as transport:
        (refused,) = await network.check_route("https://127.0.0.1:1/v1", transport, "x", now)
        assert (refused.state, "ca_bundle" in refused.advice) == ("failed", True)


class Resolver(trio.abc.HostnameResolver):
    """Knows the names that end in .test."""

    async def getaddrinfo(self, host, port, *rest):
        if not host.endswith(b".test"):
            raise trio.socket.gaierror(-2, "Name or service not known")
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    async def getnameinfo(self, *arguments):
        raise NotImplementedError


NOWHERE = {
    "no url": ("ftp://x", "address"),
    "no such name": ("http://nowhere.invalid/v1", "DNS"),
    "nobody there": ("http://127.0.0.1:1/v1", "connection"),
}


@pytest.mark.parametrize(("url", "name"), NOWHERE.values(), ids=NOWHERE.keys())
async def test_a_way_that_ends(url, name):
    """An address that is none, a name that nobody knows, a port that nobody serves: each with what to look at."""

    trio.socket.set_custom_hostname_resolver(Resolver())

    async def connect(host, port):
        raise OSError("Connection refused")

    found = await network.check_route(url, UpstreamTransport(transport_limits(), connect=connect), "x", 0.0)
    assert (found[-1].name, found[-1].failed, bool(found[-1].advice)) == (name, True, True)


async def test_a_token_that_has_just_been_refused(tmp_path, autojump_clock):
    """It is renewed, as the server would, before anything is called a failure."""
    async with signed(tmp_path) as it, world(emulator=it.emulator) as server:
        await it.sign_in()
        entry = resolve_account(AccountConfig("me", kind="oauth"))
        relay = server.server.state.relay
        one = account_check(entry, relay.accounts.accounts[0], relay, Config())
        one.wall_clock, one.account.source = it.wall, it.source(keep=False)
        before = it.on_disk().access_token
        it.emulator.identity.expire()
        trio.socket.set_custom_hostname_resolver(Resolver())
        found: list[Finding] = []
        await one.online(found)
        assert [(f.name, f.message) for f in found if f.failed] == []
        assert it.on_disk().access_token != before
