"""`qproxy claude`, `codex`, `opencode` and `qwen`: settings as lines for a shell, and programs started with
them."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from qproxy import cli

PROGRAMS = ["claude", "codex", "opencode", "qwen"]
SCRIPT = '#!/bin/sh\nfor word in "$@"; do printf "argument %s\\n" "$word"; done\nenv\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("QPROXY_KEY", "QPROXY_CONFIG", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for name in PROGRAMS:
        (tmp_path / name).write_text(SCRIPT)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def environment_and_arguments(command):
    """Return the environment and the arguments that a program received."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    words = [
        line.removeprefix("argument ") for line in done.stdout.splitlines() if line.startswith("argument ")
    ]
    return dict(
        line.split("=", 1) for line in done.stdout.splitlines() if "=" in line and line[0] != "a"
    ), words


def codex_values(words):
    """Return the configuration in Codex's arguments, and the arguments after it."""
    flags = words[: words.index("exec")]
    assert set(flags[::2]) == {"-c"}
    return {name: json.loads(value) for name, value in (flag.split("=", 1) for flag in flags[1::2])}


def check_claude(environment, words, key):
    """Claude Code gets the server's URL without /v1, the key as a bearer token, and a model of each size."""
    assert environment["ANTHROPIC_BASE_URL"] == "https://qproxy.example.com"
    assert (environment["ANTHROPIC_AUTH_TOKEN"], environment["ANTHROPIC_API_KEY"]) == (key, "")
    sizes = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL")
    assert {environment[name] for name in sizes} == {"big one"}
    assert environment["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "small"


def check_codex(environment, words, key):
    """Codex gets a provider by -c, which reads the key from the variable."""
    values = codex_values(words)
    provider = "model_providers.qproxy"
    assert (values["model"], values["model_provider"]) == ("big one", "qproxy")
    assert values[f"{provider}.base_url"] == "https://qproxy.example.com/v1"
    assert environment[values[f"{provider}.env_key"]] == key


def check_opencode(environment, words, key):
    """Opencode gets a provider with both models in its inline configuration."""
    content = json.loads(environment["OPENCODE_CONFIG_CONTENT"])
    provider = content["provider"]["qproxy"]
    assert provider["options"] == {"baseURL": "https://qproxy.example.com/v1", "apiKey": key}
    assert provider["models"] == {"big one": {}, "small": {}}
    assert (content["model"], content["small_model"]) == ("qproxy/big one", "qproxy/small")


def check_qwen(environment, words, key):
    """Qwen Code gets the server as its OpenAI provider; it has one model."""
    names = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL")
    values = ["https://qproxy.example.com/v1", key, "big one"]
    assert [environment[name] for name in names] == values
    assert words[:2] == ["--auth-type", "openai"]


CHECKS = {"claude": check_claude, "codex": check_codex, "opencode": check_opencode, "qwen": check_qwen}
ARGUMENTS = ["--url", "https://qproxy.example.com", "--model", "big one", "--fast-model", "small"]


@pytest.mark.parametrize("key", [None, "sk-it's"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_run_and_print_agree(name, key, home, monkeypatch, capsys):
    """The program that --run starts gets exactly what the printed lines give it, and the key is in no
    line."""
    if key is not None:
        monkeypatch.setenv("QPROXY_KEY", key)
    command = [name, *ARGUMENTS]
    run = environment_and_arguments(
        [sys.executable, "-m", "qproxy", *command, "--run", "--", "exec", "two words", "-p"]
    )
    assert cli.main([*command, "--", "exec", "two words", "-p"]) == 0
    lines = capsys.readouterr().out
    assert key is None or key not in lines
    printed = environment_and_arguments(["/bin/sh", "-ec", lines])
    for environment, words in (run, printed):
        assert words[-3:] == ["exec", "two words", "-p"]
        CHECKS[name](environment, words, key or "any")
    assert run[1] == printed[1]


URLS = {
    "": "http://127.0.0.1:8787",
    'host = "0.0.0.0"\nport = 9000': "http://127.0.0.1:9000",
    'host = "::"': "http://[::1]:8787",
    'host = "::1"': "http://[::1]:8787",
    'host = "192.0.2.1"': "http://192.0.2.1:8787",
}


@pytest.mark.parametrize(("settings", "url"), URLS.items())
def test_the_url_of_this_machine(settings, url, home, capsys):
    """Without --url the URL and the model come from the settings of the server."""
    (home / "qproxy.toml").write_text(f'default_model = "mine"\n{settings}\n')
    assert cli.main(["claude"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"export ANTHROPIC_BASE_URL={shlex.quote(url)}" in lines
    assert {line for line in lines if "MODEL" in line} == {
        f"export {name}=mine"
        for name in (
            "ANTHROPIC_MODEL",
            "ANTHROPIC_DEFAULT_OPUS_MODEL",
            "ANTHROPIC_DEFAULT_SONNET_MODEL",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        )
    }


def test_failures(home, monkeypatch, capsys):
    """An unknown port, an invalid URL and a program that is not installed are named in an error."""
    monkeypatch.setenv("QPROXY_PORT", "0")
    assert cli.main(["codex"]) == 2
    assert "--url" in capsys.readouterr().err
    assert cli.main(["codex", "--url", "ftp://x"]) == 2
    monkeypatch.setenv("PATH", str(home / "nothing"))
    assert cli.main(["codex", "--run", "--url", "http://x"]) == 1
    assert "codex is not in PATH" in capsys.readouterr().err
