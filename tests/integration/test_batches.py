"""Batches that this server runs itself: validated, resumed by another process, cancelled, each key's own."""

import json

import pytest
import trio
from openai.types import Batch

from qproxy.backends.local import key_file
from qproxy.backends.local.batch_store import SqliteBatches
from qproxy.emulator import Emulator
from tests.helpers import MODEL, world
from tests.integration.test_files import call, upload
from tests.openai_types import judge, refusal

CHAT = "/v1/chat/completions"


def lines(*ids, url=CHAT, **body):
    """Return the input file of some chats."""
    made = [
        {
            "custom_id": name,
            "method": "POST",
            "url": url,
            "body": {"model": MODEL, "messages": [{"role": "user", "content": f"I am {name}"}], **body},
        }
        for name in ids
    ]
    return "\n".join(map(json.dumps, made)).encode()


async def create(it, content, *, key=None, endpoint=CHAT, **fields):
    """Return the object of a new batch."""
    file = await upload(it, content, key=key)
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", **fields}
    head = {"content-type": "application/json"}
    status, made = await call(it, "POST", "/v1/batches", head, json.dumps(body).encode(), key)
    assert status == 200, made
    return judge(Batch, made)


async def wait(it, id, until, key=None):
    """Return the batch once a condition holds."""
    while True:
        _, body = await call(it, "GET", f"/v1/batches/{id}", key=key)
        batch = judge(Batch, body)
        if until(batch):
            return batch
        await trio.sleep(0.05)


def has_ended(batch):
    return batch.status in ("completed", "failed", "expired", "cancelled")


async def results(it, file, key=None):
    """Return the lines of an output or error file."""
    status, content = await call(it, "GET", f"/v1/files/{file}/content", key=key)
    assert status == 200
    return [json.loads(line) for line in content.splitlines()]


async def test_a_batch_runs_to_its_end():
    """Each line is a request to this server; good results and errors are in two files, in order."""
    async with world() as it:
        content = lines("a", "b") + b"\n" + lines("bad", temperature="hot") + b"\n"
        made = await create(it, content, metadata={"job": "x"})
        assert (made.status, made.metadata) == ("validating", {"job": "x"})
        done = await wait(it, made.id, has_ended)
        assert done.status == "completed"
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
        good = await results(it, done.output_file_id)
        assert [line["custom_id"] for line in good] == ["a", "b"]
        assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in good)
        assert "I am a" in good[0]["response"]["body"]["choices"][0]["message"]["content"]
        (bad,) = await results(it, done.error_file_id)
        assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 400)
        assert refusal(bad["response"]["body"]).param == "temperature"
        _, listed = await call(it, "GET", "/v1/batches?limit=1")
        assert [batch["id"] for batch in listed["data"]] == [made.id]
        assert it.sound()


async def test_a_stopped_server_continues_and_repeats_no_finished_line(tmp_path):
    """A server that stops at half is followed by another one, which sends the other lines only."""
    names = [f"line-{n}" for n in range(40)]
    emulator = Emulator()
    settings = {"files_directory": str(tmp_path / "files"), "batch_parallel": 1, "emulator": emulator}
    async with world(**settings) as it:
        made = await create(it, lines(*names))
        half = await wait(it, made.id, lambda batch: batch.request_counts.completed >= 20)
        assert half.status == "in_progress"
    sent = len(emulator.requests)
    assert 20 <= sent < 40
    async with world(**settings) as it:
        done = await wait(it, made.id, has_ended)
        assert (done.status, done.request_counts.completed) == ("completed", 40)
        good = await results(it, done.output_file_id)
    assert [line["custom_id"] for line in good] == names
    asked = [request.body["messages"][-1]["content"] for request in emulator.requests]
    assert len(set(asked)) == 40
    assert len(asked) - 40 <= 1, "at most the line that ran at the stop is sent again"


