"""The results of a web search, from a model's server or from a tool that searches, and their citations.

A server names its results in DashScope's shape: `{"search_results": [{"index", "title", "url"}]}`; the output
of a tool is brought into it. A text cites a result by a mark (`[ref_1]`, which DashScope writes on request)
or by its URL, alone or as the target of a Markdown link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.events import JSON

CITATION_FORMAT = "[ref_<number>]"
"""DashScope's `citation_format`, of marks that no other text has."""
MAX_RESULTS = 100
MAX_CITATIONS = 1000
MAX_OUTPUT = 256 * 1024
"""Characters of a tool's output that are read."""
MAX_LINK_TEXT = 300
_LISTS = (
    "search_results",
    "results",
    "organic_results",
    "organic",
    "items",
    "data",
    "pages",
    "webPages",
    "value",
)
"""Where search engines have their results."""
_URLS, _TITLES = ("url", "link", "href"), ("title", "name")
_CITED = re.compile(r"""\[ref_\d{1,3}\]|https?+://[^\s<>()\[\]"'`]++""")
_LINK_END = ".,;:!?*_"
"""Characters that end a sentence rather than a URL."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page that a search found."""

    url: str
    title: str
    index: int
    """The number by which a mark names it."""


@dataclass(frozen=True, slots=True)
class Citation:
    """The characters of a text that name a result; `end` is the first one after them."""

    start: int
    end: int
    result: SearchResult


def parse_results(info: JSON) -> list[SearchResult]:
    """Return the results that a server named; those without a URL are left out."""
    entries = info.get("search_results") if isinstance(info, dict) else None
    if not isinstance(entries, list):
        return []
    found = []
    for place, entry in enumerate(entries[:MAX_RESULTS], 1):
        url = _first_text(entry, _URLS)
        if url:
            index = entry.get("index")
            found.append(
                SearchResult(url, _first_text(entry, _TITLES), index if type(index) is int else place)
            )
    return found


def results_of_output(output: str) -> dict[str, JSON]:
    """Return the results in a tool's output, JSON or text, in DashScope's shape."""
    try:
        entries = list(_entries(json_codec.loads(output[:MAX_OUTPUT])))
    except ValueError:
        entries = [{"url": url, "title": ""} for url in dict.fromkeys(_urls(output[:MAX_OUTPUT]))]
    named = ({"title": _first_text(entry, _TITLES), "url": _first_text(entry, _URLS)} for entry in entries)
    results = [{"index": place, **entry} for place, entry in enumerate(named, 1) if entry["url"]]
    return {"search_results": results[:MAX_RESULTS]}


def _entries(value: JSON) -> Iterator[JSON]:
    """Yield the objects of a list of results, which may be within an object or two."""
    for _ in range(3):
        if isinstance(value, list):
            yield from value[:MAX_RESULTS]
            return
        if not isinstance(value, dict):
            return
        value = next((value[name] for name in _LISTS if name in value), None)


def _urls(text: str) -> Iterator[str]:
    for match in _CITED.finditer(text):
        if match[0][0] == "h":
            yield match[0].rstrip(_LINK_END)


def _first_text(entry: JSON, names: Sequence[str]) -> str:
    values = (entry.get(name) for name in names) if isinstance(entry, dict) else ()
    return next((value for value in values if isinstance(value, str) and value), "")


def find_citations(text: str, results: Sequence[SearchResult]) -> list[Citation]:
    """Return where a text names its results; if it names none, each stands for the whole text."""
    if not results or not text:
        return []
    by_index = {result.index: result for result in results}
    by_url = {result.url: result for result in results}
    found = []
    for match in _CITED.finditer(text):
        start, end = match.span()
        if match[0][0] == "[":
            result = by_index.get(int(match[0][5:-1]))
        else:
            url = match[0] if match[0] in by_url else match[0].rstrip(_LINK_END)
            result, (start, end) = by_url.get(url), _link_span(text, start, start + len(url))
        if result is not None:
            found.append(Citation(start, end, result))
            if len(found) == MAX_CITATIONS:
                break
    return found or [Citation(0, len(text), result) for result in results]


def _link_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span of the Markdown link whose target this is, or of the URL alone."""
    if text[start - 2 : start] == "](" and text[end : end + 1] == ")":
        opened = text.rfind("[", max(0, start - MAX_LINK_TEXT), start - 2)
        if opened >= 0:
            return opened, end + 1
    return start, end
