"""Requests that real clients sent: each decodes, and the prompts of each session begin alike."""

import json
from pathlib import Path

import pytest

from qproxy.wire.endpoints import anthropic
from tests.defaults import DECODE_LIMITS
from tests.wire.endpoints.anthropic.test_conversation import unmarked

FOLDER = Path(__file__).parents[3] / "recorded" / "anthropic"
FILES = sorted(path for path in FOLDER.glob("*.json") if path.stem != "claude-code-tools")
TOOLS = {tool["name"]: tool for tool in json.loads((FOLDER / "claude-code-tools.json").read_text())["tools"]}
NAMED = {"metadata", "context_management", "content.document"}
"""All that is left out of what they send, but for names of tools."""


def whole(body):
    """A recorded body with the schemas that the recording cut."""
    for tool in body.get("tools", ()):
        if tool.get("input_schema") == "…":
            tool["input_schema"] = TOOLS.get(tool["name"], {"input_schema": {"type": "object"}})[
                "input_schema"
            ]
    return body


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded(path):
    """What a client sends is understood, and nothing of it is left out that matters."""
    earlier: list[str] = []
    for request in json.loads(path.read_text())["requests"]:
        body = whole(request["body"])
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
        prompt = [unmarked(message) for message in turn.messages]
        if len(earlier) > 2 and prompt[0] == earlier[0] and path.stem in CONTINUED:
            assert prompt[: len(earlier)] == earlier
        earlier = prompt


CONTINUED = ("cc-image", "cc-parallel", "cc-pdf", "cc-read", "cc-toolerr", "cm-qwen", "cm-structured")
"""Sessions whose requests continue one another."""
