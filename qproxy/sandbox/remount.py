"""The program that sets the limits of a sandbox's /tmp from outside: `remount.py USER PID OPTIONS`.

bubblewrap knows no option for the number of files of a tmpfs, whose kernel memory its size does not count.  So while
the sandbox waits at its gate this program waits until its mounts are made, enters the namespaces that they belong to,
as the user who made them, and remounts /tmp.  It is a program of its own because only a process of one thread can
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
    """Remount /tmp of the sandbox that `user` made and whose first process is `pid`; raises OSError."""
    if os.geteuid() == 0:  # only now: the interpreter may be where that user may not read
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
        if ctypes.get_errno() != errno.ENOENT:  # else the old root, without a /tmp, still covers the new one
            raise OSError(ctypes.get_errno(), "mount")
        time.sleep(0.001)


def enter_namespace(libc: ctypes.CDLL, namespace: int, kind: int) -> None:
    """Enter a namespace; raises OSError."""
    if libc.setns(namespace, kind) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def is_tmp_mounted(pid: str) -> bool:
    """Return whether a process sees a tmpfs with a size at /tmp: it is the last root that bubblewrap makes."""
    with open(f"/proc/{pid}/mountinfo") as mounts:
        lines = [line.split() for line in mounts]
    return any(line[4] == "/tmp" and "size=" in line[-1] for line in lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
