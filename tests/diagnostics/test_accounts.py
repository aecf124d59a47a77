"""Checks of an account: faults of its upstream become findings with advice."""

import ssl
import time
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme

from qproxy.accounts.shared_state import AccountState
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
from tests.helpers import WebServer, world

BASE = "http://127.0.0.1:1/v1"
OPEN = AccountConfig("mine", "openai_compatible", base_url=BASE)
KEYED = AccountConfig("mine", base_url=BASE, key="sk-mine")


async def check_account(emulator=None, entry=KEYED, **settings):
    """Return the findings of the checks of one account."""
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


async def test_a_working_account():
    """Key, route, models, chat, tools and embeddings are checked, for a few tokens."""
    found = await check_account()
    assert states(found) == {
        "key": "ok", "connection": "ok", "clock": "skipped", "models": "ok", "chat, non-streamed": "ok",
        "chat, streamed": "ok",
        "tool call, non-streamed": "ok", "tool call, streamed": "ok", "embeddings": "ok",
    }  # fmt: skip
    assert 0 < sum(finding.tokens for finding in found) < 500
    assert "sk-mine" not in str(found)


WRONG = {
    "key": ("fault-401", "region and plan"),
    "quota": ("fault-quota", "wait until it resets"),
    "minute": ("fault-429", "wait a minute"),
    "nothing": ("fault-empty", ""),
    "no end": ("fault-end", ""),
    "page": ("fault-html", ""),
}


@pytest.mark.parametrize(("model", "advice"), WRONG.values(), ids=WRONG.keys())
async def test_a_failing_chat(model, advice, autojump_clock):
    """The finding has the upstream's message and advice; tool calls are not tested afterwards."""
    found = await check_account(default_model=model)
    (chat,) = [finding for finding in found if finding.name == "chat, non-streamed"]
    assert chat.failed
    assert chat.message.startswith(f"{model}: ")
    assert advice in chat.advice
    assert "tool call, non-streamed" not in states(found)
    assert exit_code(found) == 1


async def test_a_rejected_key():
    """A rejected key fails the check of the model list."""
    found = await check_account(Emulator(keys={"sk-other"}))
    assert states(found)["models"] == "failed"
    assert "region and plan" in next(finding for finding in found if finding.failed).advice


async def test_a_rejected_key_is_the_only_failure():
    """Consequences of a rejected key are neither tested nor reported with advice of their own."""
    found = await check_account(Emulator(keys={"sk-other"}))
    assert [finding.name for finding in found if finding.advice] == ["models"]
    assert found[-1].name == "models"


async def test_a_failed_chat_is_the_only_failure(autojump_clock):
    """Embeddings are not tested after a failed chat, whose cause they share."""
    found = await check_account(default_model="fault-quota")
    assert [finding.name for finding in found if finding.failed] == ["chat, non-streamed"]
    assert states(found)["embeddings"] == "skipped"


async def test_no_model_list_and_no_model():
    """An account of which nothing could be tested has failed; the advice is that of the missing list."""
    entry = AccountConfig("mine", "openai_compatible", base_url="http://127.0.0.1:1/nowhere")
    found = await check_account(Emulator(), entry)
    assert (states(found)["models"], states(found)["chat"]) == ("warning", "failed")
    assert [finding.name for finding in found if finding.advice] == ["models"]


async def test_a_web_page_instead_of_an_api():
    """An account with the base URL of web pages fails; nothing else is tested."""
    entry = AccountConfig("mine", "openai_compatible", base_url="http://127.0.0.1:1/console")
    found = await check_account(WebServer(), entry)
    assert (found[-1].name, found[-1].state, found[-1].message) == (
        "models",
        "failed",
        "a web page (status 404)",
    )
    assert "check the base URL" in found[-1].advice


async def test_a_base_url_without_its_version():
    """A base URL that lacks /v1 is named, and nothing else is tested."""
    entry = AccountConfig("mine", "openai_compatible", base_url="http://127.0.0.1:1/compatible-mode")
    found = await check_account(Emulator(), entry)
    assert (found[-1].name, found[-1].state) == ("models", "failed")
    assert found[-1].advice == "set base_url to http://127.0.0.1:1/compatible-mode/v1"


async def test_repaired_and_missing_tool_calls():
    """Repairs are named, and a server without a tool parser gets advice."""
    emulator = Emulator()
    first = chunk({"role": "assistant", "content": ""})
    entry = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "x"}'}}
    repaired = ScriptedReply((first, chunk({"tool_calls": [entry]}), chunk({}, "stop"), DONE))
    text = ScriptedReply((first, chunk({"content": "Sunny."}), chunk({}, "stop"), DONE))
    emulator.script(text, text, repaired, text)
    found = {finding.name: finding for finding in await check_account(emulator, OPEN)}
    assert "(repaired: " in found["tool call, non-streamed"].message
    assert found["tool call, streamed"].state == "warning"
    assert "--tool-call-parser" in found["tool call, streamed"].advice


MODELS = {
    "the default": (KEYED, {"default_model": "qwen-max"}, "qwen-max"),
    "an alias": (KEYED, {"default_model": "gpt", "aliases": {"gpt": "qwen-plus"}}, "qwen-plus"),
    "its own": (AccountConfig("mine", "openai_compatible", base_url=BASE, models=["qwen3-max"]), {},
        "qwen3-max"),
    "the cheapest": (KEYED, {}, "qwen-flash"),
    "of a pattern": (AccountConfig("mine", "openai_compatible", base_url=BASE, models=["*-max"]), {},
        "qwen4-max"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "settings", "model"), MODELS.values(), ids=MODELS.keys())
