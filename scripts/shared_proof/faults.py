"""The cases with a fault: what is left of two homes while processes, the server or the network fail."""

import os
import signal
from collections import Counter
from contextlib import suppress

import httpx2
import trio
from installation import Installation
from rows import MODEL, Row, Rows, exactly, known_key, limited, statuses, wait_for
from traffic import Hammer

from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import chunk

LOGGED_IN = "qwen3-coder-plus"


async def frozen(it: Installation) -> Rows:
    """The server of the state is stopped for three seconds, and continues with what was sent to it."""

    async def freeze() -> None:
        it.server.signal(signal.SIGSTOP)
        await trio.sleep(3)
        it.server.signal(signal.SIGCONT)

    async for row in limited(it, "frozen", 12, freeze, least=0.9):
        yield row


async def restart_server(it: Installation, seconds: float = 1.0) -> None:
    """Kill the server of the state and start it again."""
    it.server.kill()
    await trio.sleep(seconds)
    await trio.to_thread.run_sync(it.server.start)
    it.server_started = trio.current_time()


async def killed_with_file(it: Installation) -> Rows:
    """The server is killed and restarts with its append-only file."""
    async for row in limited(it, "killed", 12, lambda: restart_server(it), least=0.9):
        yield row


async def killed_without_file(it: Installation) -> Rows:
    """The server is killed twice and restarts with nothing; keys, logins and limits are there again."""
    persistent, it.server._arguments = it.server._arguments, ()
    key = await known_key(it, "remembered")

    async def twice() -> None:
        for _ in range(2):
            await restart_server(it)
            await trio.sleep(1)

    async for row in limited(it, "forgotten", 12, twice, least=0.5):
        yield row

    async def agree() -> bool:
        return await statuses(it, key) == [200, 200]

    seconds = await wait_for(agree, 10)
    yield Row("keys are accepted", "never" if seconds is None else "yes", seconds is not None)
    it.server._arguments = persistent
    it.server.execute("CONFIG", "SET", "appendonly", "yes")


async def partition(it: Installation) -> Rows:
    """One home is cut off for four seconds, and has its share."""

    async def cut() -> None:
        it.two.link.cut()
        await trio.sleep(4)
        it.two.link.restore()

    async for row in limited(it, "partition", 12, cut, least=0.8):
        yield row


async def worker_killed(it: Installation) -> Rows:
    """A worker of each home is killed; the others go on and new ones come."""
    before = {pid for home in it.homes for pid in home.workers()}

    async def kill() -> None:
        for home in it.homes:
            os.kill(home.workers()[0], signal.SIGKILL)

    async for row in limited(it, "worker", 12, kill, losses=True, least=0.9):
        yield row
    after = {pid for home in it.homes for pid in home.workers()}
    yield exactly("workers, and new ones", (4, 2), (len(after), len(after - before)))


async def home_killed(it: Installation) -> Rows:
    """A home is killed whole and starts again; its limits are what they were."""

    async def kill() -> None:
        it.two.kill()
        await trio.sleep(0.5)
        await it.two.start()

    async for row in limited(it, "home", 15, kill, losses=True, least=0.9):
        yield row


async def held_budget(it: Installation) -> Rows:
    """What requests of a killed home had reserved of a budget is free within 40 seconds."""
    key = await known_key(it, "held", "--budget-requests", "day=10")
    reply = ScriptedReply((chunk({"role": "assistant", "content": "Hello"}), PauseStep(60.0)))
    it.emulator.script(*[reply] * 10)
    hammer_body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    head = {"authorization": f"Bearer {key}"}

    async def hold(client: httpx2.AsyncClient) -> None:
        with suppress(httpx2.HTTPError):  # its home is killed
            await client.post(it.two.url + "/v1/chat/completions", json=hammer_body, headers=head)

    async with httpx2.AsyncClient(timeout=100) as client, trio.open_nursery() as nursery:
        sent = len(it.emulator.requests)
        for _ in range(10):
            nursery.start_soon(hold, client)

        async def held() -> bool:
            return len(it.emulator.requests) >= sent + 10

        assert await wait_for(held, 15) is not None, "the model has not got ten requests"
        full = (
            await client.post(it.one.url + "/v1/chat/completions", json=hammer_body, headers=head)
        ).status_code
        yield exactly("status while ten are held", 429, full)
        it.two.kill()
        it.emulator.clear()

        last = 0

        async def accepted() -> bool:
            nonlocal last
            answer = await client.post(
                it.one.url + "/v1/chat/completions", json={**hammer_body, "stream": False}, headers=head
            )
            last = answer.status_code
            return last == 200

        seconds = await wait_for(accepted, 45)
        counted = f"never, but {last}" if seconds is None else f"{seconds:.0f} s"
        yield Row("accepted again within 40 s", counted, seconds is not None and seconds < 40)
        await it.two.start()


async def logins(it: Installation) -> Rows:
    """The login of one home serves both, each token is refreshed once, while processes and the server die."""
    hammer = Hammer(it, await known_key(it, "logins"), LOGGED_IN)
    issued = it.emulator.identity.issued_count

    async def kill() -> None:
        await trio.sleep(6)
        os.kill(it.one.workers()[0], signal.SIGKILL)
        await trio.sleep(6)
        await restart_server(it)
        await trio.sleep(6)
        it.server.signal(signal.SIGSTOP)
        await trio.sleep(3)
        it.server.signal(signal.SIGCONT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hammer.run, 36, 0.2)
        nursery.start_soon(kill)
    refreshed = it.emulator.identity.issued_count - issued
    yield Row("refreshes: at least 1", str(refreshed), refreshed >= 1)
    yield exactly("refresh tokens used again", 0, it.emulator.identity.reused_count)
    others = Counter({k: v for k, v in hammer.outcomes.items() if k not in ("200", "no answer")})
    yield exactly("other outcomes than 200", {}, dict(others))


async def newer_schema(it: Installation) -> Rows:
    """A server with newer data: what runs goes on, what starts is told to upgrade."""
    key = await known_key(it, "schema")
    found = dict(zip(*[iter(it.server.execute("HGETALL", "q:meta"))] * 2, strict=True))
    it.server.execute("HSET", "q:meta", "schema", "99", "least_reader", "99")
    try:
        yield exactly("running homes", [200, 200], await statuses(it, key))
        await it.two.stop()
        code, output = await it.two.command("serve")
        told = ("newer" in output and "q:meta" in output) or "upgrade" in output.lower()
        yield Row(
            "a new process ends with a reason",
            f"exit code {code}: {output.strip()[-160:]}",
            code != 0 and told,
        )
    finally:
        it.server.execute("HSET", "q:meta", *[word for pair in found.items() for word in pair])
    await it.two.start()
    yield exactly("afterwards", [200, 200], await statuses(it, key))
