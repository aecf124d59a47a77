"""The rules about context caches: OpenAI's breakpoints and options, in what a model knows of them."""

from __future__ import annotations

from qproxy.wire.dialects import message_rules
from qproxy.wire.dialects.request_draft import RequestDraft


def cache_breakpoints(draft: RequestDraft) -> bool:
    if list not in draft.marks or draft.spec.cache in ("options", None):
        return False
    explicit = draft.spec.cache == "explicit"
    changed = message_rules.cache_breakpoints(draft.messages, explicit=explicit)
    if changed is draft.messages:
        return False
    draft.set_messages(changed)
    if not explicit:
        draft.ignored.append("prompt_cache_breakpoint")
    return True


def cache_options(draft: RequestDraft) -> bool:
    return draft.spec.cache != "options" and draft.drop_param("prompt_cache_options")


def cache_ttl(draft: RequestDraft) -> bool:
    names = draft.spec.cache_ttls or {}
    messages = message_rules.breakpoint_ttls(draft.messages, names) if list in draft.marks else draft.messages
    changed = messages is not draft.messages
    if changed:
        draft.set_messages(messages)
    options = draft.params.get("prompt_cache_options")
    if not isinstance(options, dict) or options.get("ttl") not in names:
        return changed
    draft.params["prompt_cache_options"] = {**options, "ttl": names[options["ttl"]]}
    return True
