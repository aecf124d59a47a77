"""A process that evaluates schemas, so that an expensive one blocks nothing else and can be killed.

`SchemaEvaluator` owns at most one process: started on first use, ended by its own limits (`schema_worker`),
by the timeout here, by a cancelled caller, when idle, or with the Trio program. Requests are serialized; each
source of schemas has its own evaluator, so that it delays only itself.
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
"""Seconds of CPU time for one request."""
REPLY_TIMEOUT = 15.0
"""Seconds for one request and the start of the process, generous enough for a busy machine."""
MAX_REPLY = 64 * 1024


class EvaluationLimitExceeded(Exception):
    """Raised when an evaluation exceeds a limit, with the reason."""


class SchemaEvaluator:
    """An evaluator of schemas in a separate process."""

    def __init__(self, cpu_seconds: float = MAX_CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = trio.Lock()
        self._process: trio.Process | None = None

    def __repr__(self) -> str:
        return f"<SchemaEvaluator, {'idle' if self._process is None else f'process {self._process.pid}'}>"

    async def evaluate(self, schema: bytes, arguments: bytes = b"") -> dict[str, Any]:
        """Return the reply of `schema_worker` to JSON texts. Raise EvaluationLimitExceeded past the
        limits."""
        request = b"%s\n%s\n" % (schema, arguments)
        async with self._lock:
            reply = await self._exchange(request) or await self._exchange(request)
        if not reply:
            raise EvaluationLimitExceeded("the evaluation process exits at once.")
        result: dict[str, Any] = json.loads(reply)
        return result

    async def _exchange(self, request: bytes) -> bytes:
        """Return the reply to a request, or b"" if the process had ended because it was idle."""
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
            raise EvaluationLimitExceeded(f"cannot start the evaluation process: {error.strerror}.") from None
        finally:
            if reply:
                self._process = process
            elif process is not None:  # its next reply would belong to this request
                process.kill()
        return reply

    def _raise_for_exit(self, code: int) -> None:
        """Raise EvaluationLimitExceeded for a process that did not exit normally."""
        if os.name == "posix" and code == -signal.SIGPROF:
            raise EvaluationLimitExceeded(f"it takes more than {self._cpu_seconds:g} s of CPU.")
        if code != 0:
            raise EvaluationLimitExceeded(f"the evaluation process failed ({code}).")


async def _start(cpu_seconds: float) -> trio.Process:
    path = os.pathsep.join(filter(None, sys.path))
    # Windows starts no process without its own variables.
    environment = {"PYTHONPATH": path} if os.name == "posix" else None
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", schema_worker.__file__, str(cpu_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    trio.lowlevel.spawn_system_task(_reap, process)
    return process


async def _reap(process: trio.Process) -> None:
    """Kill the process at the end of the Trio program, and reap it."""
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
