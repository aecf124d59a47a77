"""Tokens of a response: the upstream's report, or an estimate without one."""

import pytest

from qproxy.telemetry import RelayRecord, RequestRecord, ResponseTokens
from qproxy.wire.events import (
    EncryptedReasoning,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Usage,
)
from qproxy.wire.token_ratios import PromptSize, TokenEstimate

PROMPT = TokenEstimate(50, 0.25)
TEXT = TextDelta("a" * 400)

RESPONSES = {
    "no report": ([TEXT], (50, 100), True),
    "a report": ([TEXT, Usage(7, 9, 16)], (7, 9), False),
    "a report of nothing": ([TEXT, Usage()], (50, 100), True),
    "a report of the prompt only": ([Usage(7, 0, 7), TEXT], (7, 100), True),
    "a report without any text": ([Usage(7, 0, 7)], (7, 0), False),
    "every kind of text": (
        [ReasoningDelta("aaaa"), RefusalDelta("éé"), ToolCallStart(0, "id", "name"),
            ToolCallArgumentsDelta(0, "{}  ")],
        (50, 4),
        True,
    ),
    "ciphertext, which is no text": ([EncryptedReasoning("a" * 400)], (50, 0), True),
    "half a character": ([TextDelta("\ud800")], (50, 1), True),
}  # fmt: skip


@pytest.mark.parametrize(("events", "tokens", "estimated"), RESPONSES.values(), ids=RESPONSES)
def test_one_response(events, tokens, estimated):
    """Each count is the reported one, or a marked estimate."""
    response = ResponseTokens(PROMPT)
    response.add(events)
    assert (response.prompt, response.completion) == tokens
    assert response.is_estimated is estimated


def test_several_responses():
    """A request with a reported and an unreported round costs the sum of both."""
    first, second = ResponseTokens(PROMPT), ResponseTokens(PROMPT.resized(PromptSize(399)))
    first.add([TEXT, Usage(60, 90, 150)])
    second.add([TEXT])
    relay = RelayRecord(usage=first.usage, responses=[first, second])
    record = RequestRecord("req_1", "POST", "/", relay=relay)
    assert (record.tokens(), record.is_estimated) == ((160, 190), True)
    assert record.to_json()["tokens_estimated"] is True
    relay.responses.pop()
    assert (record.tokens(), record.is_estimated) == ((60, 90), False)
    assert "tokens_estimated" not in record.to_json()
