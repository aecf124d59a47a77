"""What `--help` says beyond the options: what a command is for, examples, exit codes, files and environment.

Every command module has a `PAGE`; a test walks all of them.  The words of options stay beside the options.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTH = 92
DONE = {0: "done", 1: "failed; the reason is on standard error", 2: "wrong usage or configuration"}
CONFIGURATION = {
    "qproxy.toml": "settings, in the working directory or where --config says (docs/configuration.md)"
}
VARIABLES = {
    "QPROXY_CONFIG": "the configuration file, unless --config names one",
    "QPROXY_HOME": "the data directory (default: $XDG_DATA_HOME/qproxy, ~/.local/share/qproxy)",
    "QPROXY_<SETTING>": "any setting, by its name in capitals: QPROXY_PORT=8080",
}


@dataclass(frozen=True, kw_only=True)
class HelpPage:
    """One command's page."""

    about: str
    """Paragraphs, parted by an empty line."""
    examples: Mapping[str, str]
    """By command line: what it does."""
    exits: Mapping[int, str] = field(default_factory=lambda: DONE)
    files: Mapping[str, str] = field(default_factory=lambda: CONFIGURATION)
    environment: Mapping[str, str] = field(default_factory=lambda: VARIABLES)

    def apply_to(self, parser: argparse.ArgumentParser) -> None:
        """Have `--help` show it."""
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.description = "\n\n".join(
            textwrap.fill(" ".join(paragraph.split()), WIDTH) for paragraph in self.about.split("\n\n")
        )
        sections = [
            "examples:\n" + "\n".join(f"  {line}\n      {text}" for line, text in self.examples.items()),
            _bullets("exit codes", {str(code): text for code, text in self.exits.items()}),
            _bullets("files", self.files),
            _bullets("environment", self.environment),
        ]
        parser.epilog = "\n\n".join(section for section in sections if section).replace("%", "%%")


def _bullets(title: str, entries: Mapping[str, str]) -> str:
    """A section of names with their words; nothing where there are none."""
    if not entries:
        return ""
    width = max(map(len, entries))
    lines = []
    for name, text in entries.items():
        first, *rest = textwrap.wrap(text, WIDTH - width - 4)
        lines += [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in rest)]
    return f"{title}:\n" + "\n".join(lines)
