"""Sandboxed execution of untrusted programs with bubblewrap.

Here: starting one program, its input and output, its limits and its end. Not here: tools and their callers
(`tools`).

A `SandboxPolicy` is a plain record; `policy.bwrap_arguments` turns it into bubblewrap's arguments and
`seccomp.seccomp_program` into a system-call filter, both pure. `Bubblewrap` starts the program and blocks it
until its limits are set from outside (`prlimit`), so no helper, shell or interpreter of qproxy runs inside.
The end of its PID namespace kills every process that it started.

If no sandbox is available, `SandboxUnavailable` gives the reason; there is no fallback to running without
one. `UnsandboxedLauncher` is for an operator who sets `sandbox = "none"`.

Sandbox guarantees and limits: docs/security.md.
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
