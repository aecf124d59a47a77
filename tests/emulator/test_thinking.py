"""The emulated model has efforts, summaries and ciphertext."""

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
def test_rejections_name_the_field(fields, reason):
    """A field that the model rejects is a 400 that names it."""
    with pytest.raises(ApiError) as caught:
        chat.validate(body(**fields))
    assert caught.value.status == 400
    assert reason in caught.value.body["error"]["message"]


def test_thinking_is_on_by_default():
    """Thinking is the default; an effort or the switch turns it off."""
    assert chat.reply(body())[0]
    for fields in ({"reasoning_effort": "none"}, {"reasoning_effort": "off"}, {"enable_thinking": False}):
        assert not chat.reply(body(**fields))[0]


def test_a_summary_has_its_ciphertext():
    """With thinking_display the reasoning is withheld, streamed and whole, and its ciphertext can be
    decrypted."""
    request = body(thinking_display="summarized")
    message = chat.response(request)["choices"][0]["message"]
    assert message["reasoning_content"].startswith("Summary of")
    assert thinking.decrypt(message["encrypted_content"]) == chat.reply(request)[0]
    sent = [delta.get("encrypted_content") for delta in chat.deltas(request)]
    assert [piece for piece in sent if piece] == [message["encrypted_content"]]
    assert "encrypted_content" not in chat.response(body())["choices"][0]["message"]


def test_returned_reasoning_is_read():
    """Returned reasoning is read only with preserve_thinking."""
    reply = {"role": "assistant", "content": "x", "encrypted_content": thinking.encrypt("hm")}
    history = {"messages": [USER, reply, USER]}
    assert "I remember 1 thoughts." in chat.reply(body(**history, preserve_thinking=True))[1]
    assert "remember" not in chat.reply(body(**history))[1]
