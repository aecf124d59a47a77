"""Arguments that fit a JSON schema, made from the words of a question: the same for the same input.

Enough of JSON Schema for tool parameters: type (also a list), enum, const, default, properties, required, items,
$ref into $defs, anyOf/oneOf/allOf, minimum and lengths.
"""

from __future__ import annotations

import re
from typing import Any

_PLACE = re.compile(r"\b(?:in|of|for|at|to|from|near)\s+((?:[A-Z][\w'-]*\s?)+)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"\"([^\"]+)\"|'([^']+)'|`([^`]+)`")
MAX_DEPTH = 12


def arguments(schema: Any, question: str) -> Any:
    """A value that fits `schema` (an object for tool parameters)."""
    return _Maker(schema if isinstance(schema, dict) else {}, question).value(schema, "", 0)


class _Maker:
    def __init__(self, root: dict[str, Any], question: str) -> None:
        self.root = root
        self.question = question
        self.numbers = [float(n) if "." in n else int(n) for n in _NUMBER.findall(question)]

    def value(self, schema: Any, name: str, depth: int) -> Any:
        schema = self.resolved(schema)
        if depth > MAX_DEPTH or not isinstance(schema, dict):
            return None
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        if schema.get("enum"):
            lowered = self.question.lower()
            return next((item for item in schema["enum"] if str(item).lower() in lowered), schema["enum"][0])
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                options = [self.resolved(option) for option in schema[key]]
                chosen = next((o for o in options if o.get("type") != "null"), options[0])
                return self.value({**chosen, "description": schema.get("description", "")}, name, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string" if name else "object")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        return self.of_kind(kind, schema, name, depth)

    def resolved(self, schema: Any) -> Any:
        for _ in range(MAX_DEPTH):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str):
                break
            found: Any = self.root
            for part in reference.removeprefix("#").strip("/").split("/"):
                found = found.get(part, {}) if isinstance(found, dict) else {}
            schema = found
        return schema

    def of_kind(self, kind: str, schema: dict[str, Any], name: str, depth: int) -> Any:
        if kind == "object":
            properties = schema.get("properties") or {}
            wanted = schema.get("required")
            wanted = list(properties) if wanted is None else wanted
            return {
                key: self.value(properties.get(key, {"type": "string"}), key, depth + 1) for key in wanted
            }
        if kind == "array":
            count = max(1, int(schema.get("minItems", 1)))
            return [
                self.value(schema.get("items") or {"type": "string"}, name or "item", depth + 1)
                for _ in range(count)
            ]
        if kind in ("integer", "number"):
            number = self.numbers.pop(0) if self.numbers else schema.get("minimum", 1)
            number = max(number, schema.get("minimum", number))
            number = min(number, schema.get("maximum", number))
            return int(number) if kind == "integer" else number
        if kind == "boolean":
            return True
        return None if kind == "null" else self.text(schema, name)

    def text(self, schema: dict[str, Any], name: str) -> str:
        quoted = _QUOTED.search(self.question)
        place = _PLACE.search(self.question)
        if any(word in name.lower() for word in ("city", "location", "place", "country", "town")) and place:
            text = place[1].strip()
        elif quoted:
            text = next(part for part in quoted.groups() if part)
        else:
            text = {
                "date": "2026-01-01",
                "date-time": "2026-01-01T00:00:00Z",
                "uri": "https://example.com/",
            }.get(schema.get("format", ""), self.question.strip() or "text")
        text = text.ljust(int(schema.get("minLength", 0)), "x")
        return text[: int(schema.get("maxLength", 200))]