async def test_a_cancelled_batch_keeps_what_has_finished(tmp_path):
    """Its results so far are in the output file, and no further line is sent."""
    async with world(batch_parallel=1) as it:
        made = await create(it, lines(*map(str, range(60))))
        await wait(it, made.id, lambda batch: batch.request_counts.completed >= 2)
        status, body = await call(it, "POST", f"/v1/batches/{made.id}/cancel")
        assert (status, judge(Batch, body).status) == (200, "cancelling")
        done = await wait(it, made.id, has_ended)
        assert done.status == "cancelled"
        assert done.cancelled_at is not None
        assert len(await results(it, done.output_file_id)) == done.request_counts.completed < 60


INVALID = {
    "no JSON": (b"{", "invalid_json_line", 1),
    "an array": (b"[]", "invalid_json_line", 1),
    "another url": (lines("a", url="/v1/embeddings"), "mismatched_endpoint", 1),
    "twice the same id": (lines("a", "b", "a"), "duplicate_custom_id", 3),
    "a stream": (lines("a", stream=True), "unsupported_parameter", 1),
    "nothing": (b"\n\n", "empty_file", None),
}


@pytest.mark.parametrize(("content", "code", "line"), INVALID.values(), ids=INVALID)
async def test_an_invalid_input_fails_the_batch(content, code, line):
    """The error has the line and a code, and no line is sent."""
    async with world() as it:
        made = await create(it, content)
        done = await wait(it, made.id, has_ended)
        (error,) = done.errors.data
        assert (done.status, error.code, error.line) == ("failed", code, line)
        assert it.emulator.requests == []


BODIES = {
    "no file": ({"input_file_id": "file-none"}, "input_file_id"),
    "an unknown endpoint": ({"endpoint": "/v1/videos"}, "endpoint"),
    "a wrong window": ({"completion_window": "1y"}, "completion_window"),
    "metadata that is text": ({"metadata": "x"}, "metadata"),
}


async def test_invalid_fields_are_named():
    """A 400 names the field."""
    async with world() as it:
        file = (await upload(it))["id"]
        for fields, param in BODIES.values():
            body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **fields}
            status, _, answer = await it.post(body, "/v1/batches")
            assert (status, refusal(answer).param) == (400, param)


async def test_a_batch_belongs_to_its_key(tmp_path):
    """Its lines count for its key, and another key finds nothing."""
    path = tmp_path / "keys.json"
    (alice, secret), (_, bob) = (key_file.create(path, name=name) for name in ("alice", "bob"))
    ledger = str(tmp_path / "ledger.sqlite3")
    async with world(keys_file=str(path), ledger=ledger) as it:
        made = await create(it, lines("a"), key=secret)
        done = await wait(it, made.id, has_ended, key=secret)
        assert done.status == "completed"
        assert (await call(it, "GET", f"/v1/batches/{made.id}", key=bob))[0] == 404
        assert (await call(it, "POST", f"/v1/batches/{made.id}/cancel", key=bob))[0] == 404
        assert (await call(it, "GET", "/v1/batches", key=bob))[1]["data"] == []
        assert it.server.state.ledger is not None
        rows = await it.server.state.ledger.recent_requests(50)
        assert [row["key"] for row in rows if row["endpoint"] == "/chat/completions"] == [alice.label]


async def test_one_process_at_a_time(tmp_path):
    """A batch is another process's once the lease of a killed one has expired, which stores nothing more."""
    now = [1000.0]
    first, second = (
        SqliteBatches(tmp_path / "b.sqlite3", max_age=1e6, timeout=5, wall_clock=lambda: now[0])
        for _ in range(2)
    )
    await first.create("o", {"id": "b", "status": "in_progress", "request_counts": {"total": 2}})
    claimed = await first.claim("one", 30)
    assert claimed is not None
    assert claimed.owner == "o"
    assert await second.claim("two", 30) is None
    assert await first.add_result("one", "b", 1, ok=True, result=b"1")
    now[0] += 29
    assert await first.renew("one", "b", 30) == "in_progress"
    now[0] += 31
    claimed = await second.claim("two", 30)
    assert claimed is not None
    assert claimed.batch["request_counts"]["completed"] == 1
    assert await first.renew("one", "b", 30) == ""
    assert not await first.add_result("one", "b", 2, ok=True, result=b"2")
    assert await second.finished_lines("b") == {1}
    await first.aclose()
    await second.aclose()
