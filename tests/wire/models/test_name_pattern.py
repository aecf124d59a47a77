"""Patterns of models' names."""

import pytest

from qproxy.wire.models.name_pattern import NamePattern

CASES = [
    ("qwen{version}-max*", "qwen4-max", "4"),
    ("qwen{version}-max*", "qwen3.8-max-0902", "3.8"),
    ("qwen{version}-max*", "qwen-max", None),
    ("qwen{version}-max*", "my-qwen4-max", None),
    ("*qwen{version}-*#b*-thinking*", "org-qwen2_5-7b-x-thinking-2507", "2_5"),
    ("*qwen{version}-*#b*-thinking*", "qwen3-next-thinking", None),
    ("*-asr*-realtime*", "qwen3-asr-flash-realtime", ""),
    ("*-asr*-realtime*", "qwen3-realtime-asr", None),
    ("deepseek", "deepseek", ""),
    ("deepseek", "deepseek-v4", None),
    ("*max", "max-max", ""),
    ("a.c*", "abc", None),
]


@pytest.mark.parametrize(("pattern", "name", "version"), CASES)
def test_a_pattern_matches_names(pattern, name, version):
    """A match returns the version in the name, or "" for none."""
    assert NamePattern(pattern).match(name) == version
