"""The program that sets the limits of a sandbox's /tmp from outside: `remount.py USER PID OPTIONS`.

bubblewrap has no option for the number of files in a tmpfs, whose kernel memory its size does not count. So
while the sandbox is blocked at its gate, this program waits for its mounts, enters their namespaces as the
user who created them, and remounts /tmp. It is a separate program because only a single-threaded process can
enter a user namespace.

`setns(2)`, `ioctl_ns(2)`, `mount(2)`, `tmpfs(5)`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import time

NS_GET_USERNS = 0xB701
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_NOSUID, MS_NODEV, MS_REMOUNT = 2, 4, 32


def main(user: str, pid: str, options: str) -> None:
    """Remount /tmp of the sandbox that `user` created and whose first process is `pid`. Raise OSError."""
    if os.geteuid() == 0:  # not earlier: that user may be unable to read the interpreter
        os.setgroups([])
        os.setresgid(int(user), int(user), int(user))
        os.setresuid(int(user), int(user), int(user))
    libc = ctypes.CDLL(None, use_errno=True)
    while not is_tmp_mounted(pid):
        time.sleep(0.001)
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    enter_namespace(libc, fcntl.ioctl(mounts, NS_GET_USERNS), CLONE_NEWUSER)
    flags = MS_REMOUNT | MS_NOSUID | MS_NODEV
    while True:
        enter_namespace(libc, mounts, CLONE_NEWNS)
        if libc.mount(b"tmpfs", b"/tmp", None, flags, options.encode()) == 0:
            return
        if (
            ctypes.get_errno() != errno.ENOENT
        ):  # ENOENT: the old root, without a /tmp, still covers the new one
            raise OSError(ctypes.get_errno(), "mount")
        time.sleep(0.001)


def enter_namespace(libc: ctypes.CDLL, namespace: int, kind: int) -> None:
    """Enter a namespace. Raise OSError."""
    if libc.setns(namespace, kind) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def is_tmp_mounted(pid: str) -> bool:
    """Return whether a process has a sized tmpfs at /tmp, which exists only in the last root of
    bubblewrap."""
    with open(f"/proc/{pid}/mountinfo") as mounts:
        lines = [line.split() for line in mounts]
    return any(line[4] == "/tmp" and "size=" in line[-1] for line in lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
