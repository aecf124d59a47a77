"""What was measured, as a table and a picture."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FLOOR = "forwarder"
BEGIN, END = "<!-- measured by scripts/bench -->", "<!-- until here -->"
COLORS = {"forwarder": "#8a8f98", "nginx": "#3f9c6b", "qproxy": "#6c4bd8"}


class Report(NamedTuple):
    """Of one run."""

    servers: list[str]
    cases: dict[str, str]
    found: Mapping[tuple[str, str], Any]
    idle: Mapping[str, float]
    after: Mapping[str, float]
    held: tuple[int, Mapping[str, tuple[float, float]]]
    """How many streams, and what they took of each server."""
    start: Mapping[str, float]
    twice: float | None
    """What two workers do, to what one does."""

    def table(self) -> str:
        """Markdown."""
        with_cpu = [name for name in self.servers if name != "direct"]
        rows = [f"| CPU, µs a unit | {' | '.join(with_cpu)} |", "| --- |" + " --- |" * len(with_cpu)]
        rows += [
            f"| {title} | {' | '.join(self._cpu(key, name) for name in with_cpu)} |"
            for key, title in self.cases.items()
        ]
        rows += ["", *self._latency(), "", *self._rest()]
        return "\n".join(rows)

    def _cpu(self, key: str, name: str) -> str:
        cpu, floor = self.found[key, name].cpu, self.found[key, FLOOR].cpu
        errors = f" ({self.found[key, name].errors:.0f} errors)" if self.found[key, name].errors else ""
        ratio = f" ({cpu / floor:.1f} ×)" if name != FLOOR and floor >= 1 else ""
        return f"{cpu:.1f}{ratio}{errors}" if cpu < 100 else f"{cpu:.0f}{ratio}{errors}"

    def _latency(self) -> list[str]:
        if "alone" not in self.cases:
            return []
        rows = ["| one at a time, ms | median | 99th percentile |", "| --- | --- | --- |"]
        direct = self.found["alone", "direct"]
        for name in self.servers:
            one = self.found["alone", name]
            added = (
                "" if name == "direct" else f" (+{one.p50 - direct.p50:.2f})",
                f" (+{one.p99 - direct.p99:.2f})",
            )
            rows.append(
                f"| {name} | {one.p50:.2f}{added[0]} | {one.p99:.2f}{added[1] if name != 'direct' else ''} |"
            )
        return rows

    def _rest(self) -> list[str]:
        rows = ["| | forwarder | qproxy |", "| --- | --- | --- |"]
        pair = (FLOOR, "qproxy")
        rows.append(
            f"| first answer after the start, s | {' | '.join(f'{self.start[n]:.2f}' for n in pair)} |"
        )
        rows.append(f"| memory before, MB | {' | '.join(f'{self.idle[n] / 1024:.0f}' for n in pair)} |")
        rows.append(
            f"| memory after all of this, MB | {' | '.join(f'{self.after[n] / 1024:.0f}' for n in pair)} |"
        )
        count, held = self.held
        if held:
            rows.append(
                f"| {count} held streams, KB each | {' | '.join(f'{held[n][0]:.0f}' for n in pair)} |"
            )
            rows.append(
                f"| CPU for all held streams, of a core | {' | '.join(f'{held[n][1]:.1%}' for n in pair)} |"
            )
        if self.twice is not None:
            rows.append(f"| two workers to one, requests a second | | {self.twice:.2f} × |")
        return rows

    def picture(self) -> str:
        """SVG: CPU for a unit, each case against its slowest."""
        names, y, parts = [n for n in self.servers if n != "direct"], 30, []
        for key, title in self.cases.items():
            values = {name: self.found[key, name].cpu for name in names}
            most = max(values.values()) or 1.0
            parts.append(f'<text x="10" y="{y}" class="t">{title}</text>')
            for name, value in values.items():
                y += 18
                width = max(1.0, 380 * value / most)
                parts.append(
                    f'<rect x="110" y="{y - 11}" width="{width:.0f}" height="13" rx="2" fill="{COLORS.get(name, "#c77d2e")}"/>'
                )
                parts.append(f'<text x="104" y="{y}" text-anchor="end">{name}</text>')
                parts.append(f'<text x="{116 + width:.0f}" y="{y}">{value:.1f} µs</text>')
            y += 30
        style = "text{font:12px system-ui,sans-serif;fill:#444}.t{font-weight:600}@media(prefers-color-scheme:dark){text{fill:#ccc}}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="{y}" viewBox="0 0 600 {y}"><style>{style}</style>{"".join(parts)}</svg>\n'

    def write(self, docs: Path) -> None:
        """Put both where readers look."""
        page = docs / "performance.md"
        before, _, rest = page.read_text().partition(BEGIN)
        about = f"One run, Python {platform.python_version()}, {platform.system()}:"
        page.write_text(f"{before}{BEGIN}\n{about}\n\n{self.table()}\n{END}{rest.partition(END)[2]}")
        (docs / "performance.svg").write_text(self.picture())
