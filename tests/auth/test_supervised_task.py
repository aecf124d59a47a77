"""A supervised task comes back, ever later, and ends with nothing but its server; keepers follow the
configuration."""

import logging

import trio

from qproxy.auth.background import RefreshTasks
from qproxy.auth.supervised_task import SupervisedTask


async def test_a_task_that_keeps_crashing_comes_back_ever_later(autojump_clock, caplog):
    """After 1, 2, 4 s; a healthy run begins the count anew; each crash is logged with its traceback and
    counted."""
    starts = []

    async def flaky():
        starts.append(trio.current_time())
        if len(starts) == 4:
            await trio.sleep(100)
        if len(starts) == 6:
            return
        raise ExceptionGroup("two", [ValueError("a"), KeyError("b")])

    task = SupervisedTask("it", flaky, jitter=lambda: 1.0)
    with trio.move_on_after(115):
        await task.run()
    assert [round(start - starts[0]) for start in starts] == [0, 1, 3, 7, 108, 110, 114]
    assert (task.crashes, task.failures) == (7, 4)
    assert "ValueError: a" in caplog.text
    assert "the task has returned" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


async def test_pauses_have_an_end(autojump_clock):
    """However often it crashes, it is tried once a minute."""
    starts = []

    async def broken():
        starts.append(trio.current_time())
        raise ValueError

    with trio.move_on_after(3600):
        await SupervisedTask("it", broken, jitter=lambda: 1.0).run()
    assert 60 < len(starts) < 70


class Source:
    def __init__(self, name):
        self.name = name
        self.runs = 0

    async def run(self):
        self.runs += 1
        await trio.sleep_forever()


async def test_refresh_tasks_follow_their_sources(autojump_clock):
    """Told before the start, while running, and after; what has no `run` needs none."""
    keepers, one, two = RefreshTasks(), Source("one"), Source("two")
    keepers.set_sources([one, object()])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keepers.run)
        await trio.sleep(1)
        assert (one.runs, two.runs) == (1, 0)
        keepers.set_sources([one, two])
        await trio.sleep(1)
        assert (one.runs, two.runs) == (1, 1)
        keepers.set_sources([two])
        await trio.sleep(1)
        assert list(keepers.tasks) == ["two"]
        await keepers.stop()
    assert repr(keepers) == "<RefreshTasks 0 accounts>"
