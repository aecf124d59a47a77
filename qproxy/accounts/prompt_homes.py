"""The accounts whose prompt caches have the beginnings of conversations, as far as this process sent them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MAX_PROMPTS = 20_000
MAX_AGE = 3600.0
"""Seconds after which no cache has a prompt."""


class PromptHomes:
    """The account of each prompt that was sent, by a key that is a hash."""

    def __init__(self) -> None:
        self._homes: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<PromptHomes of {len(self._homes)} prompts>"

    def find(self, keys: Sequence[bytes], now: float) -> str:
        """Return the account that has the longest of these beginnings of a prompt, "" if none has one."""
        for key in reversed(keys):
            name, sent = self._homes.get(key, ("", -MAX_AGE))
            if name and now - sent < MAX_AGE:
                return name
        return ""

    def remember(self, keys: Sequence[bytes], account: str, now: float) -> None:
        """Remember that an account has a whole prompt, of whose beginnings these are the keys."""
        if not keys:
            return
        self._homes.pop(keys[-1], None)
        self._homes[keys[-1]] = account, now
        if len(self._homes) > MAX_PROMPTS:
            self._homes.popitem(last=False)
