"""Responses in the background: queued, polled, streamed from any event, cancelled, ended by a shutdown, and
settled after a crash."""

import json
import logging
from contextlib import asynccontextmanager
from dataclasses import replace

import openai
import pytest
import trio
import trio.testing
from openai.types.responses import Response, ResponseStreamEvent

from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.server.background_runs import LEASE_SECONDS
from qproxy.server.stream_recorder import StreamRecorder
from tests.backends.fakes import Fakes
from tests.helpers import MODEL, accounts, leftovers, world
from tests.integration.test_conversations import sdk, send
from tests.openai_types import judge, refusal
from tests.server.test_in_process import SDK

PATH = "/v1/responses"
ASK = {"model": MODEL, "input": "Hello there", "background": True}
HEAD = chunk({"role": "assistant", "content": ""})
HELLO = HEAD + chunk({"content": "Hello"})
END = chunk({}, "stop") + DONE


def slow(seconds=60.0):
    """Return an answer with a pause in its middle."""
    return ScriptedReply((HELLO, PauseStep(seconds), chunk({"content": " you"}), END))


def parse(text):
    """Return the events of a stream, each validated."""
    events = [json.loads(frame.partition("data: ")[2]) for frame in text.split("\n\n") if "data: " in frame]
    for event in events:
        judge(ResponseStreamEvent, event)
    return events


async def get_events(w, id_, after=None):
    """Return the validated events of a stored stream."""
    query = "" if after is None else f"&starting_after={after}"
    async with w.client.request("GET", f"{PATH}/{id_}?stream=true{query}") as response:
        assert response.status == 200
        return parse((await response.read()).decode())


async def until_status(w, id_, *statuses):
    """Poll a response until it has one of these statuses, and return it."""
    while True:
        status, body = await send(w, "GET", f"{PATH}/{id_}")
        assert status == 200, body
        judge(Response, body)
        if body["status"] in statuses:
            return body
        await trio.sleep(0.5)


def text(body):
    """Return the text of a response."""
    return "".join(part["text"] for item in body["output"] for part in item["content"])


async def test_a_response_is_generated_without_its_client(autojump_clock):
    """It is queued at once and polled to its end; then it is like any stored response; nothing is left."""
    async with world() as w:
        await w.post({**ASK, "background": False}, PATH)
        before = await leftovers(w)
        w.emulator.script(slow())
        status, queued = await send(w, "POST", PATH, ASK)
        assert (status, queued["status"], queued["background"]) == (200, "queued", True)
        judge(Response, queued)
        id_ = queued["id"]
        assert (await until_status(w, id_, "in_progress"))["output"] == []
        done = await until_status(w, id_, "completed")
        assert (text(done), done["background"]) == ("Hello you", True)
        events = await get_events(w, id_)
        assert [event["type"] for event in events[:3]] == [
            "response.created", "response.queued", "response.in_progress",
        ]  # fmt: skip
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["response"] == done
        status, _ = await send(w, "POST", PATH, {**ASK, "background": False, "previous_response_id": id_})
        assert status == 200
        assert [one["content"] for one in w.emulator.requests[-1].body["messages"]] == [
            "Hello there", "Hello you", "Hello there",
        ]  # fmt: skip
        assert await leftovers(w) == before


async def test_the_client_may_leave_its_stream(autojump_clock):
    """A stream of a response in the background may break off anywhere and is read on from any event."""
    async with world() as w:
        w.emulator.script(slow())
        raw = json.dumps({**ASK, "stream": True}).encode()
        async with w.client.request(
            "POST", PATH, headers=[(b"content-type", b"application/json")], body=raw
        ) as response:
            first = parse((await response.receive()).decode())
        id_ = first[0]["response"]["id"]
        assert first[0]["response"]["status"] == "queued"
        assert len(w.server.state.background_runs) == 1
        whole = await get_events(w, id_)
        assert (whole[-1]["type"], text(whole[-1]["response"])) == ("response.completed", "Hello you")
        assert w.emulator.requests[-1].disconnected.is_set() is False
        for after in (0, 1, 4, len(whole) - 2):
            assert await get_events(w, id_, after) == whole[after + 1 :]
        assert await get_events(w, id_, len(whole) - 1) == []


