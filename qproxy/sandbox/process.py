"""A program that runs for us: its pipes, its end, and the end of everything it started.

A child is started by a `Launcher` (`Bubblewrap`, or `UnsandboxedLauncher`), in the main thread: a process that asked the kernel
to die with its parent dies with the *thread* that made it, and Trio's own way starts processes in a worker thread
that ends when it has been idle for a while.
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

from qproxy.sandbox import policy as fence
from qproxy.sandbox.policy import SandboxPolicy

READ_SIZE = 64 * 1024
MAX_ERRORS = 4096
"""The end of standard error that is kept."""
REAP_SECONDS = 2.0
DRAIN_SECONDS = 1.0


class Launcher(Protocol):
    """What starts programs."""

    def __call__(
        self, argv: Sequence[str], fence: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]: ...


class ProcessTree(Protocol):
    """How a program is ended with all it started."""

    def kill(self) -> None: ...

    async def wait(self) -> None:
        """Return when none of them is left."""


class ChildProcess:
    """A program under way."""

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
        return f"<Child {self._popen.pid}, {'running' if self._popen.poll() is None else 'over'}>"

    def kill(self) -> None:
        """End it and all it started."""
        self._tree.kill()

    async def wait(self) -> int:
        """Return the exit code when the program has ended."""
        if self._popen.poll() is not None:  # its number may be another's by now
            return self._popen.wait()
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self._popen.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return self._popen.wait()  # it has ended
        return await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)

    async def aclose(self) -> None:
        """End it, whatever it is doing, and leave no zombie."""
        self.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_SECONDS):
            await self.wait()
            await self._tree.wait()
            for stream in (self.stdin, self.stdout, self.stderr):
                await stream.aclose()


@dataclass(frozen=True, slots=True)
class CompletedProcess:
    """What a program left behind."""

    code: int
    """Its exit code; negative: the signal that ended it."""
    output: bytes
    errors: bytes
    """The end of standard error."""
    truncated: bool = False
    """It said more than it may, and was ended."""


async def communicate(child: ChildProcess, given: bytes, *, limit: int) -> CompletedProcess:
    """Give a program its input and take its output, to its end; at most `most` bytes of it."""
    output, errors = bytearray(), bytearray()
    ended = 0

    async def write_stdin() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it need not read it
            await child.stdin.send_all(given)
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
        nonlocal ended
        ended = await child.wait()
        child.kill()  # what it left running
        scope.deadline = trio.current_time() + DRAIN_SECONDS

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end, nursery.cancel_scope)
        nursery.start_soon(write_stdin)
        nursery.start_soon(read_stderr)
        await read_stdout()
    return CompletedProcess(ended, bytes(output[:limit]), bytes(errors), len(output) > limit)


class UnsandboxedLauncher:
    """Starts programs with all that this process may do: no sandbox, by the operator's own word.

    Left are the time limit, the bound on output and an environment of its own.
    """

    def __repr__(self) -> str:
        return "<Unfenced>"

    def __call__(
        self, argv: Sequence[str], fence: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]:
        return _start_unsandboxed(argv, fence)


@asynccontextmanager
async def _start_unsandboxed(argv: Sequence[str], allowed: SandboxPolicy) -> AsyncIterator[ChildProcess]:
    popen = start(argv, fence.environment(allowed))
    child = adopt(popen, _Group(popen.pid))
    try:
        yield child
    finally:
        await child.aclose()


def adopt(popen: subprocess.Popen[bytes], end: ProcessTree) -> ChildProcess:
    """The child that a process is; one that cannot be looked after is ended."""
    try:
        return ChildProcess(popen, end)
    except BaseException:
        end.kill()
        popen.wait()
        raise


class _Group:
    """The end of a process group: what has left it is not reached."""

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
    """A process in a session of its own, with pipes for its three streams."""
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
