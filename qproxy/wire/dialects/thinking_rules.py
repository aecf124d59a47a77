"""The rules about thinking: how hard, whether at all, and what does not go together with it.

A model that always thinks (`thinking = "only"`) refuses to be switched off, so it is left on and the client
is notified. Source: Model Studio's pages on deep thinking and on its chat interface.
"""

from __future__ import annotations

from qproxy.wire.dialects import effort, message_rules
from qproxy.wire.dialects.request_draft import RequestDraft


def reasoning_effort(draft: RequestDraft) -> bool:
    """Translate an effort into the model's own words; unknown vendors get it as it is."""
    word = draft.params.get("reasoning_effort")
    if not isinstance(word, str) or draft.spec.efforts is None:
        return False
    before = dict(draft.params)
    if draft.spec.efforts:
        _native_effort(draft, word)
    else:
        _effort_as_budget(draft, word)
    return draft.params != before


def _native_effort(draft: RequestDraft, word: str) -> None:
    """Set the word of a model that reads efforts, and drop what would contradict it."""
    thinks = effort.means_thinking(word, draft.spec)
    if not thinks and word not in (draft.spec.efforts or ()):
        _stop_thinking(draft)
        return
    draft.params["reasoning_effort"] = effort.native_word(word, draft.spec)
    if draft.spec.effort_xor_budget and draft.params.pop("thinking_budget", None) is not None:
        draft.ignored.append("thinking_budget")  # together the two are refused
    switch = draft.params.pop("enable_thinking", None)
    if isinstance(switch, bool) and switch is not thinks:
        draft.ignored.append("enable_thinking")


def _effort_as_budget(draft: RequestDraft, word: str) -> None:
    """Switch thinking and set the word's budget for a model that does not read efforts."""
    if draft.spec.thinking == "none":
        del draft.params["reasoning_effort"]
        draft.ignored.append("reasoning_effort")
        return
    if not effort.means_thinking(word, draft.spec):
        _stop_thinking(draft)
        return
    del draft.params["reasoning_effort"]
    if draft.can_stop_thinking:
        draft.params.setdefault("enable_thinking", True)
    budget = (draft.spec.effort_budgets or {}).get(word)
    if budget is not None and draft.spec.budget is not False and draft.thinking:
        draft.params.setdefault("thinking_budget", budget)


def _stop_thinking(draft: RequestDraft) -> None:
    if draft.can_stop_thinking:
        draft.set_thinking(False)
        return
    del draft.params["reasoning_effort"]
    draft.notes.append("thinking on: this model cannot do without")


def thinking_kwargs(draft: RequestDraft) -> bool:
    """Chat templates read `enable_thinking` and `preserve_thinking` from `chat_template_kwargs` alone."""
    thinking, word = draft.params.get("enable_thinking"), draft.params.get("reasoning_effort")
    if isinstance(word, str) and not effort.means_thinking(word, draft.spec):
        thinking = False
    known = draft.params.get("chat_template_kwargs") or {}
    if not isinstance(known, dict):
        return False
    switches = {"enable_thinking": thinking, "preserve_thinking": draft.params.get("preserve_thinking")}
    added = {name: on for name, on in switches.items() if isinstance(on, bool) and name not in known}
    if added:
        draft.params["chat_template_kwargs"] = {**known, **added}
    return bool(added)


def completion_thinking(draft: RequestDraft) -> bool:
    requested = "enable_thinking" in draft.params or "reasoning_effort" in draft.params
    if draft.is_completion is None or requested or not draft.thinking or not draft.can_stop_thinking:
        return False
    draft.set_thinking(False)
    return True


def forced_tool(draft: RequestDraft) -> bool:
    """A forced call and thoughts exclude each other for most models; where that is not known, the server is
    asked."""
    if draft.spec.forced_tool in ("yes", "unknown"):
        return False
    return forced_tool_refused(draft)


def forced_tool_refused(draft: RequestDraft) -> bool:
    """Separate a forced call from thinking, whatever is known of the model: its server refuses both."""
    if not draft.forces_tool or not draft.thinking:
        return False
    if draft.forced_tools == "auto" or not draft.can_stop_thinking:
        draft.tool_choice = "auto"
        draft.notes.append("tool_choice auto: this model cannot be forced while it thinks")
    else:
        draft.set_thinking(False)
        draft.notes.append("thinking off: this model cannot be forced to call a tool while it thinks")
    return True


def prefix_thinking(draft: RequestDraft) -> bool:
    """Switch thinking off where the answer begins with a text of the client (`partial`)."""
    if "partial" not in draft.marks or draft.messages[-1].get("partial") is not True:
        return False
    if draft.spec.prefix != "nonthinking" or not draft.thinking or not draft.can_stop_thinking:
        return False
    draft.set_thinking(False)
    draft.notes.append("thinking off: this model cannot think before it continues a text")
    return True


def json_mode(draft: RequestDraft) -> bool:
    kind = (draft.params.get("response_format") or {}).get("type")
    if kind not in ("json_object", "json_schema") or draft.spec.json_thinking:
        return False
    if draft.spec.json_thinking is None and "enable_thinking" not in draft.params:
        return False
    if not draft.thinking or not draft.can_stop_thinking:
        return False
    draft.set_thinking(False)
    draft.notes.append("thinking off: this model cannot think in JSON mode")
    return True


def thinking_summary(draft: RequestDraft) -> bool:
    """Ask for a summary and ciphertext in place of the reasoning, where the client's API asks for a
    summary."""
    if (
        not draft.summarize_reasoning
        or not draft.spec.encrypted_thinking
        or "thinking_display" in draft.params
    ):
        return False
    draft.params["thinking_display"] = "summarized"
    return True


def foreign_ciphertext(draft: RequestDraft) -> bool:
    """Leave out ciphertext of reasoning for models that are not known to have any: no other model can read
    it."""
    if "encrypted_content" not in draft.marks or draft.spec.encrypted_thinking:
        return False
    draft.set_messages(message_rules.without_ciphertext(draft.messages))
    draft.ignored.append("messages.encrypted_content")
    return True


def preserve_thinking(draft: RequestDraft) -> bool:
    """Have the server read earlier thoughts: their ciphertext, and their text for APIs that keep it."""
    if "preserve_thinking" in draft.params:
        return False
    spec = draft.spec
    is_encrypted = "encrypted_content" in draft.marks and bool(spec.encrypted_thinking)
    has_text = draft.preserve_reasoning and "reasoning_content" in draft.marks
    is_read_on_request = spec.preserve_thinking == "off" and spec.knows("preserve_thinking")
    if not is_encrypted and not (has_text and is_read_on_request):
        return False
    draft.params["preserve_thinking"] = True
    return True
