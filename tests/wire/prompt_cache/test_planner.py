"""The planner of prompt caches marks what is expected to come again, where that costs less."""

import dataclasses

import pytest

from qproxy.wire.events import Usage
from qproxy.wire.prompt_cache import CachePlanner, CachePrices, Prospect, choose, read_prefixes
from qproxy.wire.prompt_cache.markers import has_markers, place_markers, unmarked, without_markers
from qproxy.wire.prompt_cache.reuse import MAX_PREFIXES, ReuseTable

PRICES = CachePrices(implicit=0.2, read=0.1, write=1.25, write_1h=2.0)
AGENT = Prospect(
    total=10_000,
    root=6_000,
    known=9_000,
    explicit=9_000,
    continued=0.9,
    continued_later=0.95,
    again=0.95,
    again_later=0.95,
    implicit_share=0.0,
)
MARK = {"type": "ephemeral"}


@pytest.mark.parametrize(
    ("changes", "end", "long"),
    [
        ({}, 10_000, False),
        ({"implicit_share": None}, 0, False),
        ({"implicit_share": 1.0, "explicit": 0}, 0, False),
        ({"continued": 0.0, "continued_later": 0.0}, 9_000, False),
        ({"continued": 0.0, "continued_later": 0.0, "explicit": 6_000}, 6_000, False),
        ({"continued": 0.0, "continued_later": 0.0, "again": 0.0, "explicit": 0}, 0, False),
        ({"continued": 0.1, "continued_later": 0.1, "again": 0.1, "known": 0, "explicit": 0}, 0, False),
        ({"continued": 0.2, "again": 0.3, "continued_later": 0.95}, 10_000, True),
        ({"total": 900, "root": 500, "known": 800, "explicit": 0}, 0, False),
        ({"root": 0, "continued": 0.0, "continued_later": 0.0, "again": 0.0, "explicit": 0}, 0, False),
    ],
)
def test_the_choice_that_costs_least(changes, end, long):
    """A prefix is cached if it comes again, as far as it does, and for an hour if only then."""
    prospect = dataclasses.replace(AGENT, **changes)
    if "again" in changes and "again_later" not in changes:
        prospect = dataclasses.replace(prospect, again_later=prospect.again)
    choice = choose(prospect, PRICES, allow_1h=True)
    assert (choice.end, choice.long) == (end, long)
    assert not choose(prospect, PRICES, allow_1h=False).long


def test_prices_are_shares_of_the_input():
    """A tier's prices are divided by its input's; a kind without one has the terms' share."""
    tier = {"input": 2.0, "cached": 0.25, "explicit_cached": 0.16, "cache_write": 2.6}
    assert CachePrices.of(tier, {"cache_write_1h_share": 1.8}) == CachePrices(0.125, 0.08, 1.3, 1.8)
    assert CachePrices.of(None, {}) == CachePrices(0.2, 0.2, 1.25, 2.0)


def text(role, number, words=900):
    """Return a message of a text of its own."""
    return {"role": role, "content": f"{number} " + "lorem " * words}


def converse(planner, turns, *, gap=10.0, cached=0, start=0.0, first=0, writes_1h=0):
    """Return the plans of an agent's requests, each with an answer and a result more than the one before."""
    messages = [text("system", "s"), text("user", f"u{first}")]
    plans = []
    for number in range(turns):
        now = start + number * gap
        plan = planner.plan("a/m", messages, (), ratio=1 / 6, prices=PRICES, allow_1h=False, now=now)
        details = {"cached_tokens": cached, "cache_creation": {"ephemeral_1h_input_tokens": writes_1h}}
        planner.learn(plan, Usage(prompt_tokens=900 * len(messages), prompt_details=details), now)
        plans.append(plan)
        messages = [*messages, text("assistant", f"a{first}.{number}"), text("tool", f"t{first}.{number}")]
    return plans


