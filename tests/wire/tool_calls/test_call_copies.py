"""Repeated calls: a copy is dropped, and calls that only resemble each other are both sent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.tool_calls.call_copies import NormalForm
from tests.wire.pipeline import DONE, call, chunk, meaning, texts, thought

A, B = '{"city": "Paris"}', '{"city": "Rome"}'
COMPACT = '{"city":"Paris"}'
NAME = "get_weather"
PARIS, ROME, NOW = (NAME, A), (NAME, B), ("now", "{}")
END = [chunk(None, "tool_calls"), DONE]
LONG = '{"path": "a", "content": "%s"}'
ORDERED, SORTED = '{"path": "a", "content": "x"}', '{"content":"x","path":"a"}'
WRITTEN = f'<tool_call>{{"name": "write_file", "arguments": {ORDERED}}}</tool_call>'


def tags(city):
    return f"<tool_call><function={NAME}><parameter=city>\n{city}\n</parameter></function></tool_call>"


COPIES = {
    "the same id twice": ([call(0, "a", NAME, A), call(1, "a", NAME, A)], [PARIS]),
    "the same id three times": ([call(n, "a", NAME, A) for n in range(3)], [PARIS]),
    "the same id in pieces": ([call(0, "a", NAME, A), call(1, "a", NAME, ""), call(1, None, None, A[:9]),
        call(1, None, None, A[9:])], [PARIS]),
    "the same id, both in pieces": ([call(0, "a", NAME, A[:9]), call(1, "a", NAME, A[:9]),
        call(0, None, None, A[9:]), call(1, None, None, A[9:])], [PARIS]),
    "the same id in another spelling": ([call(0, "a", NAME, A), call(1, "a", NAME, COMPACT)], [PARIS]),
    "the same id without arguments": ([call(0, "a", NAME, A), call(1, "a", NAME, "")], [PARIS]),
    "the same id, nothing to pass": ([call(0, "a", "now", ""), call(1, "a", "now", "{}")], [NOW]),
    "a copy between calls": ([call(0, "a", NAME, A), call(1, "a", NAME, A), call(2, "b", NAME, B)],
        [PARIS, ROME]),
    "written, then structured": ([*texts(tags("Paris")), call(0, "a", NAME, A)], [PARIS]),
    "structured, then written": ([call(0, "a", NAME, A), *texts(tags("Paris"))], [PARIS]),
    "two in both forms": ([*texts(tags("Paris") + tags("Rome")), call(0, "a", NAME, A),
        call(1, "b", NAME, B)], [PARIS, ROME]),
    "two alike in both forms": ([*texts(tags("Paris") * 2), call(0, "a", NAME, A), call(1, "b", NAME, A)],
        [PARIS, PARIS]),
    "structured in pieces": ([*texts(tags("Paris")), call(0, "a", NAME, ""),
        *(call(0, None, None, char) for char in A)], [PARIS]),
    "with escapes": ([*texts(tags("Zürich 🌊")), call(0, "a", NAME, json.dumps({"city": "Zürich 🌊"}))],
        [(NAME, '{"city": "Zürich 🌊"}')]),
    "in reasoning, then structured": ([*thought(f"Go.\n{tags('Paris')}"), call(0, "a", NAME, A)], [PARIS]),
    "in reasoning, then written": ([*thought(f"Go.\n{tags('Paris')}"), *texts(tags("Paris"))], [PARIS]),
    "in reasoning, written and structured": ([*thought(f"Go.\n{tags('Paris')}\nSo."), *texts(tags("Paris")),
        call(0, "a", NAME, A)], [PARIS]),
    "in reasoning, then twice": ([*thought(f"Go.\n{tags('Paris')}"), *texts(tags("Paris") * 2)],
        [PARIS, PARIS]),
    "written, then the same id twice": ([*texts(tags("Paris")), call(0, "a", NAME, A), call(1, "a", NAME, A)],
        [PARIS]),
    "keys in another order": ([call(0, "a", "write_file", ORDERED), call(1, "a", "write_file", SORTED)],
        [("write_file", ORDERED)]),
    "written, then with sorted keys": ([*texts(WRITTEN), call(0, "a", "write_file", SORTED)],
        [("write_file", ORDERED)]),
    "with sorted keys in pieces": ([*texts(WRITTEN), call(0, "a", "write_file", ""),
        *(call(0, None, None, char) for char in SORTED)], [("write_file", ORDERED)]),
    "inner keys in another order": ([call(0, "a", NAME, '{"x": [{"a": 1, "b": 2}]}'),
        call(1, "a", NAME, '{"x": [{"b": 2, "a": 1}]}')], [(NAME, '{"x": [{"a": 1, "b": 2}]}')]),
    "with a prefixed name": ([*texts(tags("Paris")), call(0, "a", f"functions.{NAME}", A)], [PARIS]),
}  # fmt: skip


@pytest.mark.parametrize(("items", "calls"), COPIES.values(), ids=COPIES)
def test_a_copy_is_dropped(items, calls):
    """A call with the id, name and arguments of another, or equal to one in the other form, is sent once."""
    text, _, found, reason = meaning(*items, *END)
    assert (text, found, reason) == ("", calls, "tool_calls")


DIFFERENT = {
    "in reasoning, then another": ([*thought(f"Go.\n{tags('Paris')}"), *texts(tags("Rome"))], [PARIS, ROME]),
    "twice in reasoning": ([*thought(f"Go.\n{tags('Paris')}\n{tags('Paris')}")], [PARIS, PARIS]),
    "the same id, other arguments": ([call(0, "a", NAME, A), call(1, "a", NAME, B)], [PARIS, ROME]),
    "the same id, another name": ([call(0, "a", NAME, A), call(1, "a", "now", "{}")], [PARIS, NOW]),
    "the same id, only the beginning": ([call(0, "a", NAME, A), call(1, "a", NAME, A),
        call(2, "a", NAME, '{"city": "Par"}')], [PARIS, (NAME, '{"city": "Par"}')]),
    "other ids": ([call(0, "a", NAME, A), call(1, "b", NAME, A)], [PARIS, PARIS]),
    "no ids": ([call(0, None, NAME, A), call(1, None, NAME, A)], [PARIS, PARIS]),
    "both written": (texts(tags("Paris") * 2), [PARIS, PARIS]),
    "written and structured, other arguments": ([*texts(tags("Paris")), call(0, "a", NAME, B)],
        [PARIS, ROME]),
    "structured and written, other arguments": ([call(0, "a", NAME, A), *texts(tags("Rome"))], [PARIS, ROME]),
    "one more in the other form": ([*texts(tags("Paris")), call(0, "a", NAME, A), call(1, "b", NAME, A)],
        [PARIS, PARIS]),
    "written with more": ([*texts(tags("Paris")), call(0, "a", NAME, '{"city": "Paris", "days": 1}')],
        [PARIS, (NAME, '{"city": "Paris", "days": 1}')]),
    "another order, another value": ([*texts(WRITTEN), call(0, "a", "write_file", SORTED.replace("x", "y"))],
        [("write_file", ORDERED), ("write_file", SORTED.replace("x", "y"))]),
    "another order, more": ([*texts(WRITTEN), call(0, "a", "write_file", SORTED[:-1] + ', "b": 1}')],
        [("write_file", ORDERED), ("write_file", SORTED[:-1] + ', "b": 1}')]),
    "another order of a list": ([call(0, "a", NAME, '{"x": ["a", "b"]}'),
        call(1, "a", NAME, '{"x": ["b", "a"]}')],
        [(NAME, '{"x": ["a", "b"]}'), (NAME, '{"x": ["b", "a"]}')]),
    "another order, another type": ([call(0, "a", NAME, '{"a": 1, "b": 2}'),
        call(1, "a", NAME, '{"b": 2, "a": true}')],
        [(NAME, '{"a": 1, "b": 2}'), (NAME, '{"b": 2, "a": true}')]),
    "other types": ([call(0, "a", NAME, '{"days": 1}'), call(1, "a", NAME, '{"days": true}')],
        [(NAME, '{"days": 1}'), (NAME, '{"days": true}')]),
}  # fmt: skip


@pytest.mark.parametrize(("items", "calls"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_calls_are_sent(items, calls):
    """Calls that differ in id, name or arguments are all sent, in order."""
    assert meaning(*items, *END)[2:] == (calls, "tool_calls")


def test_a_truncated_copy_is_reported():
    """A second call that stops within the first one's arguments is sent, and the finish reason is length."""
    items = [call(0, "a", NAME, A), call(1, "a", NAME, A[:9]), chunk(None, "tool_calls"), DONE]
    assert meaning(*items)[2:] == ([PARIS, (NAME, A[:9])], "length")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    ),
    st.integers(1, 5),
)
def test_the_normal_form_depends_on_the_value(value, size):
    """Whitespace, escapes and cuts change nothing."""
    spellings = [
        json.dumps(value),
        json.dumps(value, ensure_ascii=False, indent=1),
        json.dumps(value, separators=(",", ":")),
    ]
    forms = set()
    for text in spellings:
        forms.add(NormalForm().feed(text))
        form = NormalForm()
        forms.add("".join(form.feed(text[at : at + size]) for at in range(0, len(text), size)))
    assert len(forms) == 1


@given(st.text(), st.text())
def test_different_texts_have_different_normal_forms(first, second):
    """Two strings have the same normal form only if they are equal."""
    forms = [NormalForm().feed(json.dumps(text)) for text in (first, second)]
    assert (forms[0] == forms[1]) == (first == second)
