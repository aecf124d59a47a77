"""Words for how hard a model should think (`reasoning_effort`), in a model's own vocabulary.

OpenAI's words and Qwen's are one scale; a model takes some of them. What it takes is in the catalog, and
where it refuses one, in its refusal.
"""

from __future__ import annotations

import re

from qproxy.wire.models import ModelSpec

SCALE = ("none", "off", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
NO_THINKING = ("none", "off")
_LOWEST = "minimal"
_QUOTED = re.compile(r"""['"`]([a-z]{2,10})['"`]""")


def means_thinking(word: object, spec: ModelSpec) -> bool:
    """Return whether an effort asks for reasoning; the lowest does only if the model has a word for it."""
    if word == _LOWEST:
        return word in (spec.efforts or ()) or word in (spec.effort_map or ())
    return word not in NO_THINKING


def native_word(word: str, spec: ModelSpec) -> str:
    """Return the model's word; an unknown one passes, for the upstream to judge."""
    return word if word in (spec.efforts or ()) else (spec.effort_map or {}).get(word, word)


def nearest_word(word: object, message: str) -> str | None:
    """Return the effort nearest to the rejected one among those that an error quotes; None if it quotes
    none."""
    legal: list[str] = [name for name in _QUOTED.findall(message) if name in SCALE and name != word]
    if word not in SCALE or not legal:
        return None
    place = SCALE.index(str(word))
    return min(legal, key=lambda name: abs(SCALE.index(name) - place))
