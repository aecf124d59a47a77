"""Lua scripts: files beside this module, loaded at each connection and called by their digest.

Scripts rather than a library of functions (`FUNCTION`): old and new versions run side by side on one server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qproxy.backends.redis.connection import Argument


@dataclass(frozen=True)
class Script:
    """One script, which uses the one key that it is given and no other."""

    text: str

    @cached_property
    def digest(self) -> str:
        """Its name on the server; SHA-1 is what `EVALSHA` knows it by."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def script_command(script: Script, key: str, *arguments: Argument) -> tuple[Argument, ...]:
    """Return the command that runs a script on its key."""
    return ("EVALSHA", script.digest, 1, key, *arguments)


def load_script(name: str) -> Script:
    """Return the script of a file."""
    return Script(Path(__file__).with_name(f"{name}.lua").read_text())
