"""docs/README.zh.md against README.md: the same headings, code, tables and links, so that none goes stale."""

import os
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "docs" / "README.zh.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s+#\s.*|(?<=\S)\s{3,}\S.*")
"""The translated part of a line of code: a comment, or a description in the table of packages."""


def prose(path):
    """Return a page without its blocks of code."""
    return BLOCK.sub("", path.read_text("utf-8"))


def code(path):
    """Return the blocks of code, each with its language and its lines without comments."""
    blocks = BLOCK.findall(path.read_text("utf-8"))
    return [(language, [COMMENT.sub("", line) for line in text.splitlines()]) for language, text in blocks]


def headings(path):
    """Return the level of each heading, and True for each table or block of code before the next."""
    sections = re.split(r"^(#+) .*\n", path.read_text("utf-8"), flags=re.MULTILINE)[1:]
    bodies = zip(sections[::2], sections[1::2], strict=True)
    return [(level, body.count("\n| "), len(BLOCK.findall(body))) for level, body in bodies]


def rows(path):
    """Return the untranslated cell of each table row: the path or the command, and the number of cells."""
    lines = [line.strip("|").split(" | ") for line in prose(path).splitlines() if line.startswith("| ")]
    return [(cells[0].strip() if "`" in cells[0] else "", len(cells)) for cells in lines]


def links(path):
    """Return the targets of the links, relative to the repository's root, except the other language."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    resolved = [os.path.relpath(path.parent / target, ROOT) for target in targets]
    return Counter(target for target in resolved if ROOT / target not in (ENGLISH, CHINESE))


def test_each_language_links_the_other_in_its_first_line():
    """The first line of each page has the link."""
    assert ENGLISH.read_text("utf-8").splitlines()[0].endswith("[简体中文](docs/README.zh.md)")
    assert CHINESE.read_text("utf-8").splitlines()[0].endswith("[English](../README.md)")


def test_headings():
    """The sections are the same, in the same order, with the same numbers of rows and blocks."""
    assert headings(CHINESE) == headings(ENGLISH)


def test_code():
    """Commands, configuration and transcripts are the same; only comments are translated."""
    assert code(CHINESE) == code(ENGLISH)


def test_tables():
    """Each table has the same rows, in the same order."""
    assert rows(CHINESE) == rows(ENGLISH)


def test_links():
    """Each page of the documentation is linked equally often."""
    assert links(CHINESE) == links(ENGLISH)


def test_names():
    """Every command, setting, path and header occurs equally often in both texts."""
    names = [Counter(re.findall(r"`[^`\n]+`", prose(path))) for path in (CHINESE, ENGLISH)]
    assert names[0] == names[1]


def test_paragraphs_are_translated():
    """No paragraph or list entry is left in English: most of its lines have Chinese characters."""
    lines = [line for line in prose(CHINESE).splitlines() if line.strip() and not line.startswith("| --")]
    assert [line for line in lines if not re.search(r"[\u4e00-\u9fff]", line)] == [lines[0]]
