"""The cases without a fault: what two homes do together; and the table of all cases.

A case is a function of an installation that yields rows: what was expected and counted, and whether it holds.
"""

from collections.abc import Callable

import faults
import httpx2
from installation import Home, Installation
from rows import MODEL, Row, Rows, exactly, known_key, limited, statuses, wait_for
from traffic import Hammer, sdk

from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from tests.dashboard.browser import ADMIN_KEY, Page

SEEN_SECONDS = 3.0
"""How long one home may take to see a key of the other one; a second is promised, the machine may be busy."""
TOOL = {
    "type": "function",
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}


async def limits(it: Installation) -> Rows:
    """One key, two homes, four workers, no fault."""
    async for row in limited(it, "steady", 10):
        yield row


async def budget(it: Installation) -> Rows:
    """A budget of 100 requests a day is spent once, by both homes."""
    hammer = Hammer(it, await known_key(it, "budget", "--budget-requests", "day=100"))
    await hammer.run(4)
    yield exactly("granted", 100, hammer.granted)
    codes = {code for code in hammer.outcomes if not code.startswith("200")}
    yield exactly("other outcomes", {"429 insufficient_quota"}, codes)


async def chain(it: Installation) -> Rows:
    """A chain of ten responses, whole and streamed, each continues one of the other home."""
    key, previous = await known_key(it, "chain"), None
    async with sdk(it, key) as client:
        for number in range(10):
            options = {"model": MODEL, "input": f"turn {number}", "previous_response_id": previous}
            if number % 2:
                events = [event async for event in await client.responses.create(**options, stream=True)]
                previous = events[-1].response.id
            else:
                previous = (await client.responses.create(**options)).id
        messages = len(it.emulator.requests[-1].body["messages"])
        yield exactly("messages of the last turn", 19, messages)
        found = [(await client.responses.retrieve(previous)).id == previous for _ in it.homes]
        yield exactly("found on", [True, True], found)


async def tools(it: Installation) -> Rows:
    """A tool is called in a response of one home, and its result is sent to the other one."""
    async with sdk(it, await known_key(it, "tools")) as client:
        first = await client.responses.create(model=MODEL, input="look up 'trio'", tools=[TOOL])
        calls = [item for item in first.output if item.type == "function_call"]
        yield exactly("calls", 1, len(calls))
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "42"} for call in calls
        ]
        await client.responses.create(model=MODEL, input=results, tools=[TOOL], previous_response_id=first.id)
        sent = [m["role"] for m in it.emulator.requests[-1].body["messages"]]
        yield exactly("roles that the model was sent", ["user", "assistant", "tool"], sent)


async def keys(it: Installation) -> Rows:
    """A key of one home is accepted by both, and after its revocation on the other one by neither."""
    key = await it.one.create_key("shared")
    for expected, command in ((200, None), (401, ("keys", "revoke", "shared"))):
        if command is not None:
            await it.two.command(*command)

        async def agree(expected: int = expected) -> bool:
            return await statuses(it, key) == [expected, expected]

        seconds = await wait_for(agree, 10)
        text = "never" if seconds is None else f"after {seconds:.1f} s"
        holds = seconds is not None and seconds < SEEN_SECONDS
        yield Row(f"both answer {expected} within {SEEN_SECONDS:.0f} s", text, holds)


async def dashboard(it: Installation) -> Rows:
    """A login on one home counts on the other, and a logout ends it on both."""
    async with httpx2.AsyncClient(timeout=10) as client:
        page, cookie = await visit(client, it.one, "GET", "/dashboard/login", "")
        form = {**page.forms["/dashboard/login"], "key": ADMIN_KEY}
        answer, cookie = await visit(client, it.one, "POST", "/dashboard/login", cookie, form)
        yield exactly("login", 303, answer.status)
        page, cookie = await visit(client, it.two, "GET", "/dashboard/keys", cookie)
        yield exactly("page of the other home", 200, page.status)
        fields = page.forms["/dashboard/logout"]
        await visit(client, it.two, "POST", "/dashboard/logout", cookie, fields)
        page, _ = await visit(client, it.one, "GET", "/dashboard/keys", cookie)
        yield exactly("after the logout", 303, page.status)


async def visit(
    client: httpx2.AsyncClient, home: Home, method: str, path: str, cookie: str, form: dict | None = None
) -> tuple[Page, str]:
    """Return a page of the dashboard, and the cookie afterwards."""
    head = {"origin": home.url, **({"cookie": cookie} if cookie else {})}
    client.cookies.clear()
    answer = await client.request(method, home.url + path, headers=head, data=form)
    cookie = answer.headers.get("set-cookie", cookie).partition(";")[0]
    return Page(answer.status_code, dict(answer.headers), answer.text), cookie


async def background(it: Installation) -> Rows:
    """A response that one home generates is polled on both and cancelled on the other one."""
    head = chunk({"role": "assistant", "content": "Hello"})
    it.emulator.script(ScriptedReply((head, PauseStep(60.0), chunk({}, "stop") + DONE)))
    async with sdk(it, await known_key(it, "background")) as client:
        queued = await client.responses.create(model=MODEL, input="Hello", background=True)
        running = {(await client.responses.retrieve(queued.id)).status for _ in it.homes}
        yield Row("queued or in progress on both", str(running), running <= {"queued", "in_progress"})
        cancelled = [(await client.responses.cancel(queued.id)).status for _ in it.homes]
        yield exactly("cancelled on", ["cancelled"] * 2, cancelled)
        done = await client.responses.create(model=MODEL, input="Hello", background=True)

        async def completed() -> bool:
            return (await client.responses.retrieve(done.id)).status == "completed"

        yield Row(
            "another one completes", "yes" if (ok := await wait_for(completed, 10) is not None) else "no", ok
        )
    it.emulator.clear()


CASES: dict[str, Callable[[Installation], Rows]] = {
    "limits": limits,
    "budget": budget,
    "chain": chain,
    "tools": tools,
    "keys": keys,
    "dashboard": dashboard,
    "background": background,
    "frozen server": faults.frozen,
    "killed server": faults.killed_with_file,
    "partition": faults.partition,
    "killed workers": faults.worker_killed,
    "killed home": faults.home_killed,
    "held budget": faults.held_budget,
    "logins": faults.logins,
    "server without data": faults.killed_without_file,
    "newer schema": faults.newer_schema,
}
