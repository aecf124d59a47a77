"""`qproxy help`: print a page of the documentation, or the help of a command.

The pages are in the wheel, beside the package; in a checkout they are in `docs/`.
"""

from __future__ import annotations

import argparse
import pydoc
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from qproxy.cli.help import HelpPage
from qproxy.cli.output import format_table, output_width, print_result
from qproxy.config.accounts import ConfigError
from qproxy.config.parsing import suggestion

HELP = "print a page of the documentation, or the help of a command"
PAGE = HelpPage(
    about="""Print a page of the documentation that is installed with qproxy, or the help of a command.
    Without a topic, list the topics.""",
    examples={
        "qproxy help": "list the topics",
        "qproxy help configuration": "every setting",
        "qproxy help serve": "as qproxy serve --help",
    },
    files={},
    environment={},
)
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "docs", PACKAGE.parent / "docs")
"""Where the pages are: in an installed package, in a checkout."""
INDEX = "README.md"
_ROW = re.compile(r"^\| \[[^]\n]++\]\(([a-z0-9-]++)(?:\.md|/README\.md)\) \| ([^|\n]++)\|", re.MULTILINE)
"""A row of the index: the topic and its description."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="page of the documentation, or command")


def run(arguments: argparse.Namespace) -> int:
    from qproxy import cli

    topic = arguments.topic
    if topic is None:
        for line in _topic_list():
            print_result(line)
        return 0
    page = pages().get(topic.removesuffix(".md").removeprefix("docs/"))
    if page is None and topic in cli.COMMANDS:
        cli.build_parser([topic]).parse_args([topic, "--help"])
    if page is None:
        raise ConfigError(f"unknown topic {topic!r}.{suggestion(topic, [*pages(), *cli.COMMANDS])}")
    text = page.read_text("utf-8")
    if sys.stdout is not None and sys.stdout.isatty():
        pydoc.pager(text)
    else:
        print_result(text.rstrip())
    return 0


def pages() -> Mapping[str, Path]:
    """Return the pages of the documentation by their topics. Raises ConfigError if they are not installed."""
    folder = next((folder for folder in FOLDERS if (folder / INDEX).is_file()), None)
    if folder is None:
        raise ConfigError("the documentation is not installed; see the project's repository.")
    found = {page.stem: page for page in folder.glob("*.md") if not page.name.startswith("README")}
    found |= {page.parent.name: page for page in folder.glob(f"*/{INDEX}")}
    return dict(sorted(found.items()))


def _topic_list() -> list[str]:
    """Return a table of the topics, as docs/README.md describes them."""
    known = pages()
    index = (known["configuration"].parent / INDEX).read_text("utf-8")
    described = {match[1]: match[2].strip() for match in _ROW.finditer(index)}
    rows = [(f"  {topic}", re.sub(r"[`*]", "", described.get(topic, ""))) for topic in known]
    return ["Topics, for qproxy help TOPIC:", *format_table(rows, width=output_width())]
