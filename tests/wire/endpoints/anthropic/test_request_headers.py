"""Headers of a request to `/v1/messages` that change its turn."""

import pytest

from qproxy.wire.endpoints.anthropic.request_headers import apply_headers
from tests.wire.endpoints.anthropic.test_request import decode

TOOLS = [{"name": "f", "input_schema": {"type": "object"}}]
BETA = {"anthropic-beta": "claude-code-20250219, fine-grained-tool-streaming-2025-05-14"}
SESSION = {"x-claude-code-session-id": "s-1"}
STREAMED = {"stream": True, "tools": TOOLS}
HEADERS = {
    "a session": (SESSION, {}, "s-1", {}),
    "a session in the body": (SESSION, {"metadata": {"user_id": '{"session_id":"s-2"}'}}, "s-2", {}),
    "streamed arguments": (BETA, STREAMED, "", {"tool_stream": True}),
    "both": ({**BETA, **SESSION}, STREAMED, "s-1", {"tool_stream": True}),
    "a body that says otherwise": (BETA, {**STREAMED, "tool_stream": False}, "", {"tool_stream": False}),
    "without a stream": (BETA, {"tools": TOOLS}, "", {}),
    "without tools": (BETA, {"stream": True}, "", {}),
    "other betas": ({"anthropic-beta": "context-1m-2025-08-07,,x"}, STREAMED, "", {}),
    "none": ({}, STREAMED, "", {}),
}


@pytest.mark.parametrize(("headers", "body", "session", "params"), HEADERS.values(), ids=HEADERS)
def test_headers(headers, body, session, params):
    """The session and the betas that a Qwen server supports are applied; the body takes precedence."""
    turn = apply_headers(decode(max_tokens=9, **body), headers.get)
    assert (turn.session, turn.params) == (session, {"max_tokens": 9, **params})
