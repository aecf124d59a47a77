"""The files and resources of a sandboxed program, and bubblewrap's arguments for them.

Pure: paths are only named here. The root is read-only and consists of the system's programs and libraries,
the files of /etc that they need to start, a private /proc, a /dev without devices, a small /tmp, and the
declared paths. `bwrap(1)`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
NOBODY_UID = 65534
MIN_INODES = 256
PATH = "/usr/local/bin:/usr/bin:/bin"
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
"""The system's programs and libraries."""
SETTINGS = (
    "/etc/alternatives", "/etc/ca-certificates", "/etc/ld.so.cache", "/etc/localtime", "/etc/pki/tls/certs",
    "/etc/ssl/certs",
)  # fmt: skip
NETWORK_SETTINGS = ("/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """The resource limits of a sandboxed program, which the kernel enforces per process, except
    `processes`."""

    cpu_seconds: int = 10
    memory: int = 512 * MIB
    """Bytes of address space of one process."""
    processes: int = 32
    """Concurrent processes and threads in total."""
    file_size: int = 16 * MIB
    open_files: int = 64
    tmp_bytes: int = 64 * MIB
    """Bytes in /tmp."""

    @property
    def tmp_options(self) -> str:
        """The tmpfs options of /tmp: its size, and an inode for each 4 KiB of it."""
        return f"size={self.tmp_bytes},nr_inodes={max(MIN_INODES, self.tmp_bytes // 4096)}"


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """The access of a program beyond the system's programs."""

    read: tuple[str, ...] = ()
    """Files and directories that it may read, under their own paths."""
    write: tuple[str, ...] = ()
    """Files and directories that it may change."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Its environment besides PATH, HOME and LANG, which may contain secrets."""
    network: bool = False
    limits: ResourceLimits = ResourceLimits()


def environment(isolation: SandboxPolicy) -> dict[str, str]:
    """Return the environment of the program."""
    return {"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8", **isolation.env}


def bwrap_arguments(isolation: SandboxPolicy, *, gate: int, info: int, seccomp: int | None) -> list[str]:
    """Return bubblewrap's arguments for a policy; `gate`, `info` and `seccomp` are inherited file
    descriptors.

    They do not contain the environment, since any user of the machine can read a process's arguments.
    """
    arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    arguments += [
        "--uid",
        str(NOBODY_UID),
        "--gid",
        str(NOBODY_UID),
        "--cap-drop",
        "ALL",
        "--hostname",
        "sandbox",
    ]
    arguments += ["--share-net"] if isolation.network else []
    for path in SYSTEM_PATHS:
        arguments += _system(path)
    for path in (*SETTINGS, *(NETWORK_SETTINGS if isolation.network else ())):
        arguments += ["--ro-bind-try", os.path.realpath(path), path]
    arguments += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    arguments += ["--size", str(isolation.limits.tmp_bytes), "--tmpfs", "/tmp"]
    for path in sorted({*isolation.read, *isolation.write}):  # an outer folder before what is in it
        arguments += ["--bind" if path in isolation.write else "--ro-bind", path, path]
    arguments += ["--remount-ro", "/", "--chdir", "/tmp"]
    arguments += [] if seccomp is None else ["--seccomp", str(seccomp)]
    return [*arguments, "--info-fd", str(info), "--block-fd", str(gate), "--"]


def _system(path: str) -> list[str]:
    """Return the arguments for a system directory, which may be a link into /usr."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return []
    return ["--symlink", os.readlink(path), path] if stat.S_ISLNK(mode) else ["--ro-bind", path, path]


def policy_errors(policies: Iterable[tuple[str, SandboxPolicy]]) -> Iterator[str]:
    """Yield the errors in the declared paths of several tools, each with its name.

    A path inside a directory that a tool may change is an error: that tool could create a link there, which
    would give the next program access to the link's target.
    """
    policies = list(policies)
    writable = [Path(path) for _, isolation in policies for path in isolation.write]
    for name, isolation in policies:
        for path in (*isolation.read, *isolation.write):
            here = Path(path)
            if not here.is_absolute():
                yield f"{name}: {path} is not an absolute path."
            elif Path(os.path.realpath(path)) != here:
                yield f"{name}: {path} leads to {os.path.realpath(path)}; declare that instead."
            elif not here.exists():
                yield f"{name}: there is no {path}."
            elif here == Path("/") or any(here.is_relative_to(root) for root in _PROTECTED):
                yield f"{name}: {path} cannot be given to a tool."
            else:
                yield from (
                    f"{name}: {path} is within {outer}, which a tool may change."
                    for outer in writable
                    if here != outer and here.is_relative_to(outer)
                )


_PROTECTED = (Path("/proc"), Path("/sys"), Path("/dev"))
