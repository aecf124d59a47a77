"""Resolution of a client's model name."""

import pytest

from qproxy.wire.model_aliases import ModelAliases, is_pattern

TABLE = {
    "gpt-*": "plus",
    "*": "any",
    "gpt-5*": "max",
    "gpt-5-mini": "flash",
    "gpt-5?": "never: as long, and later",
    "o[134]": "reasoner",
    "qwen-max": "qwen3-max",
}
CASES = {
    "an exact name before every pattern": ("gpt-5-mini", "flash"),
    "the longest pattern": ("gpt-5-pro", "max"),
    "the first of equally long ones": ("gpt-5x", "max"),
    "a shorter pattern": ("gpt-4o", "plus"),
    "a set of characters": ("o3", "reasoner"),
    "what fits no pattern": ("claude-opus-5", "any"),
    "another case is another name": ("GPT-4o", "any"),
    "a model's own name": ("qwen-plus", "qwen-plus"),
    "a model's own name that is an alias": ("qwen-max", "qwen3-max"),
    "nothing": ("", "any"),
}


@pytest.mark.parametrize(("name", "model"), CASES.values(), ids=CASES.keys())
def test_resolve(name, model):
    """The exact name decides, then the longest pattern, then the catch-all, which leaves a model's own name
    unchanged."""
    assert ModelAliases(TABLE, lambda name: name.startswith("qwen")).resolve(name) == model


def test_a_name_without_an_alias_is_unchanged():
    """Without a catch-all, other names are models."""
    aliases = ModelAliases({"gpt-*": "plus"})
    assert aliases.resolve("claude") == "claude"
    assert aliases.lookup("claude") is None


def test_patterns_are_not_listed():
    """Only exact names that a client can request are listed."""
    assert ModelAliases(TABLE).names == ["gpt-5-mini", "qwen-max"]
    assert [name for name in TABLE if is_pattern(name)] == ["gpt-*", "*", "gpt-5*", "gpt-5?", "o[134]"]


def test_names_that_a_pattern_covers():
    """Patterns cover names, but the catch-all does not, nor does a pattern cover an alias."""
    names = ["gpt-5-mini", "gpt-6", "claude-opus-5", "o3"]
    assert ModelAliases(TABLE).covered(names) == ["gpt-6", "o3"]
