"""Conversations that are too long: the request for a summary, what stays, and what is dropped."""

from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import compaction
from qproxy.wire.compaction import (
    MIN_CLIPPED,
    Summary,
    clip,
    compacted_turn,
    shorten,
    split_messages,
    summary_turn,
)
from qproxy.wire.context_overflow import ContextOverflow
from qproxy.wire.events import ContextPolicy, Turn

SYSTEM = {"role": "system", "content": "s" * 40}
TOOL = {"type": "function", "function": {"name": "f"}}


def user(text):
    return {"role": "user", "content": text}


def call(id, size=40):
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    return [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": id, "content": "r" * size},
    ]


def turn(*messages, **fields):
    return Turn(id="resp_1", created=0, model="m", messages=messages, **fields)


def test_the_request_for_a_summary_keeps_what_a_prompt_cache_has():
    """Messages and tools stay in front of the instruction; what is about the response itself does not."""
    params = {"temperature": 0.5, "response_format": {"type": "json_object"}, "max_completion_tokens": 5}
    asked = turn(SYSTEM, user("q"), tools=[TOOL], params=params, context=ContextPolicy(only_summary=True))
    sent = summary_turn(asked)
    assert sent.messages == [SYSTEM, user("q"), user(compaction.PROMPT)]
    assert (list(sent.tools), sent.tool_choice, sent.params) == ([TOOL], "none", {"temperature": 0.5})
    assert sent.context is None
    assert summary_turn(turn(user("q"))).tool_choice is None


def test_a_short_exchange_stays_as_it_is():
    """The last message of the user and what follows it are not summarized where they are short."""
    old = [SYSTEM, user("a" * 4000), *call("c1")]
    recent = [user("q"), *call("c2")]
    assert split_messages(turn(*old, *recent), 400) == (turn(*old), tuple(recent))
    long = [user("q"), *call("c2", 4000)]
    assert split_messages(turn(*old, *long), 400) == (turn(*old, *long), (user("q"),))
    question = [user("q" * 4000), *call("c2")]
    assert split_messages(turn(*old, *question), 400) == (turn(*old, *question), ())
    assert split_messages(turn(SYSTEM, *recent), 400) is None, "there is nothing before it"
    assert split_messages(turn(SYSTEM, user("q" * 4000)), 400) is None, "there is nothing but the question"
    assert split_messages(turn(SYSTEM, *long), 400) == (turn(SYSTEM, *long), (user("q"),))
    assert split_messages(turn(*call("c1")), 400) == (turn(*call("c1")), ())


def test_a_turn_goes_on_from_a_summary():
    """Instructions, the summary and the kept messages are the new conversation, at its own size."""
    summary = Summary("It rains.", is_whole=True, kept=(user("q"),), settings=({"type": "additional_tools"},))
    assert compaction.summary_from_json(summary.to_json()) == summary
    asked = turn(SYSTEM, user("a" * 4000), user("q"), context=ContextPolicy(compacts=True))
    then = compacted_turn(asked, summary)
    assert then.messages == [SYSTEM, user(compaction.HEADER + "It rains."), user("q")]
    assert then.context is None
    assert 0 < then.token_estimate.prompt < 400


def test_the_oldest_messages_are_dropped_by_the_reported_numbers():
    """Instructions and the question stay; a result goes with its call."""
    messages = [SYSTEM, user("a" * 400), *call("c1", 400), user("q"), *call("c2", 400), *call("c3", 400)]
    shorter = shorten(turn(*messages), ContextOverflow(limit=700, prompt=1000))
    assert shorter is not None
    assert shorter.messages == [SYSTEM, user("q"), *messages[5:]]
    shorter = shorten(turn(*messages), ContextOverflow(limit=500, prompt=1000))
    assert shorter is not None
    assert shorter.messages == [SYSTEM, user("q"), *messages[7:]]
    assert shorten(shorter, ContextOverflow(limit=1, prompt=1000)) is None, "the newest call is needed"
    assert shorten(turn(user("a" * 4000)), None) is None


def test_long_texts_are_cut_for_a_summary():
    """Both ends of a long text stay, short ones and instructions stay whole, and it ends at a minimum."""
    text = "a" * 50_000 + "b" * 50_000
    shorter = clip(turn({**SYSTEM, "content": text}, user(text), user("q")), ContextOverflow(500, 1000))
    assert shorter is not None
    system, question, last = shorter.messages
    assert (system["content"], last) == (text, user("q"))
    assert question["content"] == f"{'a' * 22_500}\n[55000 characters left out]\n{'b' * 22_500}"
    while (again := clip(shorter, None)) is not None and len(again.messages[1]["content"]) > MIN_CLIPPED + 50:
        shorter = again
    assert clip(turn(user("q" * MIN_CLIPPED)), None) is None


messages = st.lists(
    st.one_of(
        st.integers(0, 300).map(lambda size: [user("u" * size)]),
        st.integers(0, 300).map(lambda size: [{"role": "assistant", "content": "a" * size}]),
        st.integers(0, 300).map(lambda size: call("c", size)),
        st.just([{"role": "developer", "content": "d"}]),
    ),
    max_size=12,
).map(lambda groups: [message for group in groups for message in group])


@given(messages, st.integers(0, 2000), st.integers(1, 2000))
def test_shortening_keeps_order_calls_and_instructions(given_messages, limit, prompt):
    """A shorter conversation is a subsequence that ends as the whole one does, and it gets ever shorter."""
    before = turn(SYSTEM, *given_messages)
    after = shorten(before, ContextOverflow(limit=limit, prompt=prompt))
    if after is None:
        return
    rest = iter(before.messages)
    assert all(any(message is other for other in rest) for message in after.messages)
    assert len(after.messages) < len(before.messages)
    assert after.messages[-1] is before.messages[-1]
    assert sum(m["role"] == "developer" for m in after.messages) == sum(
        m["role"] == "developer" for m in before.messages
    )
    for number, message in enumerate(after.messages):
        if message["role"] == "tool":
            assert after.messages[number - 1]["role"] == "assistant"
