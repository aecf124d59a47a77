"""One line of the doctor's report, and the report as a whole: for people, for programs, and as an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
CONFIGURATION = "configuration"
"""The area whose failure means that nothing could be served."""
SHOWN: dict[State, str] = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "-"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    area: str
    """What it is about: configuration, an account, a server."""
    name: str
    state: State
    message: str
    advice: str = ""
    """What to do; or, where a server breaks a contract, whom it hurts."""
    tokens: int = 0
    """What the check cost."""

    @property
    def failed(self) -> bool:
        return self.state == "failed"


def last_failed(findings: Sequence[Finding]) -> bool:
    """Whether the last check failed, so that those that build on it make no sense."""
    return findings[-1].failed


def exit_code(findings: Sequence[Finding]) -> int:
    """0 all well (warnings are no failure), 1 something failed, 2 the configuration cannot be served."""
    failed = {finding.area for finding in findings if finding.failed}
    return 2 if CONFIGURATION in failed else 1 if failed else 0


def fields(findings: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs."""
    return {
        "ok": exit_code(findings) == 0,
        "exit_code": exit_code(findings),
        "tokens": sum(finding.tokens for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The report for people: an area's findings below its name, and a sum."""
    width, area = max((len(finding.name) for finding in findings), default=0), ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            yield area
        yield f"  {SHOWN[finding.state]:<8} {finding.name:<{width}}  {finding.message}".rstrip()
        if finding.advice:
            yield f"  {'':<8} {'':<{width}}  → {finding.advice}"
    yield summary(findings)


def summary(findings: Sequence[Finding]) -> str:
    """The sum of a report."""
    states = Counter(finding.state for finding in findings)
    parts = [
        f"{states['failed']} failed",
        f"{states['warning']} {'warning' if states['warning'] == 1 else 'warnings'}",
        f"{states['ok']} well",
    ]
    if states["skipped"]:
        parts.append(f"{states['skipped']} skipped")
    tokens = sum(finding.tokens for finding in findings)
    return f"{', '.join(parts)}{f'; it cost {tokens} tokens' if tokens else ''}."
