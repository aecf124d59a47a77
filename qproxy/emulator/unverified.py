"""Points that the documentation of Qwen's servers leaves open, each with a switch.

The defaults are the natural reading of the documentation. `qproxy emulator --assume NAME=VALUE` changes one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

CHOICES = {
    "ciphertext_delta": ("alone", "next", "finish", "pieces"),
    "spoken_text": ("content", "transcript", "both"),
}
"""The values of those that are words."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """The emulator's behavior where that of the real servers is not known."""

    cache_lookback: int = 20
    """Content blocks that a breakpoint looks back for a cached prefix, its own among them."""
    cache_breakpoints: int = 4
    """The most breakpoints of a request; of more the last ones count."""
    cache_minimum: int = 1024
    """The least tokens of a prefix that an explicit breakpoint caches."""
    implicit_cache: bool = True
    """Whether requests without cache parameters have a cache, which the documentation does not promise."""
    implicit_minimum: int = 1024
    """The least tokens of a prefix for that cache; older pages say 256."""
    cache_ttls: str = "5m 1h"
    """The words for the times to live of `prompt_cache_options`, the shorter one first."""
    ciphertext_delta: str = "alone"
    """The delta with `encrypted_content`: `alone`, `next` (with a text or call), `finish`, or `pieces`."""
    forced_tool_while_thinking: bool = True
    """Whether Qwen4 takes a forced tool while it thinks."""
    budget: bool = True
    """Whether Qwen4 takes `thinking_budget` without an effort."""
    wav_header: bool = False
    """Whether the audio of a chat begins with the header of a WAV file."""
    spoken_text: str = "both"
    """Where the text of a spoken answer is: `content`, `transcript` (of `audio`), or `both`."""
    effort_against_switch: bool = True
    """Whether Qwen4 takes an effort beside a contradictory `enable_thinking`, which then decides."""

    def assume(self, assignment: str) -> Unverified:
        """Return this with one NAME=VALUE changed. Raise ValueError for an unknown name or value."""
        name, _, text = assignment.partition("=")
        kinds = {item.name: type(getattr(self, item.name)) for item in fields(self)}
        if name not in kinds:
            raise ValueError(f"there is no {name!r}; known are {', '.join(kinds)}")
        value: Any = text
        if kinds[name] is bool:
            if text not in ("yes", "no"):
                raise ValueError(f"{name} is yes or no, not {text!r}")
            value = text == "yes"
        elif kinds[name] is int:
            value = int(text)
        elif text not in CHOICES.get(name, (text,)):
            raise ValueError(f"{name} is one of {', '.join(CHOICES[name])}, not {text!r}")
        return replace(self, **{name: value})


NATURAL = Unverified()
