"""`qproxy check` as people and scripts run it: what it prints, its exit codes, its page."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qproxy import cli
from qproxy.cli.check import base_url
from qproxy.config.accounts import ConfigError
from qproxy.diagnostics import Finding, exit_code, fields, lines
from qproxy.wire.conformance import RULES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check.md").read_text()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DASHSCOPE_API_KEY", raising=False)


def test_the_transcript_is_what_happens():
    """docs/check.md shows an account, a server and a misspelt setting under examination, word for word."""
    script = str(ROOT / "scripts" / "transcript_check.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout in PAGE, done.stdout


def test_the_page_names_every_rule():
    """docs/check.md has the table of rules."""
    assert [rule for rule, words in RULES.items() if f"| `{rule}` | {words} |" not in PAGE] == []


CODES = {
    "nothing": ([], 0),
    "well": (["ok", "skipped", "warning"], 0),
    "failed": (["ok", "failed"], 1),
}


@pytest.mark.parametrize(("states", "code"), CODES.values(), ids=CODES.keys())
def test_exit_codes(states, code):
    """Warnings are no failure; a configuration that cannot be served is another one."""
    found = [Finding("x", "y", state, "") for state in states]
    assert exit_code(found) == code
    assert exit_code([*found, Finding("configuration", "y", "failed", "")]) == 2


def test_a_report():
    """For people in columns under each area's name, for programs with all fields."""
    found = [Finding("a", "one", "ok", "well", tokens=3), Finding("b", "two", "failed", "no", "do it")]
    assert list(lines(found)) == [
        "a", "  ok       one  well",
        "b", "  FAILED   two  no", "                → do it",
        "1 failed, 0 warnings, 1 well; it cost 3 tokens.",
    ]  # fmt: skip
    assert (fields(found)["ok"], fields(found)["exit_code"], fields(found)["tokens"]) == (False, 1, 3)


WRONG = {
    "no account": ([], {}, "No account is configured"),
    "unknown setting": (["--offline"], {"QPROXY_PROT": "1"}, "Did you mean 'port'"),
    "unknown rule": (["--offline"], {"QPROXY_UPSTREAM": "http://127.0.0.1:1", "QPROXY_RULES": "x=true"}, "unknown rule x"),
    "no such file": (["--config", "none.toml"], {}, "none.toml"),
    "no url": (["127.0.0.1:8080"], {}, "is not http(s)"),
    "a key for nobody": (["--key", "sk-x"], {}, "named by its URL"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "variables", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_configuration_that_cannot_be_served(arguments, variables, words, monkeypatch, capsys):
    """Exit code 2, for programs too, and nothing is asked."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["check", "--json", *arguments]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["exit_code"]) == (False, 2)
    assert words in told["findings"][-1]["message"]


def test_offline(monkeypatch, capsys):
    """Without a connection, and without a secret on the screen."""
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-very-secret")
    monkeypatch.setenv("QPROXY_PORT", "0")
    assert cli.main(["check", "--offline"]) == 0
    told = capsys.readouterr()
    assert "looks like one for its server" in told.out
    assert "secret" not in told.out + told.err


def test_a_key_from_standard_input(monkeypatch, capsys):
    """It need not stand on the command line; nobody is there, which is a failure and no crash."""
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-very-secret\n"))
    assert cli.main(["check", "http://127.0.0.1:1", "--key", "-"]) == 1
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err


URLS = {
    "http://127.0.0.1:8080": "http://127.0.0.1:8080/v1",
    "http://127.0.0.1:8080/": "http://127.0.0.1:8080/v1",
    "https://x/compatible-mode/v1/": "https://x/compatible-mode/v1",
}


@pytest.mark.parametrize(("text", "url"), URLS.items())
def test_base_urls(text, url):
    """Without a path it is /v1; a query or a password has no place in one."""
    assert base_url(text) == url
    for wrong in (f"{text}?key=x", text.replace("://", "://a:b@"), text.partition("://")[2]):
        with pytest.raises(ConfigError):
            base_url(wrong)
