"""The rules about web search, and about fields that only Alibaba's servers know.

OpenAI asks for a search with `web_search_options`, Qwen with `enable_search` and `search_options`. Sources
come in DashScope's native API alone, where `enable_source` asks for them, and `enable_citation` for marks in
the text. Source: Model Studio's page on web
search.
"""

from __future__ import annotations

from qproxy.wire.dialects.request_draft import RequestDraft
from qproxy.wire.search_results import CITATION_FORMAT

HOSTED_PARAMS = ("enable_search", "search_options", "web_search_options", "tool_stream")
"""Parameters that Alibaba's servers know and servers of open weights do not."""


def web_search(draft: RequestDraft) -> bool:
    """Ask for a search as Qwen does, unless the model has none; its own parameters take precedence."""
    options = draft.params.get("web_search_options")
    if not isinstance(options, dict):
        return False
    if draft.spec.search == []:
        return draft.drop_param("web_search_options")
    del draft.params["web_search_options"]
    if draft.params.setdefault("enable_search", True) is not True:
        draft.ignore("web_search_options")
        return True
    for name in options:
        if name != "search_context_size" and options[name] is not None:
            draft.ignore(f"web_search_options.{name}")
    found = _search_options(draft, options.get("search_context_size"))
    given = draft.params.get("search_options")
    if found and isinstance(given, dict | None):
        draft.params["search_options"] = {**found, **(given or {})}
    return True


def _search_options(draft: RequestDraft, size: object) -> dict[str, object]:
    options: dict[str, object] = {}
    if draft.native:
        options["enable_source"] = True
        if draft.cites_sources and "response_format" not in draft.params:  # marks would break JSON
            options |= {"enable_citation": True, "citation_format": CITATION_FORMAT}
    if size == "high" and draft.spec.knows("search") and "max" in (draft.spec.search or ()):
        options["search_strategy"] = "max"
    elif size not in (None, "medium"):
        draft.ignore("web_search_options.search_context_size")
    return options


def hosted_params(draft: RequestDraft) -> bool:
    """Leave out, for a model of open weights on another server, what only Alibaba's servers know.

    A model that only Alibaba serves is behind a gateway to it, which passes these fields on.
    """
    if draft.spec.vendor == "qwen" and not draft.spec.open_weights and draft.spec.line is not None:
        return False
    dropped = [name for name in HOSTED_PARAMS if _is_foreign(draft, name) and draft.drop_param(name)]
    if "partial" in draft.marks:
        draft.drop_message_key("partial")
        dropped.append("partial")
    return bool(dropped)


def _is_foreign(draft: RequestDraft, name: str) -> bool:
    """Return whether no server of the model can know a parameter; OpenAI's own may be known to another
    vendor's."""
    return name != "web_search_options" or draft.spec.vendor == "qwen"
