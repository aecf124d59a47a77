"""Running a program that is not trusted: fenced by the kernel, through bubblewrap.

Here: one program, started, fed, bounded and ended.  Not here: what a tool is or who may call it (`tools`).

The idea: what a program may do is a `SandboxPolicy`, a plain record; `policy.bwrap_arguments` turns it into bubblewrap's words and
`seccomp.seccomp_program` into a filter of system calls, both pure; `Bubblewrap` starts the program behind them, and holds it
at the gate until its limits are set from outside (`prlimit`), so that no helper, shell or interpreter of ours is
inside.  Its end is the end of its pid namespace: nothing that it started outlives it.

Where no sandbox can be made, `SandboxUnavailable` says why; nothing falls back to running without one.  `UnsandboxedLauncher` is for the
operator who writes `sandbox = "none"`.

What the fence keeps and what it does not: docs/security.md.
"""

from __future__ import annotations

from qproxy.sandbox.bubblewrap import Bubblewrap, SandboxUnavailable, find_bubblewrap
from qproxy.sandbox.detect import SystemSandbox
from qproxy.sandbox.policy import ResourceLimits, SandboxPolicy
from qproxy.sandbox.process import ChildProcess, CompletedProcess, Launcher, UnsandboxedLauncher, communicate

__all__ = [
    "Bubblewrap",
    "ChildProcess",
    "CompletedProcess",
    "Launcher",
    "ResourceLimits",
    "SandboxPolicy",
    "SandboxUnavailable",
    "SystemSandbox",
    "UnsandboxedLauncher",
    "communicate",
    "find_bubblewrap",
]  # fmt: skip
