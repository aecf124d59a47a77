"""Checks of this machine: permissions, files, the limit of open files, and the port."""

import os
import resource
import sqlite3
import stat

import pytest
import trio

from qproxy.bootstrap.tools import build_tool_runtime
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.diagnostics import system, tools
from qproxy.sandbox import SystemSandbox
from qproxy.sandbox.bubblewrap import SandboxUnavailable
from qproxy.system.directories import make_private_directory
from qproxy.tools import functions


def config(tmp_path, **settings):
    names = {
        "account_state_file": "accounts.db",
        "ledger": "ledger.sqlite3",
        "responses_file": "responses.sqlite3",
        "keys_file": "keys.json",
    }
    return Config(**{key: str(tmp_path / "home" / name) for key, name in names.items()} | settings)


def findings(tmp_path, file=None, **settings):
    found = system.check_files(config(tmp_path, **settings), tmp_path / "home", file)
    return {finding.name: finding for finding in found}


def test_a_new_machine(tmp_path):
    """On a new machine every file can be created, and the checks create none."""
    found = findings(tmp_path)
    assert {name: finding.state for name, finding in found.items()} == {
        "data directory": "ok", "keys of clients": "skipped", "accounts' state": "ok", "usage ledger": "ok",
        "responses": "ok",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mode", "state"), [(0o700, "ok"), (0o755, "warning")])
def test_the_data_directory(mode, state, tmp_path):
    """A data directory that others can read is a warning with advice."""
    (tmp_path / "home").mkdir(mode)
    (tmp_path / "home").chmod(mode)
    found = findings(tmp_path)["data directory"]
    assert (found.state, "chmod 700" in found.advice) == (state, state == "warning")


def test_a_data_directory_that_is_a_file(tmp_path):
    """The directory has failed with advice; the databases in it are not tested."""
    (tmp_path / "home").write_text("a file")
    found = system.check_files(config(tmp_path, keys_file=None), tmp_path / "home", None)
    assert [finding.name for finding in found if finding.advice] == ["data directory"]
    assert {finding.state for finding in found if finding.name != "data directory"} == {"skipped"}


@pytest.mark.parametrize("name", ["usage ledger", "responses", "accounts' state"])
def test_a_database_that_is_a_directory(name, tmp_path):
    """A directory in place of a database is named."""
    for file in ("ledger.sqlite3", "responses.sqlite3", "accounts.db"):
        (tmp_path / "home" / file).mkdir(parents=True)
    found = findings(tmp_path)[name]
    assert (found.state, found.message.endswith("is a directory")) == ("failed", True)


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o640, "failed"), (0o604, "failed")])
def test_files_with_secrets(mode, state, tmp_path, monkeypatch):
    """Keys and tokens that others can read fail with advice."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "home"))
    paths = [
        tmp_path / "home" / "keys.json",
        tmp_path / "key",
        tmp_path / "home/accounts/me/oauth_creds.json",
        tmp_path / "q.toml",
    ]
    for path in paths:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()
        path.chmod(mode)
    accounts = (
        AccountConfig("a", key="x", key_file=str(paths[1])), AccountConfig("me", kind="oauth"),
        AccountConfig("b", key="written"),
    )  # fmt: skip
    found = findings(tmp_path, str(paths[3]), accounts=accounts)
    names = ("keys of clients", "key of a", "tokens of me", "configuration file")
    assert [found[name].state for name in names] == [state] * 4
    assert all(("chmod 600" in found[name].advice) == (state == "failed") for name in names)


def test_a_configuration_without_secrets_may_be_read(tmp_path):
    """A configuration file without inline keys is not checked as a secret."""
    (tmp_path / "q.toml").touch(0o644)
    accounts = (AccountConfig("a", key="x", key_env="DASHSCOPE_API_KEY"),)
    assert "configuration file" not in findings(tmp_path, str(tmp_path / "q.toml"), accounts=accounts)


def test_databases(tmp_path):
    """A valid database passes; another kind of file and one that cannot be created fail."""
    home = tmp_path / "home"
    home.mkdir(0o700)
    sqlite3.connect(home / "ledger.sqlite3").close()
    (home / "accounts.db").write_bytes(b"no database" * 200)
    found = findings(tmp_path, responses_file="/proc/none/responses.sqlite3")
    assert found["usage ledger"].state == "ok"
    assert (found["accounts' state"].state, "move it away" in found["accounts' state"].advice) == (
        "failed",
        True,
    )
    if os.getuid():  # root may write anywhere, as far as a mode tells
        assert found["responses"].state == "failed"
    assert "usage ledger" not in findings(tmp_path, ledger="none")


def test_open_files():
    """The number of files that the settings need is compared with the system's limit."""
    assert system.check_limits(Config(max_client_connections=1, max_requests=1)).state == "ok"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        assert system.check_limits(Config(max_client_connections=hard)).state == "warning"


async def test_the_port(tmp_path):
    """A free port passes, one in use fails."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    taken = await system.check_port(Config(port=port), tmp_path)
    await listener.aclose()
    assert (taken.state, "set port" in taken.advice) == ("failed", True)
    assert (await system.check_port(Config(port=port), tmp_path)).state == "ok"


async def test_tools():
    """Without tools nothing is checked; otherwise the sandbox is, and unavailable tools are named."""

    async def nothing():
        return SandboxUnavailable("it is a test")

    skipped = await tools.check_tools(build_tool_runtime(Config()), SystemSandbox(nothing), False)
    assert [finding.state for finding in skipped] == ["skipped"]

    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    runtime = build_tool_runtime(Config(), [functions.as_tool(add)])
    found = await tools.check_tools(runtime, SystemSandbox(nothing), True)
    assert [(finding.name, finding.state) for finding in found] == [("sandbox", "failed"), ("tools", "ok")]
    assert "qproxy help security" in found[0].advice
    found = await tools.check_tools(
        build_tool_runtime(Config(), [functions.as_tool(add)]), SystemSandbox(nothing), False
    )
    assert found[0].state == "skipped"


def test_private_directories(tmp_path):
    """Created directories and parents are private with any umask; existing ones keep their mode."""
    before = os.umask(0)
    try:
        tmp_path.chmod(0o755)
        make_private_directory(tmp_path / "a" / "b" / "c")
        make_private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / path).stat().st_mode) for path in (".", "a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o700, 0o700, 0o700]
