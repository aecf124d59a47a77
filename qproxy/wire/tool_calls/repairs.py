"""The kinds of repairs: what was wrong with an upstream's response, and how it was corrected.

Each stage counts its repairs in a `Counter` by these names. No kind holds text of a response: kinds are in
logs and metrics. `docs/tool-calls.md` has this table, and a test compares all three.
"""

from __future__ import annotations

REPAIRS = {
    "index_missing": "an entry without an index goes to its id's call, or to the latest call",
    "index_reused": "a second call on an index gets its own index",
    "index_gap": "indices are renumbered from 0 without gaps",
    "id_missing": "a call without an id gets one",
    "id_late": "an id that came after its call is assigned to that call",
    "id_duplicate": "the second call with an id gets another id",
    "call_copied": "a call that came twice, or both as text and structured, is sent once",
    "name_repeated": "a repeated name is sent once",
    "name_joined": "a name that came in pieces is joined",
    "nameless_call": "a call that never got a name is dropped",
    "blank_entry": "an empty entry is dropped",
    "arguments_missing": "missing arguments become {}",
    "arguments_object": "arguments that are not a string become their JSON text",
    "arguments_replayed": "arguments that come again after their end are dropped",
    "arguments_snapshot": "of arguments that repeat everything so far only the new end is sent",
    "arguments_encoded": "arguments written as a string of JSON are decoded once",
    "arguments_broken": "arguments that are not JSON are passed on for the client to see",
    "text_snapshot": "of text that repeats everything so far only the new end is sent",
    "written_hermes": "a call written as JSON in <tool_call> becomes a call",
    "written_coder": "a call written as <function=...> becomes a call",
    "written_legacy": "a call written in marker words becomes a call",
    "written_react": "a call written as Action and Action Input becomes a call",
    "written_bare": "a call written as bare JSON or in a code block becomes a call",
    "written_element": "a call written as JSON in <tools>, <function_call> or the like becomes a call",
    "written_named": "a call written as NAME(...), NAME {...} or <function>NAME</function> becomes a call",
    "call_in_thought": "a call within reasoning becomes a call",
    "opener_missing": "a call is read although its <tool_call> is missing",
    "closer_missing": "a call is read although its </tool_call> is missing",
    "closer_stray": "a closing tag or end token that closes nothing is dropped beside a call",
    "brace_extra": "an extra brace after a call is dropped",
    "parameter_twice": "of a repeated parameter the first value is sent",
    "result_invented": "a tool result that the model invented is dropped",
    "think_tag": "reasoning that was part of the text becomes reasoning",
    "json_in_reasoning": "requested JSON that the server took for reasoning becomes content",
    "finish_missing": "a response that ended without a finish reason gets one",
    "finish_corrected": "a finish reason that contradicts what was sent is replaced",
    "finish_truncated": "a finish reason that hides truncated arguments becomes length",
    "finish_repeated": "a second finish of a choice is dropped",
    "after_finish": "events after a choice's finish are dropped",
}


def repairs_table() -> str:
    """Return the kinds as a table for the documentation."""
    rows = (f"| `{kind}` | {meaning} |" for kind, meaning in REPAIRS.items())
    return "\n".join(["| kind | what is done |", "| --- | --- |", *rows])
