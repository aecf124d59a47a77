"""Arguments that fit a JSON schema, made from the words of a question: the same for the same input.

Enough of JSON Schema for tool parameters: type (also a list), enum, const, default, properties, required,
items, $ref into $defs, anyOf/oneOf/allOf, minimum and lengths. A schema is a stranger's: one answer has at
most MAX_VALUES values and a bounded length, whatever the schema unfolds to; beyond that everything is null.
"""

from __future__ import annotations

import re
from typing import Any

_LOCATION = re.compile(r"\b(?:in|of|for|at|to|from|near)\s++((?:[A-Z][\w'-]*+\s?+)++)")
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")
_QUOTED_TEXT = re.compile(r"\"([^\"]{1,200})\"|'([^']{1,200})'|`([^`]{1,200})`")
MAX_DEPTH = 12
MAX_NUMBER = 2**63
MAX_SCHEMA = 64 * 1024
"""Characters of a schema that is used."""
MAX_VALUES = 1000
"""In one answer; 100 characters that are copied from the schema count as one more."""
MAX_CHOICES = 100
"""Of one keyword that are looked at."""
MAX_TEXT = 2000
"""Characters of a text value, and of the question that is read."""


def example_arguments(schema: Any, question: str) -> Any:
    """A value that fits `schema` (an object for tool parameters)."""
    if not isinstance(schema, dict) or len(str(schema)) > MAX_SCHEMA:
        schema = {}
    return _ValueGenerator(schema, question).value(schema, "", 0)


class _ValueGenerator:
    def __init__(self, root: dict[str, Any], question: str) -> None:
        self.root = root
        self.question = question[:MAX_TEXT]
        self.lowered = self.question.lower()
        self.numbers = [float(n) if "." in n else int(n) for n in _NUMBER.findall(self.question)]
        self.budget = MAX_VALUES

    def value(self, schema: Any, name: str, depth: int) -> Any:
        schema = self.resolve(schema)
        self.budget -= 1
        if depth > MAX_DEPTH or self.budget < 0 or not isinstance(schema, dict):
            return None
        for key in ("const", "default"):
            if key in schema:
                return self.copied(schema[key])
        if choices := _listed(schema, "enum"):
            return self.copied(next((one for one in choices if str(one).lower() in self.lowered), choices[0]))
        for key in ("anyOf", "oneOf", "allOf"):
            if options := [o for o in map(self.resolve, _listed(schema, key)) if isinstance(o, dict)]:
                chosen = next((o for o in options if o.get("type") != "null"), options[0])
                return self.value({**chosen, "description": schema.get("description", "")}, name, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string" if name else "object")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        return self.of_type(kind, schema, name, depth)

    def copied(self, value: Any) -> Any:
        """Return a part of the schema, as far as the budget goes."""
        self.budget -= len(str(value)) // 100
        return value if self.budget >= 0 else None

    def resolve(self, schema: Any) -> Any:
        for _ in range(MAX_DEPTH):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str):
                break
            found: Any = self.root
            for part in reference.removeprefix("#").strip("/").split("/"):
                found = found.get(part, {}) if isinstance(found, dict) else {}
            schema = found
        return schema

    def of_type(self, kind: str, schema: dict[str, Any], name: str, depth: int) -> Any:
        if kind == "object":
            properties = schema.get("properties")
            properties = properties if isinstance(properties, dict) else {}
            wanted = _listed(schema, "required") if "required" in schema else list(properties)
            return {
                key: self.value(properties.get(key, {"type": "string"}), key, depth + 1)
                for key in wanted
                if isinstance(key, str) and self.copied(key) is not None
            }
        if kind == "array":
            count = max(1, min(int(_number(schema, "minItems", 1)), self.budget))
            return [
                self.value(schema.get("items") or {"type": "string"}, name or "item", depth + 1)
                for _ in range(count)
            ]
        if kind in ("integer", "number"):
            number = self.numbers.pop(0) if self.numbers else _number(schema, "minimum", 1)
            number = max(number, _number(schema, "minimum", number))
            number = min(number, _number(schema, "maximum", number))
            return int(number) if kind == "integer" else number
        if kind == "boolean":
            return True
        return None if kind == "null" else self.text(schema, name)

    def text(self, schema: dict[str, Any], name: str) -> str:
        quoted = _QUOTED_TEXT.search(self.question)
        place = _LOCATION.search(self.question)
        if any(word in name.lower() for word in ("city", "location", "place", "country", "town")) and place:
            text = place[1].strip()
        elif quoted:
            text = next(part for part in quoted.groups() if part)
        else:
            text = {
                "date": "2026-01-01",
                "date-time": "2026-01-01T00:00:00Z",
                "uri": "https://example.com/",
            }.get(str(schema.get("format")), self.question.strip() or "text")
        text = text.ljust(min(int(_number(schema, "minLength", 0)), MAX_TEXT), "x")
        return text[: max(0, int(_number(schema, "maxLength", 200)))]


def _number(schema: dict[str, Any], key: str, default: float) -> float:
    """Return the number at `key`, where there is a finite one."""
    value = schema.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return value if abs(value) < MAX_NUMBER else default


def _listed(schema: dict[str, Any], key: str) -> list[Any]:
    """Return the first MAX_CHOICES items of the array at `key`."""
    value = schema.get(key)
    return value[:MAX_CHOICES] if isinstance(value, list) else []
