"""The project's prose is plain technical English without the words that the glossary of docs/design.md
replaces."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import qproxy

PACKAGE = Path(qproxy.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

BANNED = re.compile(
    r"\b(?:told|said|says|hears|whoever|nobody|somebody|everybody|of ours|of yours|begins? anew|under way|"
    r"is over|are over"
    r"|mends?|mended|cures?|cured|the model's server|by way of|at most so many|last words|to be had|"
    r"look-alike"
    r"|in the midst of|an orderly end)\b",
    re.IGNORECASE,
)
"""Words and turns of phrase that the glossary of docs/design.md replaces."""
MODEL_TEXTS = re.compile(r"The (?:tool|user) says|You said|it is told|`nobody`")
"""Sentences of the emulated model and of the demo's transcript, and the name of a user."""


def prose(path: Path) -> list[tuple[int, str]]:
    """Return the docstrings, comments and texts of a module, each with its line."""
    source = path.read_text()
    found = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            found += [(node.lineno + number, line) for number, line in enumerate(node.value.split("\n"))]
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_prose_of_a_module_has_no_banned_word(path):
    """Docstrings, comments, log lines and errors use the words of the field."""
    found = [(line, text.strip()) for line, text in prose(path) if BANNED.search(MODEL_TEXTS.sub("", text))]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_banned_word(page):
    """The documentation uses the words of the field, too; the glossary itself names the replaced words."""
    text = page.read_text().partition("\n## Glossary")[0]
    assert not [line for line in text.split("\n") if BANNED.search(MODEL_TEXTS.sub("", line))]


def test_the_pattern_matches_a_banned_word():
    """The test above can fail."""
    assert BANNED.search("# nobody is told of it")
    assert not BANNED.search("# no client is notified")


QUESTION = re.compile(r"(?:What|Who|Whose|Whether|How|Where|Which|Why|When)\b")


def test_no_docstring_is_a_question():
    """The docstring of a module, class or function begins with a verb or a noun, not an indirect question."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [
        (path, node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]
    questions = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)}"
        for path, node in nodes
        if QUESTION.match(ast.get_docstring(node) or "")
    ]
    assert questions == []


FILE = re.compile(r"`((?:qproxy|tests|scripts|docs)/[\w/.-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_a_page_names_exist(page):
    """A path of the repository in a page's text is that of a file or a directory."""
    assert [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []
