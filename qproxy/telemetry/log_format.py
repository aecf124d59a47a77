"""A log line: JSON for machines, columns and `key=value` for people.

A request's line has its fields in `extra={"fields": ...}`. In text, the most important ones have columns:
status, total time and time to the first byte, tokens in and out, model, key and account; the others follow by
name.

Redaction is the last step for every line, including tracebacks and lines of other libraries.
"""

from __future__ import annotations

import json
import logging
import textwrap
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from qproxy.telemetry.redaction import Redactor

IN_COLUMNS = frozenset((
    "method", "path", "status", "outcome", "model", "key", "account", "stream",
    "prompt_tokens", "completion_tokens", "first_byte_ms", "total_ms",
))  # fmt: skip
"""Fields of a request that have a column in a text line."""

COLORS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
"""Parameters of SGR (ECMA-48 8.3.117), by the level of a record."""
MIN_WIDTH = 40
_write = json.JSONEncoder(ensure_ascii=False, default=str).encode


class LogFormatter(logging.Formatter):
    """Formats a record as one line; in text, as several that fit `width` columns, with its level
    `colored`."""

    def __init__(
        self,
        *,
        as_json: bool,
        redactor: Redactor | None = None,
        worker: int | None = None,
        width: int | None = None,
        colored: bool = False,
    ) -> None:
        super().__init__()
        self._width, self._colored = width, colored
        self._as_json = as_json
        self._worker_label = {} if worker is None else {"worker": worker}
        self._redactor = redactor or Redactor()

    def format(self, record: logging.LogRecord) -> str:
        if self._as_json:
            return self._redactor.text(self._json(record))
        text = self._redactor.text(self._text(record))
        if self._width is not None:
            text = "\n".join(self._wrap(text))
        color = COLORS.get(record.levelno) if self._colored else None
        return text if color is None else f"\x1b[{color}m{text}\x1b[0m"

    def _wrap(self, text: str) -> Iterator[str]:
        """Yield the lines of a text; those that continue a line are indented, so that none imitates a
        record."""
        for line in text.split("\n"):
            yield from textwrap.wrap(
                line,
                self._width or MIN_WIDTH,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            ) or [""]

    def _json(self, record: logging.LogRecord) -> str:
        head: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        head |= self._worker_label
        fields = getattr(record, "fields", None)
        if fields is None:
            fields = {"message": record.getMessage()}
            if record.exc_info:
                fields["traceback"] = self.formatException(record.exc_info)
        return escape_controls(_write({**head, **fields}))

    def _text(self, record: logging.LogRecord) -> str:
        when, fields = _timestamp(record)[11:], getattr(record, "fields", None)
        if fields is not None and "status" in fields:
            return f"{when} {printable(columns({**fields, **self._worker_label}))}"
        shown = [when, record.levelname.lower(), record.getMessage()]
        shown += [
            f"{name}={value}"
            for name, value in {**(fields or {}), **self._worker_label}.items()
            if name != "message"
        ]
        lines = [printable(" ".join(shown))]
        if record.exc_info:  # indented, so that an exception's text cannot imitate a log line
            lines += [f"  {printable(line)}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


def escape_controls(text: str) -> str:
    """Escape every character of JSON text that is not printable.

    JSON itself (RFC 8259 7) requires that for C0 controls only. U+0085, U+2028 and U+2029 end a line for some
    readers, C1 controls drive a terminal, bidirectional marks disguise a line, and a lone surrogate cannot be
    encoded.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """Escape line breaks and terminal controls in a text: clients choose paths and names."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _timestamp(record: logging.LogRecord) -> str:
    """Return the time in UTC with milliseconds."""
    return f"{_fraction(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=4)
def _fraction(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def columns(fields: Mapping[str, Any]) -> str:
    """Format a request's fields as a text line."""
    first = f"({_duration(fields['first_byte_ms'])})" if "first_byte_ms" in fields else ""
    tokens = ""
    if "prompt_tokens" in fields:
        tokens = f"{fields['prompt_tokens']}→{fields.get('completion_tokens', 0)} tok"
    whose = [fields[name] for name in ("key", "account") if name in fields]
    shown = [
        f"{fields['status'] or '---'} {fields['outcome']:<12}",
        f"{_duration(fields['total_ms']):>7} {first:<9}",
        f"{tokens:<15}",
        f"{fields.get('model', '-'):<18}",
        " → ".join(whose) or "-",
        f"{fields['method']} {fields['path']}" + (" (stream)" if fields.get("stream") else ""),
    ]
    rest = [f"{name}={value}" for name, value in fields.items() if name not in IN_COLUMNS]
    return "  ".join([*shown, " ".join(rest)]).rstrip()


def _duration(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    return f"{milliseconds / 1000:.2f}s" if milliseconds < 100_000 else f"{milliseconds / 1000:.0f}s"
