"""The supervisor's loop over workers that only pretend: small programs that say what workers say."""

import os
import signal
import socket
import sys

import pytest

from qproxy import process
from qproxy.process import backoff
from qproxy.process.backoff import HEALTHY_SECONDS, MAX_PAUSE, RestartBackoff
from qproxy.process.supervisor import Supervisor, bound_listener
from qproxy.process.worker import describe_exit

WORKER = """
import os, signal, socket, sys
number, line, listener = map(int, sys.argv[-1].split(":"))
line = socket.socket(fileno=line)
def serve():
    line.send(b'{"serves": "here"}\\n')
def boss(number):
    os.kill(os.getppid(), number)
def words():
    return line.makefile("r")
"""
FOLLOW = "\nserve()\nfor word in words():\n    if word == 'stop\\n': sys.exit(0)\n"


class Told:
    """What a supervisor says."""

    def __init__(self):
        self.begun, self.stopping, self.reloads = [], [], []

    def reloaded(self, taken_up, said):
        self.reloads.append((taken_up, said))
        os.kill(os.getpid(), signal.SIGTERM)


def supervised(script, number=1, graceful=30.0):
    """The exit code of a supervisor with workers that run a script, and what it said."""
    told, listener = Told(), bound_listener("127.0.0.1", 0)
    command = [sys.executable, "-S", "-E", "-c", WORKER + script]
    supervisor = Supervisor(
        command,
        listener,
        number,
        graceful=graceful,
        started=told.begun.append,
        reloaded=told.reloaded,
        stopping=told.stopping.append,
    )
    with listener:
        return supervisor.run(), told


def test_lives():
    """The pause doubles with each short life, up to a bound; a long life makes it forgotten."""
    one = RestartBackoff()
    assert [one.delay_after(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, MAX_PAUSE, MAX_PAUSE]
    assert [one.delay_after(HEALTHY_SECONDS), one.delay_after(1.0)] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("script", "code"),
    [("sys.exit(2)", 2), ("boss_not_there", 1), ("sys.exit(0)", 1), ("os.kill(os.getpid(), 9)", 137)],
)
def test_a_first_worker_that_does_not_come(script, code, capfd):
    """If it ends before it serves, nobody tries again, and its exit code is everybody's."""
    ended, told = supervised(script)
    assert (ended, told.begun) == (code, [])


def test_a_crash_loop(caplog, monkeypatch, tmp_path):
    """Each death in a row is followed by a longer pause, other workers go on, and a signal still ends it."""
    monkeypatch.setattr(backoff, "FIRST", 0.01)
    dying = f"""
if number == 2:
    with open({str(tmp_path / "deaths")!r}, "a+") as deaths:
        deaths.write("x")
        deaths.seek(0)
        if len(deaths.read()) == 4:
            boss(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    code, told = supervised(dying + FOLLOW, number=2)
    assert (code, told.begun) == (1, ["here"])  # 1: the last death fell into the end
    pauses = [record.getMessage().rpartition(" begins ")[2] for record in caplog.records]
    assert pauses == ["in 0.01 s", "in 0.02 s", "in 0.04 s"]
    assert "worker 2 (process " in caplog.text
    assert "was killed by SIGKILL" in caplog.text


def test_an_orderly_end():
    """SIGTERM lets every worker end by itself; the exit code is 0, and the address is free again."""
    code, told = supervised("\nif number == 2: boss(signal.SIGTERM)\n" + FOLLOW, number=2)
    assert (code, len(told.stopping)) == (0, 1)


def test_a_second_signal():
    """It ends workers that do not want to, at once."""
    stubborn = "\nserve()\nboss(signal.SIGINT)\nfor word in words(): boss(signal.SIGINT)"
    code, told = supervised(stubborn)
    assert (code, told.stopping[1]) == (128 + signal.SIGINT, "Stopping at once.")


def test_a_worker_that_does_not_end(caplog, monkeypatch):
    """When the time is up it is killed, and the exit code says that not all was well."""
    monkeypatch.setattr("qproxy.process.supervisor.SHUTDOWN_MARGIN", 0.05)
    code, _ = supervised("\nserve()\nboss(signal.SIGTERM)\nwhile True: signal.pause()", graceful=0.0)
    assert code == 1
    assert "does not end: it is killed" in caplog.text


RELOADS = """
if number == 2: boss(signal.SIGHUP)
serve()
for word in words():
    if word == 'stop\\n': sys.exit(0)
    ANSWER
"""
ANSWERS = {
    "all can": ('line.send(b\'{"taken_up": true, "said": "reloaded"}\\n\')', (True, "reloaded")),
    "one cannot": (
        "line.send(b'{\"taken_up\": %s, \"said\": \"%d\"}\\n' % (b'true' if number == 1 else b'false', number))",
        (False, "2"),
    ),
    "all die of it": ("os._exit(3)", (False, "all workers ended meanwhile")),
}


@pytest.mark.parametrize(("answer", "outcome"), ANSWERS.values(), ids=ANSWERS.keys())
def test_reloading(answer, outcome):
    """SIGHUP reaches all workers; the outcome is the first failure, or what all say, once all have said it."""
    code, told = supervised(RELOADS.replace("ANSWER", answer), number=2)
    assert told.reloads == [outcome]
    assert code == 0


def test_an_address_in_use():
    """It is an error with the address in it."""
    with (
        bound_listener("127.0.0.1", 0) as one,
        pytest.raises(OSError, match=r"cannot serve on 127\.0\.0\.1, port"),
    ):
        bound_listener(*one.getsockname())


def test_exit_codes_in_words():
    """As people say them."""
    assert describe_exit(3) == "ended with exit code 3"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-99) == "was killed by signal 99"


def test_counting():
    """0 is one for each core."""
    assert process.worker_count(3) == 3
    assert process.worker_count(0) >= 1


def test_signals_are_given_back():
    """After the supervisor the process's handlers are what they were."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    supervised("sys.exit(2)")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert signal.set_wakeup_fd(-1) == -1
