"""Commands: programs as tools.

The arguments arrive as JSON on standard input, and by name in argv where it says `{name}`: each stands for the
value's text within its own word, never for more words, and no shell reads any of it.  A word that names an argument
which was not given is left out.  The result is standard output; an exit code other than 0 is an error, which the
model reads together with the end of standard error.
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
"""Of the output of a program that failed or said too much."""
MAX_ARGUMENT_BYTES = 100_000
"""Linux takes 131,072 bytes a word."""


class CommandTool:
    """What runs when the model calls a command: a program, started anew for each call."""

    def __init__(
        self,
        argv: Sequence[str],
        launcher: Launcher,
        isolation: SandboxPolicy,
        *,
        names: frozenset[str],
        limit: int,
        places: trio.CapacityLimiter,
    ) -> None:
        self._argv = argv
        self._launcher = launcher
        self._policy = isolation
        self._names = names
        self._max_output = limit
        self._placeholders = places

    def __repr__(self) -> str:
        return f"<Command {self._argv[0]}>"

    async def __call__(self, arguments: dict[str, Any]) -> str:
        argv = substitute_arguments(self._argv, arguments, self._names)
        given = json_codec.dumps(arguments)
        try:
            async with self._placeholders, self._launcher(argv, self._policy) as child:
                finished = await communicate(child, given, limit=self._max_output)
        except OSError as error:  # no such program, where there is no sandbox to say so
            raise ToolError(f"The program cannot be started: {error.strerror}.") from None
        return format_result(finished, self._max_output)


def substitute_arguments(
    argv: Sequence[str], arguments: Mapping[str, Any], names: frozenset[str]
) -> list[str]:
    """argv with the arguments in their places; `names` are those that the schema knows, others stay as they are."""
    placed = []
    for word in argv:
        wanted = [name for name in _PLACEHOLDER.findall(word) if name in names]
        if all(name in arguments for name in wanted):
            placed.append(_PLACEHOLDER.sub(lambda match: _text(match, arguments, names), word))
    for word in placed:
        if "\0" in word:
            raise ToolError("An argument holds a NUL character, which a program cannot be given.")
        if len(word.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT_BYTES:
            raise ToolError(f"An argument is longer than {MAX_ARGUMENT_BYTES} bytes.")
    return placed


def _text(match: re.Match[str], arguments: Mapping[str, Any], names: frozenset[str]) -> str:
    if match[1] not in names:
        return match[0]
    value = arguments[match[1]]
    text = value if isinstance(value, str) else json_codec.dumps(value).decode()
    return text.encode("utf-8", "replace").decode()


def format_result(finished: CompletedProcess, limit: int) -> str:
    """What the model reads of a program that ended; ToolError where it failed."""
    output = finished.output.decode("utf-8", "replace").rstrip("\n")
    if finished.truncated:
        raise ToolError(
            f"The tool said more than {limit} bytes and was stopped. It began:\n{output[:MAX_STDERR_SHOWN]}"
        )
    if finished.code != 0:
        errors = finished.errors.decode("utf-8", "replace").strip()
        how = f"exit code {finished.code}" if finished.code > 0 else f"signal {-finished.code}"
        raise ToolError(
            "\n".join(filter(None, [f"The tool failed ({how}).", output[:MAX_STDERR_SHOWN], errors]))
        )
    return output or "(no output)"


def missing_program(program: str, *, fenced: bool) -> str | None:
    """What is wrong with the name of a program, as far as can be seen from outside the sandbox."""
    found = shutil.which(program, path=PATH) if "/" not in program else program
    if found is None or not Path(found).exists():
        elsewhere = shutil.which(program)
        hint = f"; {elsewhere} is not in the sandbox unless `read` names its folder" if elsewhere else ""
        return f"there is no program {program!r} in {PATH}{hint}." if fenced or not elsewhere else None
    return None
