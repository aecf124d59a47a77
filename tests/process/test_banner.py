"""The text of a started server: its address, settings, access and accounts, in 80 columns."""

import dataclasses

import pytest

from qproxy.accounts.condition import AccountCondition
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.process.banner import MAX_ACCOUNTS, banner
from qproxy.version import VERSION

URL = "http://127.0.0.1:8787"
CONFIG = Config(upstream="http://127.0.0.1:8080")


def test_names_everything():
    """The address, the dashboard, the settings, the access, the accounts and the way to stop are named."""
    conditions = {"upstream": AccountCondition("ready", "ready")}
    assert banner(CONFIG, URL, "/etc/qproxy.toml", conditions, has_keys=False).splitlines() == [
        f"qproxy {VERSION} listening on http://127.0.0.1:8787/v1",
        "  dashboard  http://127.0.0.1:8787/dashboard",
        "  settings   /etc/qproxy.toml",
        "  access     without an API key, from this machine only",
        "  accounts   upstream → http://127.0.0.1:8080/v1 (ready)",
        "  stop       Ctrl+C",
    ]


ACCESS = {
    "keys": ("0.0.0.0", True, "with an API key"),
    "loopback": ("::1", False, "without an API key, from this machine only"),
    "everyone": ("0.0.0.0", False, "without an API key, for everyone who reaches it (insecure_no_auth)"),
}


@pytest.mark.parametrize(("host", "has_keys", "text"), ACCESS.values(), ids=ACCESS.keys())
def test_access(host, has_keys, text):
    """The address and the keys determine the access line."""
    config = dataclasses.replace(CONFIG, host=host)
    assert f"  access     {text}\n" in banner(config, URL, None, {}, has_keys=has_keys)


def test_fits_80_columns():
    """Without a long URL or path, no line is longer than 80; only the first accounts are listed."""
    many = tuple(AccountConfig(f"account-{n}", preset="token-plan-sg", key="sk-x") for n in range(20))
    lines = banner(Config(accounts=many), URL, None, {}, has_keys=False).splitlines()
    assert lines[-2].strip() == f"and {20 - MAX_ACCOUNTS} more (qproxy accounts)"
    assert [line for line in lines if len(line) > 80 and "token-plan" not in line] == []
