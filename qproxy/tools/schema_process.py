"""A process that evaluates schemas, so that one which runs away holds nobody up and can be killed.

`SchemaEvaluator` owns at most one process: started when it is first needed, ended by its own limits (`schema_worker`), by
the limit on time here, by a caller who leaves in the middle, when it was idle, or with the Trio program.  Requests
come one after another; each source of schemas has an evaluator of its own, so that it only holds up itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import trio

from qproxy.tools import schema_worker

MAX_CPU_SECONDS = 1.0
"""For one request."""
REPLY_TIMEOUT = 15.0
"""For one request and for the start of the process, however busy the machine is."""
MAX_REPLY = 64 * 1024


class EvaluationLimitExceeded(Exception):
    """An evaluation went beyond its limits, and why."""


class SchemaEvaluator:
    """Evaluates schemas in a process of its own."""

    def __init__(self, cpu_seconds: float = MAX_CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = trio.Lock()
        self._process: trio.Process | None = None

    def __repr__(self) -> str:
        return f"<SchemaEvaluator, {'idle' if self._process is None else f'process {self._process.pid}'}>"

    async def evaluate(self, schema: bytes, arguments: bytes = b"") -> dict[str, Any]:
        """Return the reply of `schema_worker` to JSON texts; raises EvaluationLimitExceeded when there is none within the limits."""
        request = b"%s\n%s\n" % (schema, arguments)
        async with self._lock:
            reply = await self._exchange(request) or await self._exchange(request)
        if not reply:
            raise EvaluationLimitExceeded("the process that checks it ends at once.")
        replied: dict[str, Any] = json.loads(reply)
        return replied

    async def _exchange(self, request: bytes) -> bytes:
        """Return the reply to a request; empty where the process had ended because it was idle."""
        process, self._process = self._process, None
        reply = b""
        try:
            with trio.fail_after(REPLY_TIMEOUT):
                process = process or await _start(self._cpu_seconds)
                reply = await _read_reply(process, request)
                if not reply:
                    self._raise_for_exit(await process.wait())
        except trio.TooSlowError:
            raise EvaluationLimitExceeded(f"it takes more than {REPLY_TIMEOUT:g} s.") from None
        except OSError as error:
            raise EvaluationLimitExceeded(
                f"the process that checks it cannot be started: {error.strerror}."
            ) from None
        finally:
            if reply:
                self._process = process
            elif process is not None:  # its next reply would be that to this request
                process.kill()
        return reply

    def _raise_for_exit(self, code: int) -> None:
        """Raise EvaluationLimitExceeded for a process that did not end by itself."""
        if os.name == "posix" and code == -signal.SIGPROF:
            raise EvaluationLimitExceeded(f"it takes more than {self._cpu_seconds:g} s of CPU.")
        if code != 0:
            raise EvaluationLimitExceeded(f"the process that checks it failed ({code}).")


async def _start(cpu_seconds: float) -> trio.Process:
    path = os.pathsep.join(filter(None, sys.path))
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", schema_worker.__file__, str(cpu_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": path}
        if os.name == "posix"
        else None,  # Windows starts nothing without its variables
        start_new_session=True,
    )
    trio.lowlevel.spawn_system_task(_reap, process)
    return process


async def _reap(process: trio.Process) -> None:
    """End the process with the Trio program, and leave no zombie."""
    try:
        await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _read_reply(process: trio.Process, request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    reply = b""
    try:
        await process.stdin.send_all(request)
        while not reply.endswith(b"\n"):
            data = await process.stdout.receive_some(MAX_REPLY)
            if not data:
                return b""
            reply += data
    except trio.BrokenResourceError:
        return b""
    return reply
