"""A supervised task restarts with backoff and ends only with its server; refresh tasks follow the
configuration."""

import logging

import trio

from qproxy.auth.background import RefreshTasks
from qproxy.auth.supervised_task import SupervisedTask


async def test_a_crashing_task_restarts_with_backoff(autojump_clock, caplog):
    """It restarts after 1, 2, 4 s; a healthy run resets the backoff; each crash is logged with its traceback
    and counted."""
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


async def test_the_backoff_is_bounded(autojump_clock):
    """However often a task crashes, it is restarted once a minute."""
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
    """Sources are set before the start, while running, and after; a source without `run` needs no task."""
    refresh_tasks, first, second = RefreshTasks(), Source("one"), Source("two")
    refresh_tasks.set_sources([first, object()])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh_tasks.run)
        await trio.sleep(1)
        assert (first.runs, second.runs) == (1, 0)
        refresh_tasks.set_sources([first, second])
        await trio.sleep(1)
        assert (first.runs, second.runs) == (1, 1)
        refresh_tasks.set_sources([second])
        await trio.sleep(1)
        assert list(refresh_tasks.tasks) == ["two"]
        await refresh_tasks.stop()
    assert repr(refresh_tasks) == "<RefreshTasks 0 accounts>"
