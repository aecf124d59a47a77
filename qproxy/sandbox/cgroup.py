"""One cgroup per call, if this server may create cgroups, which limits all processes of a call together.

It requires cgroup v2 and a writable parent of this server's own cgroup without processes, as systemd creates
it with `Delegate=memory pids` and `DelegateSubgroup=server`. The cgroup counts all memory of a call: that of
its processes, the kernel's for them (sockets, pipes, files in /tmp), and the contents of /tmp.

https://docs.kernel.org/admin-guide/cgroup-v2.html, `systemd.resource-control(5)`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qproxy.sandbox.policy import ResourceLimits

CONTROLLERS = frozenset(("memory", "pids"))
OPTIONAL = frozenset(("memory.swap.max", "memory.oom.group"))
"""Files that a kernel may lack."""
PREFIX = "qproxy-call-"
PROC = Path("/proc/self")


class CgroupTree:
    """A factory of cgroups below a directory that this server owns."""

    def __init__(self, root: Path, remove: Callable[[Path], None] = os.rmdir) -> None:
        self.root = root
        self._remove = remove
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<CgroupTree below {self.root}>"

    def prepare(self) -> bool:
        """Enable the controllers, and remove cgroups of killed servers. Return False if that is not
        possible."""
        try:
            if not CONTROLLERS.issubset(self._read("cgroup.controllers")) or self._read("cgroup.procs"):
                return False  # a cgroup with processes cannot enable controllers
            wanted = " ".join(f"+{name}" for name in sorted(CONTROLLERS))
            _write(self.root, "cgroup.subtree_control", wanted)
            self._remove_stale()
            with self.create(ResourceLimits()):
                return True
        except OSError:
            return False

    def _read(self, name: str) -> list[str]:
        return (self.root / name).read_text().split()

    def _remove_stale(self) -> None:
        for left in self.root.glob(f"{PREFIX}*-*"):
            if not Path("/proc", left.name.split("-")[2]).exists():  # otherwise another worker uses it
                with suppress(OSError):
                    self._remove(left)

    @contextmanager
    def create(self, limits: ResourceLimits) -> Iterator[Callable[[int], None]]:
        """Create a cgroup with limits, and yield a function that moves a process into it. The exit kills them
        all."""
        path = self.root / f"{PREFIX}{os.getpid()}-{next(self._numbers)}"
        path.mkdir()
        try:
            for name, value in limit_values(limits).items():
                with suppress(*((OSError,) if name in OPTIONAL else ())):
                    _write(path, name, value)
            yield lambda pid: _write(path, "cgroup.procs", str(pid))
        finally:
            with suppress(OSError):  # Linux before 5.14
                _write(path, "cgroup.kill", "1")
            with suppress(OSError):  # a process that is still ending; `prepare` removes it then
                self._remove(path)


def _write(path: Path, name: str, value: str) -> None:
    (path / name).write_text(value)


def limit_values(limits: ResourceLimits) -> dict[str, str]:
    """Return a cgroup's files for the limits of a call, whose /tmp counts as memory."""
    return {
        "memory.max": str(limits.memory + limits.tmp_bytes),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(limits.processes),
    }


def find_cgroups(proc: Path = PROC, remove: Callable[[Path], None] = os.rmdir) -> CgroupTree | None:
    """Return the tree below the parent of this server's cgroup, or None if this server may not use it."""
    try:
        own = next(line[3:] for line in (proc / "cgroup").read_text().splitlines() if line.startswith("0::"))
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
        mount = next(line for line in mounts if line[line.index("-") + 1] == "cgroup2")
    except (OSError, StopIteration):
        return None
    if not Path(own).is_relative_to(mount[3]):
        return None
    here = Path(mount[4]) / Path(own).relative_to(mount[3])
    if here == Path(mount[4]):  # the root of the tree, or of a container's part of it, has no parent
        return None
    cgroups = CgroupTree(here.parent, remove)
    return cgroups if cgroups.prepare() else None