async def test_chooses_a_model(entry, settings, model):
    """The checks use default_model, otherwise the cheapest model of the account by its name."""
    found = {finding.name: finding for finding in await check_account(entry=entry, **settings)}
    assert found["chat, non-streamed"].message.startswith(f"{model} ")


async def test_skips_an_account_without_models():
    """An account that has none of the listed models gets no test requests."""
    found = await check_account(
        entry=AccountConfig("mine", "openai_compatible", base_url=BASE, models=["llama-*"])
    )
    assert states(found)["chat"] == "skipped"
    assert package_catalog().find("llama-3") is None


async def test_the_state_is_that_of_other_commands():
    """A check begins with the state that `qproxy accounts` shows, if a server has used the account."""
    entry = resolve_account(KEYED)
    failing = AccountState("mine", last_error="502 upstream_error", last_fault_at=1.0, results="-")
    async with world(accounts=(KEYED,)) as it:
        relay = it.server.state.relay
        for stored, state, message in (
            (failing, "warning", "failing: 1 of the last 1 request failed: 502 upstream_error"),
            (AccountState("mine"), "skipped", "unknown: no request has succeeded yet"),
            (AccountState("mine", last_success_at=1.0), "ok", "ready"),
        ):
            check = account_check(entry, relay.accounts.accounts[0], relay, Config(), stored)
            (found,) = [finding for finding in await check.offline() if finding.name == "state"]
            assert (found.state, found.message) == (state, message)


async def test_a_login(tmp_path, autojump_clock):
    """The finding of a login has its expiry; that of a missing one the command to log in."""
    async with signed(tmp_path) as it, world() as server:
        entry = resolve_account(AccountConfig("me", kind="oauth"))
        check = account_check(
            entry, server.server.state.relay.accounts.accounts[0], server.server.state.relay, Config()
        )
        check.wall_clock, check.account.source = it.wall, it.source(keep=False)
        (missing,) = [finding for finding in await check.offline() if finding.name == "login"]
        assert (missing.state, missing.advice) == ("failed", "qproxy login --account me")
        online: list[Finding] = []
        await check.online(online)
        assert (online[-1].state, online[-1].advice) == ("failed", "qproxy login --account me")
        assert (await it.sign_in()).state == "signed_in"
        (present,) = [finding for finding in await check.offline() if finding.name == "login"]
        assert (present.state, "is valid until" in present.message) == ("ok", True)
        access = it.on_disk().access_token
        assert access not in str([*online, present, check])
        assert isinstance(check, AccountCheck)


CLOCKS = {
    "right": ("Thu, 01 Jan 1970 00:16:40 GMT", "ok"),
    "ahead": ("Thu, 01 Jan 1970 00:10:00 GMT", "warning"),
    "behind": ("Thu, 01 Jan 1970 01:10:00 GMT", "warning"),
    "missing": ("", "skipped"),
    "nonsense": ("soon", "skipped"),
}


@pytest.mark.parametrize(("date", "state"), CLOCKS.values(), ids=CLOCKS.keys())
def test_clocks(date, state):
    """The local clock is compared with the server's Date header."""
    assert network.check_clock(date, "x", 1000.0).state == state


@asynccontextmanager
async def over_tls(authority, trusted=True):
    """Yield a transport whose connections reach a TLS server with a certificate for 127.0.0.1."""
    client_context, server_context = (
        ssl.create_default_context(),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
    )
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    if trusted:
        authority.configure_trust(client_context)
    async with trio.open_nursery() as nursery:

        async def handshake(stream):
            tls = trio.SSLStream(stream, server_context, server_side=True)
            try:
                await tls.do_handshake()
                await tls.receive_some(1)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

        async def connect(host, port):
            client, server = trio.testing.memory_stream_pair()
            nursery.start_soon(handshake, server)
            return client

        yield UpstreamTransport(transport_limits(), ssl_context=client_context, connect=connect)
        nursery.cancel_scope.cancel()


async def test_certificates():
    """A valid certificate passes, one that expires soon is a warning, an untrusted one fails with advice."""
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
    """Resolves the names that end in .test."""

    async def getaddrinfo(self, host, port, *rest):
        if not host.endswith(b".test"):
            raise trio.socket.gaierror(-2, "Name or service not known")
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    async def getnameinfo(self, *arguments):
        raise NotImplementedError


NOWHERE = {
    "no url": ("ftp://x", "address"),
    "no such name": ("http://nowhere.invalid/v1", "DNS"),
    "nothing listening": ("http://127.0.0.1:1/v1", "connection"),
}


@pytest.mark.parametrize(("url", "name"), NOWHERE.values(), ids=NOWHERE.keys())
async def test_a_broken_route(url, name):
    """An invalid address, an unknown name and a refused connection fail with advice."""

    trio.socket.set_custom_hostname_resolver(Resolver())

    async def connect(host, port):
        raise OSError("Connection refused")

    found = await network.check_route(url, UpstreamTransport(transport_limits(), connect=connect), "x", 0.0)
    assert (found[-1].name, found[-1].failed, bool(found[-1].advice)) == (name, True, True)


async def test_refreshes_a_rejected_token(tmp_path, autojump_clock):
    """A rejected token is refreshed, as the server would do, before a check fails."""
    async with signed(tmp_path) as it, world(emulator=it.emulator) as server:
        await it.sign_in()
        entry = resolve_account(AccountConfig("me", kind="oauth"))
        relay = server.server.state.relay
        check = account_check(entry, relay.accounts.accounts[0], relay, Config())
        check.wall_clock, check.account.source = it.wall, it.source(keep=False)
        before = it.on_disk().access_token
        it.emulator.identity.expire()
        trio.socket.set_custom_hostname_resolver(Resolver())
        found: list[Finding] = []
        await check.online(found)
        assert [(f.name, f.message) for f in found if f.failed] == []
        assert it.on_disk().access_token != before
