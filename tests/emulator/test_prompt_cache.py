"""The emulated context cache reads and writes by prefix, breakpoint, time and key."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from qproxy.emulator import prompt_cache
from qproxy.emulator.errors import ApiError
from qproxy.emulator.prompt_cache import CacheUse, PromptCache
from qproxy.emulator.unverified import NATURAL, Unverified

PAGE = Path(prompt_cache.__file__).parents[2] / "docs" / "emulator.md"
LONG = "word " * 1020
"""With the 4 tokens of its message, the shortest prefix that is cached."""
EXPLICIT = {"prompt_cache_breakpoint": {"mode": "explicit"}}
MARKER = {"cache_control": {"type": "ephemeral"}}
WRITTEN = CacheUse(0, 1024, False, True)
READ = CacheUse(1024, 0, False, True)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def text(words, **marker):
    return {"type": "text", "text": words, **marker}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def body(*messages, model="qwen4-max", **fields):
    return {"model": model, "messages": list(messages), **fields}


def cache_uses(*bodies, facts=NATURAL, key="k"):
    """Return the cache use of each of several requests."""
    cache = PromptCache(Clock(), facts)
    return [cache.use(key, item) for item in bodies]


@pytest.mark.parametrize("model", ["qwen4-max", "qwen3.8-max"])
def test_a_prefix_is_written_once_and_read_afterwards(model):
    """The prefix up to the marked part is cached, whatever follows it."""
    first, second = (body(user(text(LONG, **MARKER), text(rest)), model=model) for rest in ("a", "b c"))
    assert cache_uses(first, second) == [WRITTEN, READ]


def test_openai_s_breakpoint_works_for_qwen4_only():
    """`prompt_cache_breakpoint` and `cache_control` are equivalent; older models support only the latter."""
    openai_marked, marked = body(user(text(LONG, **EXPLICIT))), body(user(text(LONG, **MARKER)))
    assert cache_uses(openai_marked, marked) == [WRITTEN, READ]
    assert cache_uses(openai_marked | {"model": "qwen3.8-max"})[0].explicit is False


def test_a_moved_breakpoint_leaves_the_prefix_the_same():
    """A text and its only part are the same block, with a marker or without one."""
    first = body({"role": "system", "content": LONG}, user(text("a", **MARKER)))
    second = body({"role": "system", "content": [text(LONG, **MARKER)]}, user(text("a", **MARKER), text("b")))
    written, again = cache_uses(first, second)
    assert (written.written, again.read, again.written) == (1029, 1029, 0)


def test_only_the_rest_is_written_after_a_partial_hit():
    """The longest cached prefix is read, and the rest up to the last breakpoint is written."""
    first = body(user(text(LONG, **MARKER)))
    second = body(user(text(LONG, **MARKER), text("more " * 7, **MARKER), text("question")))
    assert cache_uses(first, second, second) == [
        WRITTEN,
        CacheUse(1024, 7, False, True),
        CacheUse(1031, 0, False, True),
    ]


def test_short_prefixes_are_not_cached():
    """A token below the minimum is neither written nor read."""
    short = body(user(text("word " * 1019, **MARKER)))
    assert cache_uses(short, short) == [CacheUse(explicit=True)] * 2


@pytest.mark.parametrize(("between", "read"), [(18, 1024), (19, 0)])
def test_a_breakpoint_looks_back_twenty_blocks(between, read):
    """A breakpoint looks back over its own block and nineteen before it; a prefix further back is not
    found."""
    first = body(user(text(LONG, **MARKER)))
    second = body(user(text(LONG), *[text("x")] * between, text("end", **MARKER)))
    assert cache_uses(first, second)[1].read == read


def test_the_last_four_breakpoints_count():
    """The first of five breakpoints is not written."""
    parts = [text(LONG if number == 0 else "x", **MARKER) for number in range(5)]
    alone = body(user(text(LONG, **MARKER)))
    assert cache_uses(body(user(*parts)), alone)[1] == WRITTEN
    assert cache_uses(body(user(*parts)), alone, facts=Unverified(cache_breakpoints=5))[1] == READ


def test_automatic_caching_marks_the_end_of_the_prompt():
    """With options alone every turn reads the one before; mode explicit without breakpoints caches
    nothing."""
    automatic = {"prompt_cache_options": {"mode": "implicit"}}
    turns = [user(text(LONG)), {"role": "assistant", "content": "yes"}, user(text("and now"))]
    assert cache_uses(body(turns[0], **automatic), body(*turns, **automatic)) == [
        WRITTEN,
        CacheUse(1024, 11, False, True),
    ]
    explicit = body(turns[0], prompt_cache_options={"mode": "explicit"})
    assert cache_uses(explicit, explicit) == [CacheUse(explicit=True)] * 2


@pytest.mark.parametrize(("ttl", "seconds", "detail"), [("5m", 300, "5m"), ("1h", 3600, "1h")])
def test_a_prefix_expires_and_a_read_renews_it(ttl, seconds, detail):
    """The option sets the time to live; a prefix expires unless a request reads it before."""
    clock = Clock()
    cache = PromptCache(clock)
    request = body(user(text(LONG, **EXPLICIT)), prompt_cache_options={"mode": "explicit", "ttl": ttl})
    details = cache.use("k", request).details()
    assert details["cache_creation"][f"ephemeral_{detail}_input_tokens"] == 1024
    reads = []
    for wait in (seconds - 1, seconds - 1, seconds):
        clock.now += wait
        reads.append(cache.use("k", request).read)
    assert reads == [1024, 1024, 0]


def test_a_short_read_does_not_shorten_a_long_time_to_live():
    """A prefix cached for an hour and read with five minutes is still cached after ten."""
    clock = Clock()
    cache = PromptCache(clock)
    marked = user(text(LONG, **EXPLICIT))
    cache.use("k", body(marked, prompt_cache_options={"mode": "explicit", "ttl": "1h"}))
    assert cache.use("k", body(marked)).read == 1024
    clock.now += 600
    assert cache.use("k", body(marked)).read == 1024


def test_keys_models_and_kinds_are_separate():
    """Another key, another model and an implicit request do not read an explicit prefix."""
    cache = PromptCache(Clock())
    marked = body(user(text(LONG, **MARKER)))
    assert cache.use("k", marked) == WRITTEN
    assert cache.use("other", marked) == WRITTEN
    assert cache.use("k", {**marked, "model": "qwen3.8-max"}) == WRITTEN
    assert cache.use("k", body(user(text(LONG)))) == CacheUse()


def test_requests_without_parameters_have_an_implicit_cache():
    """The implicit cache reads the longest prefix in whole blocks, bills no writes, and can be switched
    off."""
    turns = [{"role": "system", "content": LONG}, {"role": "user", "content": "a"}]
    other = body(turns[0], {"role": "user", "content": "b"})
    assert [use.details() for use in cache_uses(body(*turns), other)] == [
        {"cached_tokens": 0},
        {"cached_tokens": 1024},
    ]
    assert cache_uses(body(*turns), other, facts=Unverified(implicit_cache=False))[1].read == 0
    brief = body({"role": "user", "content": "word " * 300})
    assert [cache_uses(brief, brief, facts=Unverified(implicit_minimum=n))[1].read for n in (1024, 256)] == [
        0,
        304,
    ]


def test_tools_calls_and_preserved_reasoning_are_part_of_the_prefix():
    """Tools come first, also as a breakpoint's place; a changed call or reasoning makes another prefix."""
    tool = {"type": "function", "function": {"name": "f", "description": LONG}}
    assert cache_uses(body(user(text("a")), tools=[{**tool, **MARKER}]))[0].written > 1024

    def conversation(name, thought):
        calls = [{"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}]
        message = {"role": "assistant", "content": None, "tool_calls": calls, "encrypted_content": thought}
        return body(user(text(LONG)), message, user(text("b", **MARKER)), preserve_thinking=True)

    assert cache_uses(conversation("f", "x"), conversation("f", "x"))[1].read > 1024
    assert (
        cache_uses(conversation("f", "x"), conversation("g", "x"))[1].read
        == cache_uses(conversation("f", "x"), conversation("f", "y"))[1].read
        == 0
    )


@pytest.mark.parametrize(("options", "option"), [({"ttl": "30m"}, "ttl"), ({"mode": "always"}, "mode")])
def test_unknown_options_are_rejected_by_qwen4(options, option):
    """A rejection names the option and its values; older models ignore it."""
    with pytest.raises(ApiError, match=f"'prompt_cache_options.{option}' must be one of"):
        prompt_cache.validate(body(prompt_cache_options=options))
    prompt_cache.validate(body(prompt_cache_options=options, model="qwen3.8-max"))
    prompt_cache.validate(body(prompt_cache_options={"ttl": "30m"}), Unverified(cache_ttls="30m 12h"))


def test_the_cache_is_bounded(monkeypatch):
    """The cache is bounded: the oldest prefixes are evicted first."""
    monkeypatch.setattr(prompt_cache, "MAX_ENTRIES", 2)
    cache = PromptCache(Clock())
    for number in range(4):
        cache.use(str(number), body(user(text(LONG, **MARKER))))
    assert cache.use("3", body(user(text(LONG, **MARKER)))) == READ
    assert cache.use("0", body(user(text(LONG, **MARKER)))) == WRITTEN


def test_assumptions_are_named():
    """A switch is set by its name; an unknown name or value is an error."""
    facts = NATURAL.assume("cache_minimum=256").assume("budget=no").assume("ciphertext_delta=finish")
    assert facts == Unverified(cache_minimum=256, budget=False, ciphertext_delta="finish")
    for wrong in ("nothing=1", "budget=perhaps", "cache_minimum=x", "ciphertext_delta=y"):
        with pytest.raises(ValueError, match=r"."):
            NATURAL.assume(wrong)


@pytest.mark.parametrize(("name", "default"), [(item.name, item.default) for item in fields(Unverified)])
def test_assumptions_are_documented(name, default):
    """docs/emulator.md has a row for each assumption with its default."""
    shown = ("no", "yes")[default] if isinstance(default, bool) else default
    assert re.search(rf"^\| `{name}` \| `?{shown}`? \|", PAGE.read_text(), re.MULTILINE)
