"""The project's prose is plain technical English without the words that the glossary of docs/design.md
replaces."""

import re

from tests.source import MODULES, PACKAGE, check_each, name, source

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


def is_banned(text: str) -> bool:
    return BANNED.search(MODEL_TEXTS.sub("", text)) is not None


def test_prose_of_a_module_has_no_banned_word():
    """Docstrings, comments, log lines and errors use the words of the field."""

    def check(path):
        module = source(path)
        if is_banned(module.text) or is_banned("\n".join(text for _, text in module.strings)):
            found = module.comments()
            for first, text in module.strings:
                if " " in text:
                    found += [(first + number, line) for number, line in enumerate(text.split("\n"))]
            assert [(line, text.strip()) for line, text in found if is_banned(text)] == []

    check_each(check, MODULES)


def test_a_page_has_no_banned_word():
    """The documentation uses the words of the field, too; the glossary itself names the replaced words."""

    def check(page):
        text = page.read_text().partition("\n## Glossary")[0]
        assert [line for line in text.split("\n") if is_banned(line)] == []

    check_each(check, PAGES)


def test_the_pattern_matches_a_banned_word():
    """The test above can fail."""
    assert BANNED.search("# nobody is told of it")
    assert not BANNED.search("# no client is notified")


QUESTION = re.compile(r"(?:What|Who|Whose|Whether|How|Where|Which|Why|When)\b")


def test_no_docstring_is_a_question():
    """The docstring of a module, class or function begins with a verb or a noun, not an indirect question."""
    questions = [
        f"{name(path)}:{line}"
        for path in MODULES
        for line, text in source(path).docstrings
        if QUESTION.match(text)
    ]
    assert questions == []


FILE = re.compile(r"`((?:qproxy|tests|scripts|docs)/[\w/.-]+)`")


def test_the_files_that_a_page_names_exist():
    """A path of the repository in a page's text is that of a file or a directory."""

    def check(page):
        assert [place for place in FILE.findall(page.read_text()) if not (ROOT / place).exists()] == []

    check_each(check, PAGES)
