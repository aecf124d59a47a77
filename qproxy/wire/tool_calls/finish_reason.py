"""A stage that ends each choice once, last, with the reason that matches what was sent.

    calls sent | upstream reason                          | emitted reason
    yes        | stop, tool_calls, function_call, "", ... | tool_calls
    yes        | length, content_filter                   | the same
    no         | tool_calls, function_call, "", ...       | stop
    any        | error_finish                             | an error
    any        | nothing, and the stream just ended       | an error: silence would look like success

Events after a choice's end are dropped, except usage and search results, which belong to no choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import (
    ApprovalRequest,
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ExtraFields,
    SearchInfo,
    ServerToolCall,
    ServerToolList,
    ServerToolResult,
    StreamDone,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Usage,
)

KEPT_REASONS = ("length", "content_filter")

_OF_NO_CHOICE = Usage | ServerToolCall | ServerToolResult | ServerToolList | ApprovalRequest | SearchInfo
"""Events of the whole response."""


class FinishReasonStage:
    """A stage that ends each choice once, with the reason that matches what was sent."""

    def __init__(self, repairs: Counter[str], *, wait: bool = False, choices: int = 1) -> None:
        """Set `wait` if ciphertext of the reasoning may follow a choice's finish reason.

        `choices` is how many were requested.
        """
        self._repairs = repairs
        self._choices = choices
        self._wait = wait
        self._waiting: dict[int, ChoiceFinished] = {}
        """Finishes that the next event other than ciphertext releases."""
        self._open: dict[int, bool] = {}
        """Unfinished choices, and whether calls were sent in each."""
        self._finished: set[int] = set()
        self._done = False
        self._failed = False

    def feed(self, item: Event) -> Iterable[Event]:
        if (
            isinstance(item, TextDelta | ToolCallArgumentsDelta)
            and item.choice in self._open
            and not self._failed
        ):
            return (item,)  # the usual case
        return self._decide(item)

    def _decide(self, item: Event) -> Iterator[Event]:
        if self._failed:
            return
        if self._waiting:
            if isinstance(item, EncryptedReasoning) and item.choice in self._waiting:
                yield item
                return
            yield from self._release()
        of_no_choice = isinstance(item, ExtraFields) and item.level != "delta"
        if of_no_choice or isinstance(item, _OF_NO_CHOICE):
            yield item
        elif isinstance(item, StreamDone):
            if item.implied and self._is_incomplete():
                return  # a requested choice is missing
            yield from self._end(item)
            yield item
        elif isinstance(item, StreamFailed):
            if self._is_incomplete():  # after the end of every choice it changes nothing
                self._failed = True
                yield item
        elif isinstance(item, ChoiceFinished):
            yield from self._finish(item)
        elif item.choice in self._finished:
            self._repairs["after_finish"] += 1
        else:
            self._open[item.choice] = self._open.get(item.choice, False) or isinstance(item, ToolCallStart)
            yield item

    def _finish(self, item: ChoiceFinished) -> Iterator[Event]:
        if item.choice in self._finished:
            self._repairs["finish_repeated"] += 1
            return
        if item.reason == "error_finish":
            self._failed = True
            yield StreamFailed(UpstreamError("The upstream aborted the response with an error."))
            return
        if item.reason in ("", "null") and not self._done:
            return  # some servers send these while generating
        calls = self._open.pop(item.choice, False)
        self._finished.add(item.choice)
        reason = item.reason if item.reason in KEPT_REASONS else "tool_calls" if calls else "stop"
        if reason != item.reason:
            self._repairs["finish_corrected"] += 1
        finish = ChoiceFinished(reason, item.choice, item.matched)
        if self._wait and not self._done:
            self._waiting[item.choice] = finish
        else:
            yield finish

    def _release(self) -> Iterator[Event]:
        waiting, self._waiting = self._waiting, {}
        yield from waiting.values()

    def _is_incomplete(self) -> bool:
        """Return whether a choice has not ended; one that is missing is complete once `[DONE]` came."""
        missing = not self._done and len(self._finished) < self._choices
        return bool(self._open) or not self._finished or missing

    def _end(self, item: StreamDone) -> Iterator[Event]:
        """End all unfinished choices because `[DONE]` came, those too that sent nothing beside others."""
        self._done = True
        silent = set(item.started).difference(self._finished) if self._open or self._finished else set()
        for choice in sorted(silent.union(self._open)):
            self._repairs["finish_missing"] += 1
            yield from self._finish(ChoiceFinished("", choice))

    def close(self) -> Iterator[Event]:
        """Yield an error at the end of the bytes unless everything had ended."""
        yield from self._release()
        if not self._failed and not self._done and self._is_incomplete():
            self._failed = True
            message = "The upstream closed the connection before the response was complete."
            yield StreamFailed(UpstreamError(message, retry=RetryHint.ONCE))
