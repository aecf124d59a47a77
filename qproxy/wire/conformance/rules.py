"""The rules of the contract, and what happens to a client if one is broken."""

from __future__ import annotations

from typing import NamedTuple

RULES: dict[str, str] = {
    "content-type": "clients choose by it between a stream and a whole response",
    "json": "invalid JSON ends the client's request with an exception",
    "envelope": "SDKs build typed objects from id, object, created and model",
    "role": "clients that merge deltas take the message's role from the first one",
    "finish": "a silent end looks like success: the client cannot detect a truncated response",
    "reason": "agents run tools exactly when finish_reason is tool_calls",
    "done": "clients wait for data: [DONE], some until their timeout",
    "call-index": "fragments are put together by index: a wrong one mixes two calls or loses one",
    "call-id": "results are matched to calls by id; openai-python concatenates one that is sent twice",
    "call-name": "the whole name is in a call's first fragment; openai-python concatenates further ones",
    "call-type": "clients ignore calls that are not of type function",
    "call-order": "openai-python's stream helper takes a call for complete when the next one begins",
    "arguments": "clients parse the complete arguments as a JSON object",
    "usage": "clients that did not ask for usage take choices[0] of every chunk; those that did wait for the "
    "last one",
    "message": "clients read choices[0].message with its role and content",
    "models": "clients choose a model from data[].id",
    "vectors": "openai-python requests base64 by default, and decodes it as 32-bit floats",
    "error": "clients read error.message, type, param and code, and decide by the status whether to retry",
}
"""By name: how a client uses it, and so the cost of a violation."""


class Violation(NamedTuple):
    """One rule that a response breaks."""

    rule: str
    message: str
    """A description of the violation."""
