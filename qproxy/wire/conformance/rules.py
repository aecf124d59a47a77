"""The rules of the contract, and what becomes of a client where one is broken."""

from __future__ import annotations

from typing import NamedTuple

RULES: dict[str, str] = {
    "content-type": "clients choose by it between a stream and a whole answer",
    "json": "what cannot be read ends the client's request with an exception",
    "envelope": "SDKs build typed objects from id, object, created and model",
    "role": "clients that add up deltas take the message's role from its first one",
    "finish": "a silent end looks like success: the client cannot tell a whole answer from one that was cut",
    "reason": "agents run tools exactly when finish_reason is tool_calls",
    "done": "clients wait for data: [DONE], some until their time limit",
    "call-index": "fragments are put together by index: a wrong one mixes two calls or loses one",
    "call-id": "results are matched to calls by id; openai-python concatenates one that is sent twice",
    "call-name": "the name comes whole in a call's first fragment; openai-python concatenates more of it",
    "call-type": "clients ignore calls that are not of type function",
    "call-order": "openai-python's stream helper takes a call for whole when the next one begins",
    "arguments": "clients parse the arguments as a JSON object, in the end at least",
    "usage": "clients that did not ask for usage take choices[0] of every chunk; those that did wait for the last one",
    "message": "clients read choices[0].message with its role and content",
    "models": "clients choose a model from data[].id",
    "vectors": "openai-python asks for base64 unless told otherwise, and decodes it as 32-bit floats",
    "error": "clients read error.message, type, param and code, and decide by the status whether to try again",
}
"""By name: what a client does with it, so what a breach costs."""


class Violation(NamedTuple):
    """One rule that an answer breaks."""

    rule: str
    message: str
    """What was seen."""
