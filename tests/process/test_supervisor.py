"""The supervisor's loop, with small programs in place of workers."""

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
number, line, listener, settings = map(int, sys.argv[-1].split(":"))
settings = open(settings).read()
line = socket.socket(fileno=line)
def serve():
    line.send(b'{"serving": "here"}\\n')
def boss(number):
    os.kill(os.getppid(), number)
def words():
    return line.makefile("r")
"""
FOLLOW = "\nserve()\nfor word in words():\n    if word == 'stop\\n': sys.exit(0)\n"


class Reports:
    """Records the callbacks of a supervisor."""

    def __init__(self):
        self.started, self.stopping, self.reloads = [], [], []

    def reloaded(self, applied, message):
        self.reloads.append((applied, message))
        os.kill(os.getpid(), signal.SIGTERM)


def supervised(script, number=1, graceful=30.0):
    """Run a supervisor with workers that run a script; return its exit code and reports."""
    reports, listener = Reports(), bound_listener("127.0.0.1", 0)
    command = [sys.executable, "-S", "-E", "-c", WORKER + script]
    supervisor = Supervisor(
        command,
        listener,
        number,
        settings=b"those of the start",
        graceful=graceful,
        started=reports.started.append,
        reloaded=reports.reloaded,
        stopping=reports.stopping.append,
    )
    with listener:
        return supervisor.run(), reports


def test_backoff_grows_with_short_runs():
    """The delay doubles with each short run, up to a maximum; a long run resets it."""
    backoff = RestartBackoff()
    assert [backoff.delay_after(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, MAX_PAUSE, MAX_PAUSE]
    assert [backoff.delay_after(HEALTHY_SECONDS), backoff.delay_after(1.0)] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("script", "code"),
    [("sys.exit(2)", 2), ("boss_not_there", 1), ("sys.exit(0)", 1), ("os.kill(os.getpid(), 9)", 137)],
)
def test_a_failing_first_worker_ends_the_supervisor(script, code, capfd):
    """If the first worker exits before it serves, it is not restarted and its code is the supervisor's."""
    ended, reports = supervised(script)
    assert (ended, reports.started) == (code, [])


def test_a_crash_loop(caplog, monkeypatch, tmp_path):
    """Each exit in a row is followed by a longer delay, other workers keep running, and a signal still stops
    all."""
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
    code, reports = supervised(dying + FOLLOW, number=2)
    assert (code, reports.started) == (1, ["here"])  # 1: the last crash happened during the shutdown
    pauses = [record.getMessage().rpartition(", ")[2] for record in caplog.records]
    assert pauses == ["restarting in 0.01 s", "restarting in 0.02 s", "restarting in 0.04 s"]
    assert "worker 2 (process " in caplog.text
    assert "was killed by SIGKILL" in caplog.text


def test_a_graceful_shutdown():
    """SIGTERM lets every worker exit by itself; the exit code is 0."""
    code, reports = supervised("\nif number == 2: boss(signal.SIGTERM)\n" + FOLLOW, number=2)
    assert (code, len(reports.stopping)) == (0, 1)


def test_a_second_signal_quits():
    """A second signal kills workers that do not exit."""
    stubborn = "\nserve()\nboss(signal.SIGINT)\nfor word in words(): boss(signal.SIGINT)"
    code, reports = supervised(stubborn)
    assert (code, reports.stopping[1]) == (128 + signal.SIGINT, "Quitting.")


def test_kills_a_worker_that_does_not_exit(caplog, monkeypatch):
    """A worker that outlives the graceful timeout is killed, and the exit code is 1."""
    monkeypatch.setattr("qproxy.process.supervisor.SHUTDOWN_MARGIN", 0.05)
    code, _ = supervised("\nserve()\nboss(signal.SIGTERM)\nwhile True: signal.pause()", graceful=0.0)
    assert code == 1
    assert "did not exit, sending SIGKILL" in caplog.text


RELOADS = """
if number == 2: boss(signal.SIGHUP)
serve()
for word in words():
    if word == 'stop\\n': sys.exit(0)
    ANSWER
"""
ANSWERS = {
    "all can": (
        'line.send(b\'{"applied": true, "message": "reloaded", "settings": "bmV3"}\\n\')',
        (True, "reloaded"),
    ),
    "one cannot": (
        'line.send(b\'{"applied": %s, "message": "%d", "settings": "bmV3"}\\n\' % '
        "(b'true' if number == 1 else b'false', number))",
        (False, "2"),
    ),
    "all die of it": ("os._exit(3)", (False, "all workers exited during the reload")),
}


@pytest.mark.parametrize(("answer", "outcome"), ANSWERS.values(), ids=ANSWERS.keys())
def test_reloading(answer, outcome):
    """SIGHUP reloads all workers; once all have reported, the outcome is the first failure or the common
    result."""
    code, reports = supervised(RELOADS.replace("ANSWER", answer), number=2)
    assert reports.reloads == [outcome]
    assert code == 0


RESTARTED = """
if number == 2:
    with open(FILE, "a+") as starts:
        print(os.getpid(), settings, file=starts, flush=True)
        starts.seek(0)
        boss(signal.SIGTERM if len(starts.readlines()) == 2 else signal.SIGHUP)
"""


@pytest.mark.parametrize(("answer", "settings"), [("all can", "new"), ("one cannot", "those of the start")])
def test_a_restarted_worker_has_the_settings_in_effect(answer, settings, tmp_path, monkeypatch):
    """A worker that is replaced starts with the settings that all applied last, and reads no file."""
    starts = tmp_path / "starts"

    def kill_the_second(reports, applied, message):
        os.kill(int(starts.read_text().split()[0]), signal.SIGKILL)

    monkeypatch.setattr(backoff, "FIRST", 0.01)
    monkeypatch.setattr(Reports, "reloaded", kill_the_second)
    rest = RELOADS.partition("\n")[2].partition("\n")[2].replace("ANSWER", ANSWERS[answer][0])
    supervised(RESTARTED.replace("FILE", repr(str(starts))) + rest, number=2)
    assert [line.partition(" ")[2] for line in starts.read_text().splitlines()] == [
        "those of the start",
        settings,
    ]


def test_an_address_in_use():
    """Binding a used address raises OSError naming the address."""
    with (
        bound_listener("127.0.0.1", 0) as one,
        pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1, port"),
    ):
        bound_listener(*one.getsockname())


def test_describes_exit_codes():
    """An exit code is described by its number or its signal."""
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-99) == "was killed by signal 99"


def test_worker_count():
    """0 means one worker per CPU core."""
    assert process.worker_count(3) == 3
    assert process.worker_count(0) >= 1


def test_restores_signal_handlers():
    """After the supervisor, the process has its signal handlers back."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    supervised("sys.exit(2)")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    first, second = socket.socketpair()
    with first, second:
        assert signal.set_wakeup_fd(-1) == -1
