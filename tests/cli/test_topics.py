"""`qproxy help`, and hints that name pages and packages."""

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

import qproxy
from qproxy import cli
from qproxy.cli import topics
from qproxy.system.extras import install_command

DOCS = Path(qproxy.__file__).parents[1] / "docs"


def test_every_page_is_a_topic(capsys):
    """Without a topic, every page is listed with its description."""
    assert cli.main(["help"]) == 0
    text = capsys.readouterr().out
    known = topics.pages()
    assert {page.stem for page in DOCS.glob("*.md")} - {"README", "README.zh"} | {"deploy"} == set(known)
    assert [topic for topic in known if not re.search(rf"^  {topic} +\w", text, re.MULTILINE)] == []


@pytest.mark.parametrize("topic", ["configuration", "docs/configuration.md", "tools", "deploy"])
def test_prints_a_page(topic, capsys):
    """A topic prints its page, also if a command has the same name."""
    assert cli.main(["help", topic]) == 0
    page = topics.pages()[topic.removeprefix("docs/").removesuffix(".md")]
    assert capsys.readouterr().out == page.read_text()


def test_prints_the_help_of_a_command(capsys):
    """A command prints its help."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "serve"])
    assert (ended.value.code, capsys.readouterr().out[:19]) == (0, "usage: qproxy serve")


def test_an_unknown_topic(capsys):
    """An unknown topic is wrong usage, with the closest one."""
    assert cli.main(["help", "confguration"]) == 2
    assert capsys.readouterr().err == "qproxy: unknown topic 'confguration'. Did you mean 'configuration'?\n"


def test_every_hint_names_a_topic():
    """Each `qproxy help TOPIC` in the package's texts is a topic; none names a file of the checkout."""
    source = "\n".join(path.read_text() for path in Path(qproxy.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"qproxy help ([a-z]+[a-z-]*)", source))
    assert len(named) > 5
    assert named <= {*topics.pages(), *cli.COMMANDS}
    assert re.findall(r"\(docs/\w+\.md\)|see docs/", source) == []


EXTRAS = metadata.metadata("qproxy").get_all("Provides-Extra") or []


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_named_by_its_packages(extra):
    """The command names packages that are in any index, whatever qproxy was installed from."""
    program, action, *requirements = shlex.split(install_command(extra))
    assert (program, action) == ("pip", "install")
    assert requirements
    assert all(re.match(r"[a-z][a-z-]+(\[[a-z]+\])?[<>=]", requirement) for requirement in requirements)
