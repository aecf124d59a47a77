"""Random model replies: text, fences and calls in any spelling, with their expected parse."""

import json
from dataclasses import dataclass

from hypothesis import strategies as st

KEYS = {"a": {"type": "string"}, "b": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"}}
NAMES = ("alpha", "beta_two")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": KEYS}}}
    for name in NAMES
]
MARKUP = [
    "</p>",
    "<b>",
    "`",
    "```\n",
    "{",
    "}",
    '"',
    "\\",
    "\n",
    " ",
    "é",
    "🌊",
    "a",
    "<",
    "</",
    "<tool_call>x",
    "</parameter>x",
    "</function>y",
    "<parameter=zz>",
]
prose = st.lists(
    st.sampled_from(["word", " ", "\n", "é🌊", "a < b", "{x}", "<p>", "12", ". "]), min_size=1, max_size=6
).map("".join)
value_text = st.lists(st.sampled_from(MARKUP), max_size=8).map("".join)


@dataclass
class Piece:
    """A part of a reply, with its visible text and its calls."""

    written: str
    shown: str = ""
    calls: tuple = ()
    dialect: str = "text"


def arguments(text_values):
    return st.fixed_dictionaries(
        {},
        optional={
            "a": text_values,
            "b": text_values,
            "n": st.integers(-99, 99),
            "o": st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=2),
        },
    )


@st.composite
def hermes(draw):
    name, given = draw(st.sampled_from(NAMES)), draw(arguments(value_text))
    text = json.dumps(given, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    newline = draw(st.sampled_from(["", "\n"]))
    body = f'{{"name": "{name}", "arguments": {text}}}'
    return Piece(f"<tool_call>{newline}{body}{newline}</tool_call>", calls=((name, given),), dialect="hermes")


@st.composite
def coder(draw):
    safe = value_text.filter(lambda text: not text.endswith(("<", "</")))
    name, given = draw(st.sampled_from(NAMES)), draw(arguments(safe))
    inner = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
        for key, value in given.items()
    )
    text = f"<function={name}>\n{inner}</function>"
    if draw(st.booleans()):
        text = f"<tool_call>\n{text}\n</tool_call>"
    return Piece(text, calls=((name, given),), dialect="coder")


@st.composite
def text(draw):
    words = draw(prose)
    return Piece(words, shown=words)


@st.composite
def fence(draw):
    inside = draw((hermes() | coder()).filter(lambda piece: "```" not in piece.written))
    written = f"\n```\n{inside.written}\n```\n"
    return Piece(written, shown=written)


@st.composite
def replies(draw):
    """Draw a reply as its parts: calls with or without visible text around them."""
    return draw(st.lists(text() | fence() | hermes() | coder(), min_size=1, max_size=5))


def joined(pieces):
    """Return the reply's text, its visible text (without blanks next to calls) and its calls."""
    shown = ""
    stretch, beside = "", False
    for piece in pieces:
        if piece.calls:
            shown += stretch if stretch.strip() else ""
            stretch, beside = "", True
        else:
            stretch += piece.shown
    shown += stretch if stretch.strip() or not beside else ""
    return "".join(piece.written for piece in pieces), shown, [call for p in pieces for call in p.calls]
