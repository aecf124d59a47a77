"""`qproxy login`, `logout` and `emulator`: the account, the output, and the transcript in the
documentation."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import trio

from qproxy import cli
from qproxy.auth.device_flow import State
from qproxy.auth.status import STATES
from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.local.files import credential_path
from qproxy.cli import login
from qproxy.config import Config, load
from qproxy.config.accounts import AccountConfig, ConfigError, key_warnings, resolve_account
from qproxy.emulator import Emulator

ROOT = Path(__file__).parents[2]
ME, YOU = AccountConfig("me", kind="oauth"), AccountConfig("you", kind="oauth", credentials="~/.qwen")
KEYED = AccountConfig("keyed", preset="beijing", key="sk-x")

CHOICES = {
    "nothing configured": ((), None, "qwen"),
    "the only one": ((KEYED, ME), None, "me"),
    "by name": ((ME, YOU), "you", "you"),
    "a new one": ((KEYED,), "new", "new"),
    "only keys": ((KEYED,), None, "qwen"),
    "several": ((ME, YOU), None, "several oauth accounts"),
    "one with a key": ((KEYED, ME), "keyed", "not an oauth account"),
}


@pytest.mark.parametrize(("accounts", "name", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_selects_the_account(accounts, name, expected):
    """The named account, the only one, or a new one is used; several without a name are an error."""
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            login.select_account(accounts, name)
    else:
        assert login.select_account(accounts, name).name == expected


def test_the_path_of_the_credential_file(tmp_path, monkeypatch):
    """Tokens are in the account's directory, or at the path in `credentials`."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/you")
    assert credential_path(ME) == tmp_path / "accounts" / "me" / "oauth_creds.json"
    assert credential_path(YOU) == Path("/home/you/.qwen/oauth_creds.json")
    assert credential_path(AccountConfig("x", kind="oauth", credentials="/etc/q/x.json")) == Path(
        "/etc/q/x.json"
    )


def test_logged_in_accounts_need_no_configuration(tmp_path):
    """Accounts of `qproxy login` are used if no other is configured."""
    (tmp_path / "accounts" / "me").mkdir(parents=True)
    (tmp_path / "accounts" / "me" / "oauth_creds.json").touch()
    (tmp_path / "accounts" / "gone").mkdir()
    config = load(environ={"QPROXY_HOME": str(tmp_path)})
    assert config.accounts == (ME,)
    assert resolve_account(ME).plan == "oauth"
    assert "2026-04-15" in key_warnings(resolve_account(ME))[0]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\n", "x" * 65])
def test_account_names_are_directory_names(name):
    """A name that leads out of the data directory raises ConfigError."""
    with pytest.raises(ConfigError, match="letters"):
        resolve_account(AccountConfig(name, kind="oauth"))


def test_identity_servers_are_reached_by_https():
    """A plain-http endpoint for codes or tokens raises ConfigError, except on localhost."""
    with pytest.raises(ConfigError, match="oauth_token_url"):
        Config(oauth_token_url="http://chat.qwen.ai/token", accounts=(ME,)).check(has_api_keys)
    Config(oauth_token_url="http://127.0.0.1:1/token", accounts=(ME,)).check(has_api_keys)


def test_a_qr_code_is_drawn_in_half_blocks():
    """The QR code fits into 80 columns."""
    lines = login.qr_code("https://chat.qwen.ai/authorize?user_code=BF0Q6UX9&client=qwen-code").splitlines()
    assert len(lines) > 15
    assert max(map(len, lines)) < 80
    assert {"█", "▀", "▄"} <= set("".join(lines))


def test_logout_without_a_login_fails(tmp_path, monkeypatch, capsys):
    """Logging out of an account without a login exits with 1."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    assert cli.main(["logout"]) == 1
    assert "account qwen is not logged in" in capsys.readouterr().err


def test_logout_of_a_name_that_leads_out_of_the_data_directory(tmp_path, monkeypatch, capsys):
    """Logging out deletes nothing outside of the directory of accounts."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "accounts").mkdir(parents=True)
    (tmp_path / "oauth_creds.json").write_text("{}")
    assert cli.main(["logout", "--account", "../.."]) == 2
    assert "may only have letters" in capsys.readouterr().err
    assert (tmp_path / "oauth_creds.json").exists()


async def test_ctrl_c_cancels_a_login(tmp_path):
    """Ctrl+C during a login prints one line, exits with 130 and saves nothing."""
    async with trio.open_nursery() as nursery:
        emulator = await nursery.start(Emulator().serve)
        environ = {
            **os.environ,
            "QPROXY_HOME": str(tmp_path),
            "QPROXY_OAUTH_DEVICE_URL": f"{emulator.origin}/api/v1/oauth2/device/code",
            "QPROXY_OAUTH_TOKEN_URL": f"{emulator.origin}/api/v1/oauth2/token",
        }
        child = await trio.lowlevel.open_process(
            [sys.executable, "-m", "qproxy", "login"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = b""
        assert child.stdout is not None
        async for piece in child.stdout:
            if b"Waiting" not in output and b"Waiting" in output + piece:
                child.send_signal(signal.SIGINT)
            output += piece
        assert await child.wait() == login.INTERRUPTED
        nursery.cancel_scope.cancel()
    assert output.endswith(b"qproxy: interrupted; nothing was saved.\n")
    assert b"Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_the_transcript_is_the_output():
    """docs/accounts.md shows a login, a chat, a refresh and a logout on the emulator, word for word."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "transcript.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout in (ROOT / "docs" / "accounts.md").read_text(), done.stdout


def test_the_page_names_every_state():
    """docs/accounts.md explains each state of an account, and lists those of a login."""
    page = (ROOT / "docs" / "accounts.md").read_text()
    assert [state for state in STATES if f"| `{state}` |" not in page] == []
    assert [state for state in get_args(State) if f"`{state}`" not in page] == []
