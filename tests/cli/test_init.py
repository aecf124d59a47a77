"""`qproxy init`: a commented configuration file from three replies, checked at the end."""

import io
import stat
import tomllib

import pytest

from qproxy import cli, config

OWN = "http://127.0.0.1:1/v1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty working directory with a data directory of its own."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("QPROXY_PORT", "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = {
    "a key": (["--key", "sk-1"], [("dashscope", "singapore", None)], "127.0.0.1"),
    "a plan's key": (["--key", "sk-sp-1"], [("dashscope", "coding-plan-intl", None)], "127.0.0.1"),
    "an own server": (["--upstream", "http://127.0.0.1:1"], [("upstream", None, OWN)], "127.0.0.1"),
    "all": (
        ["--key", "sk-1", "--upstream", OWN, "--public"],
        [("dashscope", "singapore", None), ("upstream", None, OWN)],
        "0.0.0.0",
    ),
}


@pytest.mark.parametrize(("flags", "accounts", "host"), FLAGS.values(), ids=FLAGS.keys())
def test_flags(flags, accounts, host, folder, capsys):
    """The flags create a private file that loads with these accounts; the exit code is that of the check."""
    assert cli.main(["init", "--offline", *flags]) == 0
    path = folder / "qproxy.toml"
    table = tomllib.loads(path.read_text())
    assert [(it["name"], it.get("preset"), it.get("base_url")) for it in table["accounts"]] == accounts
    assert (table["host"], stat.S_IMODE(path.stat().st_mode)) == (host, 0o600)
    assert len(config.load().all_accounts()) == len(accounts)
    output = capsys.readouterr()
    assert "Next: qproxy serve" in output.err
    assert "0 failed" in output.out
    assert "sk-1" not in output.out + output.err
    assert ("sk-qproxy-" in output.out) == ("--public" in flags)


def test_every_commented_setting_is_valid(folder):
    """The settings in comments can be used as they are."""
    assert cli.main(["init", "--offline", "--upstream", OWN]) == 0
    path = folder / "qproxy.toml"
    text = "\n".join(
        line.removeprefix("# ") if " = " in line else line for line in path.read_text().splitlines()
    )
    path.write_text(text)
    loaded = config.load()
    assert (loaded.default_model, loaded.admin_key, loaded.all_accounts()[0].key) == (
        "qwen3.7-plus",
        "...",
        "...",
    )


def test_questions(folder, monkeypatch, capsys):
    """On a terminal, the command prompts for the key without echo, then for the server and its access."""
    answers = iter(["http://127.0.0.1:1", "y"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: "sk-secret")
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert cli.main(["init", "--offline"]) == 0
    table = tomllib.loads((folder / "qproxy.toml").read_text())
    assert (table["host"], len(table["accounts"])) == ("0.0.0.0", 2)
    assert "sk-secret" not in str(capsys.readouterr())


def test_an_invalid_base_url_is_prompted_for_again(folder, monkeypatch, capsys):
    """A mistyped base URL keeps the earlier replies."""
    answers = iter(["localhost:1", "http://127.0.0.1:1", ""])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: "sk-1")
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert cli.main(["init", "--offline"]) == 0
    assert [account.base_url for account in config.load().accounts if account.name == "upstream"] == [OWN]
    assert capsys.readouterr().err.startswith("It must be http(s)://host[:port]/path")


def test_a_key_that_cannot_be_created(folder, capsys):
    """If the data directory cannot be written, no file remains that a second run would find."""
    (folder / "data").write_text("a file")
    assert cli.main(["init", "--offline", "--upstream", OWN, "--public"]) == 2
    assert f"{folder}/data" in capsys.readouterr().err
    assert not (folder / "qproxy.toml").exists()


class Terminal(io.StringIO):
    """Standard input of a person."""

    def isatty(self):
        return True


WRONG = {
    "no answers": ([], 2, "pass --key or --upstream"),
    "empty answers": (["--key", ""], 2, "nothing to serve"),
    "no URL": (["--upstream", "localhost:8080"], 2, "base_url must be http(s)"),
    "a key with blanks": (["--key", "sk 1"], 2, "whitespace"),
    "no such directory": (["--key", "sk-1", "--config", "none/qproxy.toml"], 1, "No such file or directory"),
}


@pytest.mark.parametrize(("flags", "code", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_answers(flags, code, message, folder, monkeypatch, capsys):
    """A wrong answer gives one line, and nothing is written."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["init", *flags]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(folder.iterdir()) == []


def test_an_existing_file_is_kept(folder, capsys):
    """A file that exists is not changed."""
    (folder / "qproxy.toml").write_text("# mine")
    assert cli.main(["init", "--key", "sk-1"]) == 1
    assert "was not changed" in capsys.readouterr().err
    assert (folder / "qproxy.toml").read_text() == "# mine"


def test_a_key_from_standard_input(folder, monkeypatch):
    """`--key -` reads the key from standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-1\n"))
    assert cli.main(["init", "--offline", "--key", "-"]) == 0
    assert config.load().all_accounts()[0].key == "sk-1"
