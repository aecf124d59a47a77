"""Findings of checks, and the report of them as text, as JSON and as an exit code.

The text fits a width and shows colors if its caller prints to a terminal; this module knows of neither.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
CONFIGURATION = "configuration"
"""Area of findings that prevent the server from starting."""
SHOWN: dict[State, str] = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "-"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    area: str
    """Subject of the check: configuration, an account, a server."""
    name: str
    state: State
    message: str
    advice: str = ""
    """Suggested fix; for a contract violation, its consequence for clients."""
    tokens: int = 0
    """Tokens that the check used."""

    @property
    def failed(self) -> bool:
        return self.state == "failed"


def last_failed(findings: Sequence[Finding]) -> bool:
    """Return whether the last check failed, so that dependent checks are pointless."""
    return findings[-1].failed


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 if nothing failed (there may be warnings), 2 if the configuration is invalid, otherwise 1."""
    failed = {finding.area for finding in findings if finding.failed}
    return 2 if CONFIGURATION in failed else 1 if failed else 0


def fields(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the report as JSON-compatible data."""
    return {
        "ok": exit_code(findings) == 0,
        "exit_code": exit_code(findings),
        "tokens": sum(finding.tokens for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _plain(text: str, state: State) -> str:
    return text


def lines(
    findings: Sequence[Finding],
    columns: int | None = None,
    color: Callable[[str, State], str] = _plain,
) -> Iterator[str]:
    """Yield the lines of the report: the findings of each area below its name, and a summary.

    `columns` is the width to fit, None for one line per text; `color` colors the state of a finding.
    """
    width, area = max((len(finding.name) for finding in findings), default=0), ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            yield area
        indent = " " * (13 + width)
        first, *rest = _wrap(finding.message, columns and columns - len(indent)) or [""]
        state = color(f"{SHOWN[finding.state]:<8}", finding.state)
        yield f"  {state} {finding.name:<{width}}  {first}".rstrip()
        yield from (f"{indent}{line}" for line in rest)
        if finding.advice:
            first, *rest = _wrap(finding.advice, columns and columns - len(indent) - 2)
            yield f"{indent}→ {first}"
            yield from (f"{indent}  {line}" for line in rest)
    yield summary(findings)


def _wrap(text: str, columns: int | None) -> list[str]:
    """Return a text in lines of at most `columns`, but of 20 at least."""
    if columns is None:
        return [text]
    return textwrap.wrap(text, max(20, columns), break_long_words=False, break_on_hyphens=False)


def summary(findings: Sequence[Finding]) -> str:
    """Return the numbers of findings by state, and the tokens used."""
    states = Counter(finding.state for finding in findings)
    parts = [
        f"{states['failed']} failed",
        f"{states['warning']} {'warning' if states['warning'] == 1 else 'warnings'}",
        f"{states['ok']} passed",
    ]
    if states["skipped"]:
        parts.append(f"{states['skipped']} skipped")
    tokens = sum(finding.tokens for finding in findings)
    return f"{', '.join(parts)}{f'; {tokens} tokens used' if tokens else ''}."
