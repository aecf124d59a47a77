"""The part of `--help` beyond the options: description, examples, exit codes, files and environment.

Every command module has a `PAGE`.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_WIDTH = 100
DONE = {0: "success", 1: "failure; the reason is on standard error", 2: "wrong usage or configuration"}
CONFIGURATION = {
    "qproxy.toml": "settings, in the working directory or at --config (qproxy help configuration)"
}
VARIABLES = {
    "QPROXY_CONFIG": "configuration file, overridden by --config",
    "QPROXY_HOME": "data directory (default: $XDG_DATA_HOME/qproxy or ~/.local/share/qproxy)",
    "QPROXY_<SETTING>": "any setting, in capitals: QPROXY_PORT=8080",
}


@dataclass(frozen=True, kw_only=True)
class HelpPage:
    """The help page of one command."""

    about: str
    """Paragraphs, separated by empty lines."""
    examples: Mapping[str, str]
    """Descriptions by command line."""
    exits: Mapping[int, str] = field(default_factory=lambda: DONE)
    files: Mapping[str, str] = field(default_factory=lambda: CONFIGURATION)
    environment: Mapping[str, str] = field(default_factory=lambda: VARIABLES)

    def apply_to(self, parser: argparse.ArgumentParser) -> None:
        """Set the description and the epilog of a parser."""
        parser.formatter_class = HelpFormatter
        parser.description = "\n\n".join(
            textwrap.fill(" ".join(paragraph.split()), width()) for paragraph in self.about.split("\n\n")
        )
        sections = [
            "examples:\n" + "\n".join(f"  {line}\n      {text}" for line, text in self.examples.items()),
            _bullets("exit codes", {str(code): text for code, text in self.exits.items()}),
            _bullets("files", self.files),
            _bullets("environment", self.environment),
        ]
        parser.epilog = "\n\n".join(section for section in sections if section).replace("%", "%%")


def width() -> int:
    """Return the columns that help may use: those of the terminal ($COLUMNS), at most 100."""
    return min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that fits help to the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=width())


def _bullets(title: str, entries: Mapping[str, str]) -> str:
    """Return a section of names and descriptions, "" without entries."""
    if not entries:
        return ""
    indent = max(map(len, entries))
    lines = []
    for name, text in entries.items():
        first, *rest = textwrap.wrap(text, max(20, width() - indent - 4))
        lines += [f"  {name:<{indent}}  {first}", *(f"  {'':<{indent}}  {line}" for line in rest)]
    return f"{title}:\n" + "\n".join(lines)
