"""The command `qproxy check`: its output, exit codes and documentation."""

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


def test_the_transcript_is_the_output():
    """docs/check.md shows the output for an account, a server and a misspelled setting, word for word."""
    script = str(ROOT / "scripts" / "transcript_check.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout in PAGE, done.stdout


def test_the_page_names_every_rule():
    """docs/check.md lists every rule of the contract."""
    assert [rule for rule, words in RULES.items() if f"| `{rule}` | {words} |" not in PAGE] == []


CODES = {
    "nothing": ([], 0),
    "passed": (["ok", "skipped", "warning"], 0),
    "failed": (["ok", "failed"], 1),
}


@pytest.mark.parametrize(("states", "code"), CODES.values(), ids=CODES.keys())
def test_exit_codes(states, code):
    """Warnings do not fail a check; an invalid configuration has its own exit code."""
    found = [Finding("x", "y", state, "") for state in states]
    assert exit_code(found) == code
    assert exit_code([*found, Finding("configuration", "y", "failed", "")]) == 2


def test_a_report():
    """The text report has columns under each area's name, the JSON report all fields."""
    found = [Finding("a", "one", "ok", "well", tokens=3), Finding("b", "two", "failed", "no", "do it")]
    assert list(lines(found)) == [
        "a", "  ok       one  well",
        "b", "  FAILED   two  no", "                → do it",
        "1 failed, 0 warnings, 1 passed; 3 tokens used.",
    ]  # fmt: skip
    assert (fields(found)["ok"], fields(found)["exit_code"], fields(found)["tokens"]) == (False, 1, 3)


WRONG = {
    "no account": ([], {}, "No account is configured"),
    "unknown setting": (["--offline"], {"QPROXY_PROT": "1"}, "Did you mean 'port'"),
    "unknown rule": (["--offline"], {"QPROXY_UPSTREAM": "http://127.0.0.1:1", "QPROXY_RULES": "x=true"},
        "unknown rule x"),
    "no such file": (["--config", "none.toml"], {}, "none.toml"),
    "no url": (["127.0.0.1:8080"], {}, "must be http(s)"),
    "a key without a URL": (["--key", "sk-x"], {}, "requires the URL"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "variables", "words"), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_configuration(arguments, variables, words, monkeypatch, capsys):
    """An invalid configuration gives exit code 2, also with --json, without any request."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["check", "--json", *arguments]) == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["exit_code"]) == (False, 2)
    assert words in report["findings"][-1]["message"]


def test_offline(monkeypatch, capsys):
    """--offline makes no connection and prints no secret."""
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-very-secret")
    monkeypatch.setenv("QPROXY_PORT", "0")
    assert cli.main(["check", "--offline"]) == 0
    output = capsys.readouterr()
    assert "format matches this server" in output.out
    assert "secret" not in output.out + output.err


TOOL = '[[tools]]\nname = "x"\ndescription = "d"\nargv = ["true"]\n'


def test_offline_tests_the_sandbox(monkeypatch, capsys, tmp_path):
    """--offline tests the sandbox that the tools need."""
    (tmp_path / "qproxy.toml").write_text(f'upstream = "http://127.0.0.1:1"\nport = 0\n{TOOL}')
    monkeypatch.chdir(tmp_path)
    cli.main(["check", "--offline", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["sandbox"]["state"] in ("ok", "failed")
    assert "using http://127.0.0.1:1/v1" in findings["base URL"]["message"]


def test_a_key_from_standard_input(monkeypatch, capsys):
    """`--key -` reads the key from standard input; an unreachable server is a failed check."""
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-very-secret\n"))
    assert cli.main(["check", "http://127.0.0.1:1", "--key", "-"]) == 1
    output = capsys.readouterr()
    assert "secret" not in output.out + output.err


URLS = {
    "http://127.0.0.1:8080": "http://127.0.0.1:8080/v1",
    "http://127.0.0.1:8080/": "http://127.0.0.1:8080/v1",
    "https://x/compatible-mode/v1/": "https://x/compatible-mode/v1",
}


@pytest.mark.parametrize(("text", "url"), URLS.items())
def test_base_urls(text, url):
    """A URL without a path gets /v1; one with a query or password raises ConfigError."""
    assert base_url(text) == url
    for wrong in (f"{text}?key=x", text.replace("://", "://a:b@"), text.partition("://")[2]):
        with pytest.raises(ConfigError):
            base_url(wrong)
