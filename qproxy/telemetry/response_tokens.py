"""Tokens of one upstream response: as its server reports them, otherwise estimated from the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qproxy.wire.events import (
    Event,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Usage,
)
from qproxy.wire.token_ratios import TokenEstimate

_WITH_TEXT = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallArgumentsDelta)


@dataclass(eq=False, slots=True)
class ResponseTokens:
    """The tokens of one upstream response, as far as it has arrived."""

    estimate: TokenEstimate
    text_bytes: int = 0
    """UTF-8 bytes of its text, reasoning and tool calls."""
    usage: Usage | None = None
    """The last report of its server, which may be of a part only."""

    def add(self, events: Iterable[Event]) -> None:
        """Count some events of the response."""
        for event in events:
            if isinstance(event, _WITH_TEXT):
                text = event.text
                self.text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            elif isinstance(event, ToolCallStart):
                self.text_bytes += len(event.name)
            elif isinstance(event, Usage):
                self.usage = event

    @property
    def prompt(self) -> int:
        """Return the tokens of the prompt; a report of none is none."""
        reported = 0 if self.usage is None else self.usage.prompt_tokens
        return reported or self.estimate.prompt

    @property
    def completion(self) -> int:
        """Return the tokens of the response; a report of none is none, unless there is no text."""
        reported = 0 if self.usage is None else self.usage.completion_tokens
        return reported or self.estimate.text_tokens(self.text_bytes)

    @property
    def is_estimated(self) -> bool:
        """Return whether a count is an estimate."""
        usage = self.usage
        if usage is None:
            return self.estimate.prompt > 0 or self.text_bytes > 0
        lacks_prompt = self.estimate.prompt > 0 and not usage.prompt_tokens
        return lacks_prompt or (self.text_bytes > 0 and not usage.completion_tokens)
