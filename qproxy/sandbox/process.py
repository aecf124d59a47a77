"""A child process: its pipes, its end, and the end of everything that it started.

A `Launcher` (`Bubblewrap`, or `UnsandboxedLauncher`) starts it in the main thread: a process that dies with
its parent (PR_SET_PDEATHSIG) dies with the *thread* that started it, and Trio starts processes in a worker
thread, which ends when it has been idle for a while.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from qproxy.sandbox import policy
from qproxy.sandbox.policy import SandboxPolicy

READ_SIZE = 64 * 1024
MAX_ERRORS = 4096
"""Last bytes of standard error that are kept."""
REAP_SECONDS = 2.0
DRAIN_SECONDS = 1.0


class Launcher(Protocol):
    """A starter of programs."""

    def __call__(
        self, argv: Sequence[str], fence: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]: ...


class ProcessTree(Protocol):
    """A program with everything that it started."""

    def kill(self) -> None: ...

    async def wait(self) -> None:
        """Wait until none of them is left."""


class ChildProcess:
    """A running program."""

    def __init__(self, popen: subprocess.Popen[bytes], end: ProcessTree) -> None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.stdin, self.stdout, self.stderr = (
            trio.lowlevel.FdStream(os.dup(pipe.fileno()))
            for pipe in (popen.stdin, popen.stdout, popen.stderr)
        )
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            pipe.close()
        self._popen = popen
        self._tree = end

    def __repr__(self) -> str:
        return f"<ChildProcess {self._popen.pid}, {'running' if self._popen.poll() is None else 'exited'}>"

    def kill(self) -> None:
        """Kill the program and everything that it started."""
        self._tree.kill()

    async def wait(self) -> int:
        """Wait for the program's end, and return its exit code."""
        if self._popen.poll() is not None:  # its ID may already belong to another process
            return self._popen.wait()
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self._popen.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return self._popen.wait()  # does not block
        return await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)

    async def aclose(self) -> None:
        """Kill the program, reap it, and close its pipes."""
        self.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_SECONDS):
            await self.wait()
            await self._tree.wait()
            for stream in (self.stdin, self.stdout, self.stderr):
                await stream.aclose()


@dataclass(frozen=True, slots=True)
class CompletedProcess:
    """The result of a program that has ended."""

    code: int
    """The exit code; negative for the signal that killed it."""
    output: bytes
    errors: bytes
    """The last bytes of standard error."""
    truncated: bool = False
    """Whether its output exceeded the limit, for which it was killed."""


async def communicate(child: ChildProcess, data: bytes, *, limit: int) -> CompletedProcess:
    """Send a program its input, and return its result with at most `limit` bytes of output."""
    output, errors = bytearray(), bytearray()
    code = 0

    async def write_stdin() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the program may ignore its input
            await child.stdin.send_all(data)
        await child.stdin.aclose()

    async def read_stderr() -> None:
        while data := await child.stderr.receive_some(READ_SIZE):
            errors.extend(data)
            del errors[:-MAX_ERRORS]

    async def read_stdout() -> None:
        while data := await child.stdout.receive_some(READ_SIZE):
            output.extend(data)
            if len(output) > limit:
                child.kill()
                return

    async def end(scope: trio.CancelScope) -> None:
        nonlocal code
        code = await child.wait()
        child.kill()  # its remaining children
        scope.deadline = trio.current_time() + DRAIN_SECONDS

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end, nursery.cancel_scope)
        nursery.start_soon(write_stdin)
        nursery.start_soon(read_stderr)
        await read_stdout()
    return CompletedProcess(code, bytes(output[:limit]), bytes(errors), len(output) > limit)


class UnsandboxedLauncher:
    """A launcher without a sandbox, for tools whose operator sets `sandbox = "none"`.

    The timeout, the limit on output and a separate environment remain.
    """

    def __repr__(self) -> str:
        return "<UnsandboxedLauncher>"

    def __call__(
        self, argv: Sequence[str], fence: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]:
        return _start_unsandboxed(argv, fence)


@asynccontextmanager
async def _start_unsandboxed(argv: Sequence[str], allowed: SandboxPolicy) -> AsyncIterator[ChildProcess]:
    popen = start(argv, policy.environment(allowed))
    child = adopt(popen, _Group(popen.pid))
    try:
        yield child
    finally:
        await child.aclose()


def adopt(popen: subprocess.Popen[bytes], end: ProcessTree) -> ChildProcess:
    """Return the child for a process, which is killed if that fails."""
    try:
        return ChildProcess(popen, end)
    except BaseException:
        end.kill()
        popen.wait()
        raise


class _Group:
    """A process group, which does not include processes that have left it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()


def start(
    argv: Sequence[str], env: dict[str, str], *, inherit: Sequence[int] = (), user: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a new session, with pipes for its three streams."""
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        pass_fds=tuple(inherit),
        start_new_session=True,
        user=user,
        group=user,
        extra_groups=None if user is None else (),
    )