@SDK
async def test_the_sdk_resumes_a_stream(autojump_clock):
    """openai-python creates, polls, resumes and cancels."""
    async with world() as w, sdk(w) as client:
        w.emulator.script(slow())
        stream = await client.responses.create(model=MODEL, input="Hi", background=True, stream=True)
        async for event in stream:
            last = event.sequence_number
            if event.type == "response.created":
                id_ = event.response.id
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        async with client.responses.stream(response_id=id_, starting_after=last) as resumed:
            numbers = [event.sequence_number async for event in resumed]
            final = await resumed.get_final_response()
        assert numbers[0] == last + 1
        assert final.output_text == "Hello you"
        async for event in await client.responses.retrieve(id_, stream=True, starting_after=last):
            assert event.sequence_number == last + 1
            break
        w.emulator.script(slow())
        running = await client.responses.create(model=MODEL, input="Hi", background=True)
        assert running.status == "queued"
        cancelled = await client.responses.cancel(running.id)
        assert cancelled.status == "cancelled"
        await client.responses.delete(running.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(running.id)


async def test_a_cancellation_reaches_the_upstream(autojump_clock):
    """The upstream's connection is closed at once, the output so far is kept, and cancelling again changes
    nothing; there is one request to the upstream."""
    async with world() as w:
        w.emulator.script(slow(3600.0))
        _, queued = await send(w, "POST", PATH, ASK)
        id_ = queued["id"]
        await until_status(w, id_, "in_progress")
        await trio.sleep(1)
        status, cancelled = await send(w, "POST", f"{PATH}/{id_}/cancel")
        judge(Response, cancelled)
        assert (status, cancelled["status"], text(cancelled)) == (200, "cancelled", "Hello")
        assert w.emulator.requests[-1].disconnected.is_set()
        assert len(w.emulator.requests) == 1
        assert w.sound()
        assert await send(w, "POST", f"{PATH}/{id_}/cancel") == (200, cancelled)
        events = await get_events(w, id_)
        assert (events[-1]["type"], events[-1]["response"]) == ("response.incomplete", cancelled)
        status, refused = await send(w, "POST", PATH, {**ASK, "previous_response_id": id_})
        assert (status, refusal(refused).code) == (400, "previous_response_not_found")


async def test_only_the_background_is_cancelled(autojump_clock):
    """A response that was generated for its client cannot be cancelled, and its owner decides."""
    async with world() as w:
        _, whole = await send(w, "POST", PATH, {**ASK, "background": False})
        status, refused = await send(w, "POST", f"{PATH}/{whole['id']}/cancel")
        assert (status, refusal(refused).message) == (400, "Cannot cancel a synchronous response.")
        _, queued = await send(w, "POST", PATH, ASK)
        done = await until_status(w, queued["id"], "completed")
        assert await send(w, "POST", f"{PATH}/{queued['id']}/cancel") == (200, done)
        assert (await send(w, "POST", f"{PATH}/resp_x/cancel"))[0] == 404


async def test_a_deleted_response_ends(autojump_clock):
    """Deleting an active response cancels its upstream request and leaves nothing of it."""
    async with world() as w:
        w.emulator.script(slow(3600.0))
        _, queued = await send(w, "POST", PATH, ASK)
        await until_status(w, queued["id"], "in_progress")
        status, _ = await send(w, "DELETE", f"{PATH}/{queued['id']}")
        assert status == 200
        await trio.testing.wait_all_tasks_blocked()
        assert w.emulator.requests[-1].disconnected.is_set()
        assert not w.server.state.background_runs
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")):
            assert (await send(w, method, f"{PATH}/{queued['id']}{path}"))[0] == 404


FAILURES = {
    "before it starts": (ScriptedReply((b'{"error": {"message": "no"}}',), status=400), "no"),
    "in its middle": (ScriptedReply((HELLO,)), ""),
}


@pytest.mark.parametrize(("reply", "message"), FAILURES.values(), ids=FAILURES)
async def test_an_upstream_that_fails(reply, message, autojump_clock):
    """The response is failed with the reason, and its stream ends like any failed one."""
    async with world() as w:
        w.emulator.script(*[reply] * 3)
        _, queued = await send(w, "POST", PATH, ASK)
        failed = await until_status(w, queued["id"], "failed")
        assert message in failed["error"]["message"]
        events = await get_events(w, queued["id"])
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        assert events[-2]["response"] == failed
        assert w.server.state.counters.outcomes["upstream_truncated"] == 1
        assert w.sound()


async def test_the_number_of_runs_is_limited(autojump_clock):
    """Beyond max_background_responses there is a 429 that names the setting, until one has ended."""
    async with world(max_background_responses=2) as w:
        w.emulator.script(slow(), slow())
        statuses = []

        async def create():
            statuses.append((await send(w, "POST", PATH, ASK))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(create)
        assert sorted(statuses) == [200, 200, 429, 429, 429]
        status, head, refused = await w.post(ASK, PATH)
        assert (status, refusal(refused).code) == (429, "too_many_background_responses")
        assert "max_background_responses" in refused["error"]["message"]
        assert head["retry-after"] == "5"
        await trio.sleep(61)
        assert (await send(w, "POST", PATH, ASK))[0] == 200


async def test_a_response_stays_queued_while_accounts_are_busy(autojump_clock):
    """A response in the background waits for an account longer than queue_timeout, and can be cancelled."""
    async with world(accounts=accounts("one", max_in_flight=1), queue_timeout=1.0) as w:
        w.emulator.script(slow(), slow(1.0))
        ids = [(await send(w, "POST", PATH, ASK))[1]["id"] for _ in range(3)]
        await trio.sleep(30)
        statuses = [(await send(w, "GET", f"{PATH}/{id_}"))[1]["status"] for id_ in ids]
        assert sorted(statuses) == ["in_progress", "queued", "queued"]
        waiting = next(id_ for id_, status in zip(ids, statuses, strict=True) if status == "queued")
        assert (await send(w, "POST", f"{PATH}/{waiting}/cancel"))[1]["status"] == "cancelled"
        for id_ in ids:
            await until_status(w, id_, "cancelled" if id_ == waiting else "completed")
        assert len(w.emulator.requests) == 2
        assert w.sound()


async def test_a_background_response_is_stored():
    """With store: false, and on a server without a store, it is an error."""
    async with world() as w:
        status, refused = await send(w, "POST", PATH, {**ASK, "store": False})
        assert (status, refusal(refused).param) == (400, "background")
    async with world(store_responses=False) as w:
        status, refused = await send(w, "POST", PATH, ASK)
        assert (status, refusal(refused).param) == (400, "background")
        assert "store_responses" in refused["error"]["message"]


async def test_the_key_pays_for_the_background(autojump_clock):
    """A run uses its key's requests per minute, concurrency and ledger as any request."""
    fakes = Fakes()
    key, secret = await fakes.api_keys.create(name="bob", rpm=2)
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    async with world(backends=fakes.backends(), max_requests=1) as w:
        w.emulator.script(slow())
        status, queued = await send(w, "POST", PATH, ASK, headers)
        assert status == 200
        assert w.server.state.concurrency.in_use == 1
        status, refused = await send(w, "POST", PATH, ASK, headers)
        assert (status, "max_requests" in refused["error"]["message"]) == (503, True)
        assert [row["path"] for row in fakes.ledger.rows if row["completion_tokens"]] == []
        await trio.sleep(61)
        _, done = await send(w, "GET", f"{PATH}/{queued['id']}", headers=headers)
        assert done["status"] == "completed"
        (row,) = [row for row in fakes.ledger.rows if row["completion_tokens"]]
        assert (row["key"], row["status"], row["outcome"]) == (key.label, 200, "ok")
        assert w.server.state.concurrency.in_use == 0


async def test_a_shutdown_waits_and_then_fails(autojump_clock):
    """A run that ends within graceful_timeout completes; then the remaining ones are failed with a reason."""
    fakes = Fakes()
    async with world(backends=fakes.backends(), graceful_timeout=30.0) as w:
        w.emulator.script(slow(20.0), slow(3600.0))
        _, short = await send(w, "POST", PATH, ASK)
        await until_status(w, short["id"], "in_progress")
        _, long = await send(w, "POST", PATH, ASK)
        await until_status(w, long["id"], "in_progress")
        start = trio.current_time()
    assert 29.0 < trio.current_time() - start < 33.0
    async with world(backends=fakes.backends()) as w:
        _, done = await send(w, "GET", f"{PATH}/{short['id']}")
        assert text(done) == "Hello you"
        _, failed = await send(w, "GET", f"{PATH}/{long['id']}")
        assert (failed["status"], failed["error"]["type"]) == ("failed", "shutting_down")
        assert text(failed) == "Hello"
        assert (await get_events(w, long["id"]))[-2]["response"] == failed


async def test_an_aborted_server_fails_its_runs(autojump_clock):
    """A server that is cancelled still stores why its responses ended."""
    fakes = Fakes()
    with trio.CancelScope() as scope:
        async with world(backends=fakes.backends()) as w:
            w.emulator.script(slow(3600.0))
            _, queued = await send(w, "POST", PATH, ASK)
            await until_status(w, queued["id"], "in_progress")
            scope.cancel()
    async with world(backends=fakes.backends()) as w:
        _, failed = await send(w, "GET", f"{PATH}/{queued['id']}")
        assert (failed["status"], failed["error"]["type"]) == ("failed", "shutting_down")


@asynccontextmanager
async def two_workers():
    """Yield two servers of one store."""
    fakes = Fakes()
    async with world(backends=fakes.backends()) as one, world(backends=fakes.backends()) as two:
        yield one, two, fakes


async def test_every_worker_serves_a_run(autojump_clock):
    """Another worker polls, streams and cancels the run of this one."""
    async with two_workers() as (one, two, _):
        one.emulator.script(slow())
        _, queued = await send(one, "POST", PATH, ASK)
        await until_status(two, queued["id"], "in_progress")
        events = await get_events(two, queued["id"])
        assert text(events[-1]["response"]) == "Hello you"
        one.emulator.script(slow(3600.0))
        _, queued = await send(one, "POST", PATH, ASK)
        await until_status(two, queued["id"], "in_progress")
        status, cancelled = await send(two, "POST", f"{PATH}/{queued['id']}/cancel")
        assert (status, cancelled["status"]) == (200, "cancelled")
        assert one.emulator.requests[-1].disconnected.is_set()
        one.emulator.script(slow(3600.0))
        _, queued = await send(one, "POST", PATH, ASK)
        await until_status(two, queued["id"], "in_progress")
        assert (await send(two, "DELETE", f"{PATH}/{queued['id']}"))[0] == 200
        await trio.sleep(2)
        assert one.emulator.requests[-1].disconnected.is_set()
        assert (await send(one, "GET", f"{PATH}/{queued['id']}"))[0] == 404


async def test_a_response_whose_process_died_fails(autojump_clock):
    """Once the lease has expired the response is failed with a reason, for a poll and for a stream."""
    fakes = Fakes()
    async with world(backends=fakes.backends()) as w:
        w.emulator.script(slow(3600.0))
        _, queued = await send(w, "POST", PATH, ASK)
        id_ = queued["id"]
        await until_status(w, id_, "in_progress")
        (run,) = w.server.state.background_runs
        run.stop()  # as if its process were killed: nothing more is stored
        await trio.testing.wait_all_tasks_blocked()
        assert (await send(w, "GET", f"{PATH}/{id_}"))[1]["status"] == "in_progress"
        fakes.wall_clock.now += LEASE_SECONDS + 1
        events = await get_events(w, id_)
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        _, failed = await send(w, "GET", f"{PATH}/{id_}")
        judge(Response, failed)
        assert (failed["status"], failed["error"]["type"]) == ("failed", "response_lost")
        assert failed == events[-2]["response"]


async def test_a_broken_stream_is_read_again(autojump_clock):
    """The events of a stored stream whose client disconnected end with its cancellation, those of a whole
    stream are the same again; from any event on, also in another worker."""
    async with two_workers() as (one, two, _):
        one.emulator.script(slow(3600.0), slow())
        raw = json.dumps({**ASK, "background": False, "stream": True}).encode()
        fields = [(b"content-type", b"application/json")]
        async with one.client.request("POST", PATH, headers=fields, body=raw) as response:
            sent = parse((await response.receive()).decode())
        id_ = sent[0]["response"]["id"]
        await trio.sleep(2)
        assert one.emulator.requests[-1].disconnected.is_set()
        for w in (one, two):
            again = await get_events(w, id_)
            assert again[: len(sent)] == sent
            assert again[len(sent)]["type"] == "response.incomplete"
            assert again[len(sent)]["response"] == (await send(w, "GET", f"{PATH}/{id_}"))[1]
            assert (again[-1]["response"]["status"], text(again[-1]["response"])) == ("cancelled", "Hello")
            assert await get_events(w, id_, 1) == again[2:]
        async with one.client.request("POST", PATH, headers=fields, body=raw) as response:
            whole = parse((await response.read()).decode())
        assert await get_events(one, whole[0]["response"]["id"]) == whole
        assert await get_events(two, whole[0]["response"]["id"], 5) == whole[6:]


async def test_what_is_not_recorded_is_an_error(autojump_clock):
    """A response without stored events names the way to read it: a whole one, and a stream beyond the
    limits."""
    async with world() as w:
        _, whole = await send(w, "POST", PATH, {**ASK, "background": False})
        w.server.state = replace(w.server.state, stream_recorder=StreamRecorder(max_stream_bytes=100))
        raw = json.dumps({**ASK, "background": False, "stream": True}).encode()
        fields = [(b"content-type", b"application/json")]
        async with w.client.request("POST", PATH, headers=fields, body=raw) as response:
            large = parse((await response.read()).decode())[0]["response"]
        for id_ in (whole["id"], large["id"]):
            status, refused = await send(w, "GET", f"{PATH}/{id_}?stream=true")
            assert (status, refusal(refused).param) == (400, "stream")


INVALID = {
    "no number": ("?stream=true&starting_after=x", "starting_after"),
    "a negative number": ("?stream=true&starting_after=-1", "starting_after"),
}


@pytest.mark.parametrize(("query", "param"), INVALID.values(), ids=INVALID)
async def test_an_invalid_query_is_an_error(query, param):
    """`starting_after` is a sequence number."""
    async with world() as w:
        _, whole = await send(w, "POST", PATH, {**ASK, "background": False})
        status, refused = await send(w, "GET", f"{PATH}/{whole['id']}{query}")
        assert (status, refusal(refused).param) == (400, param)


async def test_a_conversation_is_extended_in_the_background(autojump_clock):
    """The items of a response in the background are appended when it completes."""
    async with world() as w, sdk(w) as client:
        conversation = await client.conversations.create()
        queued = await client.responses.create(
            model=MODEL, input="Hi", background=True, conversation=conversation.id
        )
        await until_status(w, queued.id, "completed")
        items = [item async for item in client.conversations.items.list(conversation.id, order="asc")]
        assert [item.role for item in items] == ["user", "assistant"]


async def test_the_body_log_has_the_background(autojump_clock, caplog):
    """With log_bodies the events of a response in the background are logged when it ends."""
    caplog.set_level(logging.INFO)
    async with world(log_bodies=True) as w:
        _, queued = await send(w, "POST", PATH, ASK)
        await until_status(w, queued["id"], "completed")
        await trio.testing.wait_all_tasks_blocked()
    bodies = [line.fields["body"] for line in caplog.records if line.name == "qproxy.body"]
    assert len(bodies) == 2
    assert "Hello there" in bodies[0]
    assert "response.completed" in bodies[1]


async def test_a_run_survives_a_reload(autojump_clock):
    """A run goes on with the parts that it has, while the server has other ones."""
    async with world() as w:
        w.emulator.script(slow())
        _, queued = await send(w, "POST", PATH, ASK)
        await until_status(w, queued["id"], "in_progress")
        await w.server.reconfigure(replace(w.server.state, default_model="other"))
        assert text(await until_status(w, queued["id"], "completed")) == "Hello you"