def test_an_agent_is_cached_from_its_third_request_on():
    """The first request has no history, the second one measures the implicit cache, the others are marked:
    at the beginning is too little, so where the last one ended, and at the end."""
    plans = converse(CachePlanner(), 5)
    assert [plan.places for plan in plans] == [(), (), (5,), (5, 7), (7, 9)]


def test_a_working_implicit_cache_is_used():
    """Where the implicit cache reads what repeats, nothing is marked."""
    assert not any(plan.places for plan in converse(CachePlanner(), 8, cached=10**6))


def test_requests_that_nothing_continues_are_not_written():
    """Of single requests nothing is marked but a beginning that they share."""
    planner = CachePlanner()
    for number in range(9):
        messages = [text("system", "s", 3000), text("user", number)]
        plan = planner.plan(
            "a/m", messages, (), ratio=1 / 6, prices=PRICES, allow_1h=False, now=number * 20.0
        )
        planner.learn(plan, Usage(prompt_tokens=4000, prompt_details={"cached_tokens": 0}), number * 20.0)
    assert plan.places == (0,)


def test_an_hour_is_used_once_a_servers_usage_has_shown_it():
    """Pauses of ten minutes are bridged for an hour by a server that has written for an hour before."""
    planner = CachePlanner()
    converse(planner, 3)
    assert not any(plan.long for plan in converse(planner, 12, gap=600.0, start=1e3, first=1))
    converse(planner, 1, writes_1h=5, start=9e3, first=2)
    assert any(plan.long for plan in converse(planner, 12, gap=600.0, start=1e4, first=3))


def test_prefixes_ignore_breakpoints_and_the_form_of_a_text():
    """A moved breakpoint and a text as one part are the same prefix; another text is not."""
    plain = [text("system", 1), text("user", 2), {"role": "assistant", "content": None}, text("user", 3)]
    marked = place_markers(plain, [0, 3])
    prefixes = read_prefixes("s", plain, (), 0.2)
    assert prefixes == read_prefixes("s", marked, (), 0.2)
    assert [step.message for step in prefixes.steps] == [0, 1, 3]
    assert prefixes.root == prefixes.steps[0]
    assert prefixes.steps[0] != read_prefixes("other", plain, (), 0.2).steps[0]
    other = read_prefixes("s", [*plain[:3], text("user", 4)], (), 0.2)
    assert other.steps[:2] == prefixes.steps[:2]
    assert other.steps[2] != prefixes.steps[2]


def test_pictures_are_not_measured_by_their_bytes():
    """A picture of a megabyte counts as a picture."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]
    assert 1000 < read_prefixes("s", messages, (), 0.25).steps[0].tokens < 1100


def test_markers_are_found_and_removed():
    """A breakpoint of a tool, a message or a part is found; without it the rest is as it was."""
    part = {"type": "text", "text": "x", "cache_control": MARK}
    marked = [{"role": "user", "content": [part]}, {"role": "tool", "content": "y", "cache_control": MARK}]
    plain = [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "tool", "content": "y"}]
    assert has_markers(marked, (), {})
    assert has_markers((), [{"type": "function", "cache_control": MARK}], {})
    assert has_markers((), (), {"prompt_cache_options": {}})
    assert not has_markers(plain, (), {})
    assert without_markers(marked) == plain
    assert without_markers(plain) is plain


def test_placed_markers_change_no_text():
    """A message with a breakpoint has its text in a part; the others are the same objects."""
    messages = [text("system", 1), text("user", 2)]
    placed = place_markers(messages, {1})
    assert placed[0] is messages[0]
    assert unmarked(placed[1])["content"] == [{"type": "text", "text": messages[1]["content"]}]


def test_memory_is_bounded():
    """However many prompts come, the table keeps a bounded number of prefixes."""
    table = ReuseTable()
    for number in range(MAX_PREFIXES + 10):
        table.observe(read_prefixes("s", [{"role": "user", "content": str(number)}], (), 1.0), 0.0)
    assert repr(table) == f"<ReuseTable of {MAX_PREFIXES} prefixes>"
