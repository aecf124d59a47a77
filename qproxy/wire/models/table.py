"""A Markdown table of the features of each model, for docs/models.md."""

from __future__ import annotations

from qproxy.wire.models.catalog import ModelCatalog
from qproxy.wire.models.spec import ModelSpec

_COLUMNS = ("model", "context", "output", "thinking", "reasoning_effort", "JSON", "input", "cache", "retired")
_THINKING = {"on": "on", "off": "on request", "only": "always", "none": "no", None: ""}
_CACHES = {
    "options": "OpenAI's options",
    "explicit": "`cache_control`",
    "implicit": "implicit",
    "none": "no",
    None: "",
}


def models_table(catalog: ModelCatalog) -> str:
    """Return a row for each chat model; unknown cells are left out, guessed ones stand in brackets."""
    rows = [f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
    chats = [spec for spec in catalog.models() if spec.is_for("chat")]
    rows += [f"| {' | '.join(_cells(spec))} |" for spec in chats]
    return "\n".join(rows) + "\n"


def _cells(spec: ModelSpec) -> list[str]:
    output = _number(spec, "output")
    if spec.output_thinking is not None and spec.output_thinking != spec.output:
        output += f", thinking {_number(spec, 'output_thinking')}"
    retired = f"{spec.retires}: {spec.successor}" if spec.retires else ""
    return [
        f"`{spec.id}`",
        _number(spec, "context"),
        output,
        _THINKING[spec.thinking],
        _efforts(spec),
        "schema" if spec.json_schema else "object" if spec.json_object else "",
        ", ".join(spec.inputs or ()),
        _CACHES[spec.cache],
        retired,
    ]


def _number(spec: ModelSpec, cell: str) -> str:
    value = getattr(spec, cell)
    if value is None:
        return ""
    return f"{value:,}" if spec.knows(cell) else f"({value:,})"


def _efforts(spec: ModelSpec) -> str:
    if spec.thinking == "none":
        return ""
    if not spec.efforts:
        return "as a budget" if spec.efforts is not None and spec.budget else ""
    others = ", ".join(f"{word} → {name}" for word, name in (spec.effort_map or {}).items())
    return " ".join(spec.efforts) + (f"; {others}" if others else "")
