"""Requests of real clients: each decodes, and each session's prompts share their prefix."""

import json
from pathlib import Path

import pytest

from qproxy.wire.endpoints import anthropic
from tests.defaults import DECODE_LIMITS
from tests.wire.endpoints.anthropic.test_conversation import without_markers

FOLDER = Path(__file__).parents[3] / "recorded" / "anthropic"
FILES = sorted(path for path in FOLDER.glob("*.json") if path.stem != "claude-code-tools")
TOOLS = {tool["name"]: tool for tool in json.loads((FOLDER / "claude-code-tools.json").read_text())["tools"]}
NAMED = {"metadata", "context_management", "content.document"}
"""All names that are dropped from these requests, except names of tools."""


def complete_body(body):
    """Return a recorded body with the schemas that the recording truncated."""
    for tool in body.get("tools", ()):
        if tool.get("input_schema") == "…":
            tool["input_schema"] = TOOLS.get(tool["name"], {"input_schema": {"type": "object"}})[
                "input_schema"
            ]
    return body


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded(path):
    """A client's request decodes, and nothing that matters is dropped."""
    earlier: list[str] = []
    for request in json.loads(path.read_text())["requests"]:
        body = complete_body(request["body"])
        if "count_tokens" in request["path"]:
            turn = anthropic.decode_count(body, **DECODE_LIMITS)
        else:
            turn = anthropic.decode(body, id="msg_1", created=1, **DECODE_LIMITS)
        assert set(turn.ignored) <= NAMED
        assert all(message["role"] in ("system", "user", "assistant", "tool") for message in turn.messages)
        assert all(message["role"] != "system" for message in turn.messages[1:])
        assert "billing" not in json.dumps(turn.messages)
        functions = [
            tool for tool in body.get("tools", ()) if not tool.get("type", "").startswith("web_search")
        ]
        assert turn.tool_names() == [tool["name"] for tool in functions]
        prompt = [without_markers(message) for message in turn.messages]
        if len(earlier) > 2 and prompt[0] == earlier[0] and path.stem in CONTINUED:
            assert prompt[: len(earlier)] == earlier
        earlier = prompt


CONTINUED = ("cc-image", "cc-parallel", "cc-pdf", "cc-read", "cc-toolerr", "cm-qwen", "cm-structured")
"""Sessions whose requests continue each other."""
