"""Changes of limits that a process could not send: counted once by the next one, and bounded meanwhile."""

import json
import logging
import time

import trio

from qproxy.backends.redis import outbox as outbox_module
from qproxy.backends.redis import subjects as subjects_module
from qproxy.backends.redis.exchange import BudgetLimit
from qproxy.backends.redis.outbox import Outbox
from qproxy.backends.redis.script import load_script
from tests.backends.redis.link import Link
from tests.backends.redis.members import open_client, open_subjects
from tests.backends.redis.server import with_clock

SCRIPT = with_clock(load_script("limits"))
BUDGETS = [BudgetLimit("month", "requests", 0.0)]
LIMITS = {"requests": 600.0}


async def end_cut_off(valkey, tmp_path, nursery, *, executed):
    """Use 5 requests over a connection, 7 without replies, 3 without a connection; keep what is unsent."""
    link = Link(valkey)
    subjects = await open_subjects(valkey, nursery, policy="open", link=link)
    subject = subjects.get("x", LIMITS, BUDGETS)

    async def use(count):
        for _ in range(count):
            await subjects.reserve(subject, {"requests": 1})
            subject.hold({"requests": 1}, -1)
            subject.use({"requests": 1})
            subjects.settle(subject)

    await use(5)
    await trio.sleep(2)
    link.freeze()
    await use(7)
    await trio.sleep(0.3)
    if executed:
        await link.thaw()
    await link.cut()
    await use(3)
    box = Outbox(subjects.client, SCRIPT, tmp_path)
    box.save(subjects.unsettled())
    return subject.key


async def start(valkey, tmp_path, nursery):
    """Start a process, which has loaded what the last one kept, and wait until the server has it."""
    client = await open_client(Link(valkey), nursery, SCRIPT)
    box = Outbox(client, SCRIPT, tmp_path)
    box.load()
    box._send()
    await trio.sleep(1)
    return box


async def test_what_was_not_sent_counts_once_at_the_next_start(valkey, tmp_path, nursery, autojump_clock):
    """Whether or not the server had executed the last exchange, and though two processes send it."""
    for executed in (False, True):
        valkey.execute("FLUSHALL")
        key = await end_cut_off(valkey, tmp_path, nursery, executed=executed)
        (path,) = tmp_path.glob("*.jsonl")
        assert path.stat().st_mode & 0o777 == 0o600
        kept = path.read_text()
        assert len(await start(valkey, tmp_path, nursery)) == 0
        assert not path.exists()
        path.write_text(kept)
        await start(valkey, tmp_path, nursery)
        assert float(valkey.execute("HGET", key, "u:month:requests")) == 15
        assert float(valkey.execute("HGET", key, "h:requests") or 0) == 0
    nursery.cancel_scope.cancel()


async def test_old_changes_do_not_touch_the_present_minute(valkey, tmp_path, nursery, autojump_clock):
    """After a minute only budgets count them; after a day, when their numbers are forgotten, nothing does."""
    key = await end_cut_off(valkey, tmp_path, nursery, executed=False)
    (path,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    valkey.execute("DEL", key)

    def age(seconds):
        aged = [{**line, "saved_at": time.time() - seconds} for line in lines]
        path.write_text("\n".join(map(json.dumps, aged)))

    age(120)
    await start(valkey, tmp_path, nursery)
    assert float(valkey.execute("HGET", key, "l:requests")) == 600
    assert float(valkey.execute("HGET", key, "u:month:requests")) == 10
    valkey.execute("DEL", key)
    age(2 * outbox_module.MAX_AGE)
    await start(valkey, tmp_path, nursery)
    assert valkey.execute("EXISTS", key) == 0
    assert not path.exists()
    nursery.cancel_scope.cancel()


async def test_a_file_that_cannot_be_read_stops_nothing(valkey, tmp_path, nursery, autojump_clock, caplog):
    """It is left where it is and named in the log; an exchange that the server rejects is dropped."""
    (tmp_path / "bad.jsonl").write_text("{")
    await end_cut_off(valkey, tmp_path, nursery, executed=False)
    (path,) = [path for path in tmp_path.glob("*.jsonl") if path.name != "bad.jsonl"]
    wrong = json.loads(path.read_text().splitlines()[0])
    wrong["budgets"] = [["century", "requests", 0]]
    path.write_text(json.dumps(wrong))
    assert len(await start(valkey, tmp_path, nursery)) == 0
    assert not path.exists()
    assert (tmp_path / "bad.jsonl").exists()
    assert "bad.jsonl" in caplog.text
    assert "unknown window century" in caplog.text
    without_directory = Outbox(await open_client(Link(valkey), nursery), SCRIPT, None)
    without_directory.load()
    assert len(without_directory) == 0
    nursery.cancel_scope.cancel()


async def test_subjects_with_changes_are_bounded(valkey, nursery, autojump_clock, monkeypatch, caplog):
    """Each keeps sums; beyond the bound the oldest is dropped, with one line in the log."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(subjects_module, "MAX_ACTIVE", 10)
    link = Link(valkey)
    subjects = await open_subjects(valkey, nursery, policy="open", link=link)
    await link.cut()
    await trio.sleep(1)
    for number in range(30):
        for _ in range(5):
            await subjects.reserve(subjects.get(f"{number}", LIMITS), {"requests": 1})
    assert subjects.active == 10
    assert [exchange.taken for _, exchange in subjects.unsettled()] == [{"requests": 5}] * 10
    assert len([record for record in caplog.records if "are dropped" in record.getMessage()]) == 1
    nursery.cancel_scope.cancel()
