"""Thinking budgets as Qwen's parameters; signatures; ids of calls."""

import base64

import pytest

from qproxy.wire.endpoints.anthropic import signatures, tool_ids
from tests.wire.endpoints.anthropic.test_request import decode

HIGH = {"output_config": {"effort": "high"}}
THINKING = {
    "nothing said": ({}, {}),
    "only an effort": (HIGH, {"reasoning_effort": "high"}),
    "disabled": ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
    "disabled, with an effort": ({"thinking": {"type": "disabled"}, **HIGH}, {"enable_thinking": False}),
    "enabled": ({"thinking": {"type": "enabled"}}, {"enable_thinking": True}),
    "enabled, with a budget": (
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        {"enable_thinking": True, "thinking_budget": 2000},
    ),
    "a budget that leaves no answer": (
        {"thinking": {"type": "enabled", "budget_tokens": 4000}, "max_tokens": 4000},
        {"enable_thinking": True},
    ),
    "adaptive": ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
    "adaptive, with an effort": ({"thinking": {"type": "adaptive"}, **HIGH}, {"reasoning_effort": "high"}),
    "between tools": ({"thinking": {"type": "between_tools"}, **HIGH}, {"reasoning_effort": "high"}),
    "an effort of tomorrow": (
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "ultra"}},
        {"reasoning_effort": "ultra"},
    ),
}


@pytest.mark.parametrize(("change", "params"), THINKING.values(), ids=THINKING)
def test_thinking(change, params):
    """Each form of `thinking` and `effort` becomes the equivalent parameters."""
    turn = decode(**{"max_tokens": 4096, **change})
    assert {name: value for name, value in turn.params.items() if name != "max_tokens"} == params
    assert turn.ignored == ()


def test_an_unknown_form_of_thinking():
    """An unknown form of thinking is dropped and named."""
    turn = decode(thinking={"type": "telepathic"})
    assert turn.params == {"max_tokens": 100}
    assert turn.ignored == ("thinking",)


def test_signatures():
    """A signature is never empty, has no secret, and is the same for the same reasoning at any cut."""
    for omits_text in (False, True):
        whole = signatures.sign("abc", omits_text=omits_text)
        pieces = signatures.ReasoningSignature(omits_text=omits_text)
        for piece in ("a", "", "bc"):
            pieces.update(piece)
        assert whole == pieces.signature()
        assert whole != signatures.sign("abd", omits_text=omits_text)
        assert signatures.sign("", omits_text=omits_text)
    assert base64.b64decode(signatures.sign("")).startswith(b"qproxy1")


@pytest.mark.parametrize("text", ["gAAAAB/+==", "a" * 100_000])
def test_encrypted_reasoning(text):
    """A ciphertext is sent as a signature and returns unchanged; other signatures contain none."""
    assert signatures.ciphertext(signatures.seal(text)) == text
    for other in (
        "",
        signatures.sign("x"),
        signatures.sign("x", omits_text=True),
        "EqoBCkgI",
        "qwen-sealed.",
    ):
        assert signatures.ciphertext(other) is None


@pytest.mark.parametrize("text", ["", "Let me see.", "思考 🌊", "\ud83c", "a" * 100_000])
def test_omitted_reasoning(text):
    """With `display: omitted` reasoning is sent in the signature; other signatures contain none."""
    assert signatures.reasoning(signatures.sign(text, omits_text=True)) == text
    for other in (
        "",
        signatures.sign(text),
        signatures.seal("x"),
        "qproxy-thinking.!",
        "qproxy-thinking.gA==",
    ):
        assert signatures.reasoning(other) is None


def test_effort_of_a_turn():
    """A system message after the last user message sets the effort of that turn only."""
    low = {"role": "system", "content": "x", "output_config": {"effort": "low"}}
    user = {"role": "user", "content": "q"}
    adaptive = {"thinking": {"type": "adaptive"}, **HIGH}
    for messages, effort in (([user, low], "low"), ([user, low, user], "high"), ([low, user], "high")):
        assert decode(**adaptive, messages=messages).params["reasoning_effort"] == effort
    empty = {"role": "system", "output_config": {"effort": "low"}}
    turn = decode(**adaptive, messages=[user, empty])
    assert turn.params["reasoning_effort"] == "low"
    assert turn.messages == [user]


IDS = ["call_1", "toolu_01", "functions.get_weather:0", "a b", "é", "toolu_b64_x", "x" * 64]


@pytest.mark.parametrize("id", IDS)
def test_tool_ids(id):
    """Clients get ids of allowed characters, and the upstream gets its own back."""
    shown = tool_ids.client_id(id)
    assert len(shown) <= 64
    assert shown.replace("_", "").replace("-", "").isalnum()
    assert shown.isascii()
    assert tool_ids.upstream_id(shown) == id


def test_long_and_foreign_tool_ids():
    """An id that is too long becomes a digest, the same each time; one that only resembles qproxy's stays
    unchanged."""
    assert tool_ids.client_id("x" * 65) == tool_ids.client_id("x" * 65) != tool_ids.client_id("y" * 65)
    assert tool_ids.client_id("x" * 65).startswith("toolu_")
    for id in ("toolu_b64_", "toolu_b64_!", "toolu_b64_gA", "toolu_01"):
        assert tool_ids.upstream_id(id) in (id, "")
