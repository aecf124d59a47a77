"""A system-call filter for sandboxed programs, as the kernel's classic BPF.

It closes three gaps of namespaces, mounts and limits: memory that no limit counts (System V memory, memfd),
address families without a namespace (vsock, netlink's relatives, crypto), and parts of the kernel that no
tool needs and that have the most vulnerabilities. Everything else is allowed: this is the second layer of
isolation, not the first.

`seccomp(2)`, `linux/filter.h`; numbers from `asm/unistd_64.h` and `asm-generic/unistd.h`.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
X32 = 0x40000000
NAMESPACES = 0x7E020000
"""The flags of clone for new namespaces."""
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (the C library uses it to list addresses)."""


class SyscallNumbers(NamedTuple):
    """The system call numbers of one architecture."""

    architecture: int
    socket: int
    clone: int
    clone3: int
    denied: tuple[int, ...]


_COMMON = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447)
"""io_uring_*, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_getfd, mount_setattr,
memfd_secret."""

MACHINES = {
    "x86_64": SyscallNumbers(
        0xC000003E, 41, 56, 435,
        (
            29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, 240,  # shm*, sem*, msg*, mq_open
            319, 101, 310, 311, 312, 248, 249, 250,  # memfd_create, ptrace, process_vm_*, kcmp, keys
            321, 298, 323, 300,  # bpf, perf_event_open, userfaultfd, fanotify_init
            165, 166, 155, 161, 272, 308, 303, 304,
            # mounts, roots, namespaces, *_handle_at
            246, 320, 175, 313, 176, 103, 163, 167, 168, 169, 179,
            # kexec, modules, syslog, swap, reboot
            164, 227, 159, 305, 170, 171, 154, 172, 173,  # clocks, names, modify_ldt, iopl, ioperm
            *_COMMON,
        ),
    ),
    "aarch64": SyscallNumbers(
        0xC00000B7, 198, 220, 435,
        (
            194, 195, 196, 197, 190, 191, 192, 193, 186, 187, 188, 189, 180,
            279, 117, 270, 271, 272, 217, 218, 219,
            280, 241, 282, 262,
            40, 39, 41, 51, 97, 268, 264, 265,
            104, 294, 105, 273, 106, 116, 89, 224, 225, 142, 60,
            170, 112, 171, 266, 161, 162,
            *_COMMON,
        ),
    ),
}  # fmt: skip


def seccomp_program(machine: str) -> bytes | None:
    """Return the filter for a machine (`os.uname().machine`), or None for an unknown architecture."""
    numbers = MACHINES.get(machine)
    if numbers is None:
        return None
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, numbers.architecture), (RETURN, 0, 0, KILL)]
    steps += [(LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        steps += _jump_unless(AT_LEAST, X32, errno.ENOSYS)
    # A filter cannot read the flags of clone3, which are in memory, unlike those of clone.
    steps += _jump_unless(EQUAL, numbers.clone3, errno.ENOSYS)
    for number in numbers.denied:
        steps += _jump_unless(EQUAL, number, errno.EPERM)
    steps += [(EQUAL, 0, 3, numbers.clone), (LOAD, 0, 0, FIRST_ARGUMENT)]
    steps += [*_jump_unless(ANY_BIT, NAMESPACES, errno.EPERM)]
    steps += [
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, len(FAMILIES) + 2, numbers.socket),
        (LOAD, 0, 0, FIRST_ARGUMENT),
    ]
    steps += [(EQUAL, len(FAMILIES) - place, 0, family) for place, family in enumerate(FAMILIES)]
    steps += [(RETURN, 0, 0, ERROR | errno.EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _jump_unless(test: int, value: int, error: int) -> list[tuple[int, int, int, int]]:
    """Return two instructions that make the call fail with `error` if the test holds."""
    return [(test, 0, 1, value), (RETURN, 0, 0, ERROR | error)]
