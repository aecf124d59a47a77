"""Programs as tools.

The program receives its arguments as JSON on standard input, and in argv in place of `{name}`: each is
substituted within its word, never adds words, and passes through no shell. A word with a missing argument is
dropped. The result is standard output; an exit code other than 0 is an error, which the model receives with
the end of standard error.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from qproxy.sandbox import CompletedProcess, Launcher, SandboxPolicy, communicate
from qproxy.sandbox.policy import PATH
from qproxy.tools.tool import ToolError
from qproxy.wire import json_codec

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
MAX_STDERR_SHOWN = 2000
"""Characters of output that are shown of a program that failed or exceeded the limit."""
MAX_ARGUMENT_BYTES = 100_000
"""Bytes of one word of argv; Linux allows 131,072."""


class CommandTool:
    """A tool's function that runs a program, one process per call."""

    def __init__(
        self,
        argv: Sequence[str],
        launcher: Launcher,
        isolation: SandboxPolicy,
        *,
        names: frozenset[str],
        limit: int,
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._argv = argv
        self._launcher = launcher
        self._policy = isolation
        self._names = names
        self._max_output = limit
        self._limiter = limiter

    def __repr__(self) -> str:
        return f"<CommandTool {self._argv[0]}>"

    async def __call__(self, arguments: dict[str, Any]) -> str:
        argv = substitute_arguments(self._argv, arguments, self._names)
        stdin = json_codec.dumps(arguments)
        try:
            async with self._limiter, self._launcher(argv, self._policy) as child:
                finished = await communicate(child, stdin, limit=self._max_output)
        except OSError as error:  # for example, a missing program without a sandbox
            raise ToolError(f"Cannot start the program: {error.strerror}.") from None
        return format_result(finished, self._max_output)


def substitute_arguments(
    argv: Sequence[str], arguments: Mapping[str, Any], names: frozenset[str]
) -> list[str]:
    """Return argv with the arguments substituted; placeholders outside `names`, the schema's names, stay as
    they are."""
    words = []
    for word in argv:
        placeholders = [name for name in _PLACEHOLDER.findall(word) if name in names]
        if all(name in arguments for name in placeholders):
            words.append(_PLACEHOLDER.sub(lambda match: _text(match, arguments, names), word))
    for word in words:
        if "\0" in word:
            raise ToolError("An argument contains a NUL character, which a program cannot receive.")
        if len(word.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT_BYTES:
            raise ToolError(f"An argument is longer than {MAX_ARGUMENT_BYTES} bytes.")
    return words


def _text(match: re.Match[str], arguments: Mapping[str, Any], names: frozenset[str]) -> str:
    if match[1] not in names:
        return match[0]
    value = arguments[match[1]]
    text = value if isinstance(value, str) else json_codec.dumps(value).decode()
    return text.encode("utf-8", "replace").decode()


def format_result(finished: CompletedProcess, limit: int) -> str:
    """Return the result of a program for the model. Raise ToolError if it failed."""
    output = finished.output.decode("utf-8", "replace").rstrip("\n")
    if finished.truncated:
        raise ToolError(
            f"The tool's output exceeded {limit} bytes and it was killed. Output so far:\n"
            f"{output[:MAX_STDERR_SHOWN]}"
        )
    if finished.code != 0:
        errors = finished.errors.decode("utf-8", "replace").strip()
        status = f"exit code {finished.code}" if finished.code > 0 else f"signal {-finished.code}"
        raise ToolError(
            "\n".join(filter(None, [f"The tool failed ({status}).", output[:MAX_STDERR_SHOWN], errors]))
        )
    return output or "(no output)"


def missing_program(program: str, *, sandboxed: bool) -> str | None:
    """Return the error for a program that does not exist, as seen from outside the sandbox, or None."""
    path = shutil.which(program, path=PATH) if "/" not in program else program
    if path is None or not Path(path).exists():
        elsewhere = shutil.which(program)
        hint = (
            f"; {elsewhere} is not in the sandbox unless `read` contains its directory" if elsewhere else ""
        )
        return f"no program {program!r} in {PATH}{hint}." if sandboxed or not elsewhere else None
    return None
