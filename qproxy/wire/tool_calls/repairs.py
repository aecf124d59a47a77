"""The kinds of repairs: what was wrong with an upstream's answer, and what was made of it.

Each stage counts what it mends in a `Counter` by these names.  Nothing here knows an answer's text, and no kind ever
holds any: kinds are in logs and metrics.  `docs/tool-calls.md` has this table, and a test compares all three.
"""

from __future__ import annotations

REPAIRS = {
    "index_missing": "an entry without an index belongs to its id's call, or to the latest",
    "index_reused": "a second call on an index gets an index of its own",
    "index_gap": "indices that do not count from 0 are counted anew",
    "id_missing": "a call without an id gets one",
    "id_late": "an id that came after its call is that call's",
    "id_duplicate": "the second call with an id gets another",
    "name_repeated": "a name that comes again is sent once",
    "name_joined": "a name that came in pieces is put together",
    "nameless_call": "a call that never got a name is dropped",
    "blank_entry": "an entry without anything in it is dropped",
    "arguments_missing": "arguments that never came are {}",
    "arguments_object": "arguments that are no string become their JSON text",
    "arguments_replayed": "arguments that come again after their end are dropped",
    "arguments_snapshot": "of arguments that repeat everything so far the new end is sent",
    "arguments_encoded": "arguments written as a string of JSON are decoded once",
    "arguments_broken": "arguments that are no JSON are passed on for the client to see",
    "text_snapshot": "of text that repeats everything so far the new end is sent",
    "written_hermes": "a call written as JSON in <tool_call> is a call",
    "written_coder": "a call written as <function=...> is a call",
    "written_legacy": "a call written in marker words is a call",
    "written_react": "a call written as Action and Action Input is a call",
    "written_bare": "a call written as bare or fenced JSON is a call",
    "call_in_thought": "a call within a thought is a call",
    "opener_missing": "a call is read although its <tool_call> is missing",
    "closer_missing": "a call is read although its </tool_call> is missing",
    "closer_stray": "a </tool_call> that closes nothing is dropped before another call",
    "brace_extra": "a brace too many after a call is dropped",
    "parameter_twice": "of a parameter given twice the first is sent",
    "result_invented": "a tool's result that the model made up is dropped",
    "think_tag": "a thought that stood in the text is reasoning",
    "finish_missing": "an answer that ended without a finish reason gets one",
    "finish_mended": "a finish reason that does not fit what was sent is exchanged",
    "finish_truncated": "a finish that hides cut arguments becomes length",
    "finish_repeated": "a second finish of a choice is dropped",
    "after_finish": "what comes after a choice's finish is dropped",
}


def repairs_table() -> str:
    """The kinds as a table for the documentation."""
    rows = (f"| `{kind}` | {meaning} |" for kind, meaning in REPAIRS.items())
    return "\n".join(["| kind | what is done |", "| --- | --- |", *rows])
