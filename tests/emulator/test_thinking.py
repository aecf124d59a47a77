"""The emulated model's efforts, summaries and ciphertext."""

import pytest

from qproxy.emulator import chat, thinking
from qproxy.emulator.errors import ApiError

USER = {"role": "user", "content": "What is a monad?"}


def body(**fields):
    return {"model": "qwen4-max", "messages": [USER], **fields}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reasoning_effort": "huge"}, "must be one of: 'none', 'off'"),
        ({"reasoning_effort": "high", "thinking_budget": 9}, "cannot be set together"),
        ({"messages": [USER, {"role": "assistant", "content": "x", "encrypted_content": "emu4.x.y"}, USER]},
            "is invalid"),
    ],
)  # fmt: skip
def test_it_rejects_what_the_model_rejects(fields, reason):
    """A 400 names the field."""
    with pytest.raises(ApiError) as caught:
        chat.validate(body(**fields))
    assert caught.value.status == 400
    assert reason in caught.value.body["error"]["message"]


def test_it_thinks_unless_told_not_to():
    """The default is to think; an effort or the switch turns it off."""
    assert chat.reply(body())[0]
    for fields in ({"reasoning_effort": "none"}, {"reasoning_effort": "off"}, {"enable_thinking": False}):
        assert not chat.reply(body(**fields))[0]


def test_a_summary_has_its_ciphertext():
    """With thinking_display the reasoning is withheld, streamed and whole, and its ciphertext can be read."""
    asked = body(thinking_display="summarized")
    message = chat.response(asked)["choices"][0]["message"]
    assert message["reasoning_content"].startswith("Summary of")
    assert thinking.decrypt(message["encrypted_content"]) == chat.reply(asked)[0]
    sent = [delta.get("encrypted_content") for delta in chat.deltas(asked)]
    assert [piece for piece in sent if piece] == [message["encrypted_content"]]
    assert "encrypted_content" not in chat.response(body())["choices"][0]["message"]


def test_it_remembers_what_comes_back():
    """Thoughts that come back are read only with preserve_thinking."""
    said = {"role": "assistant", "content": "x", "encrypted_content": thinking.encrypt("hm")}
    history = {"messages": [USER, said, USER]}
    assert "I remember 1 thoughts." in chat.reply(body(**history, preserve_thinking=True))[1]
    assert "remember" not in chat.reply(body(**history))[1]
