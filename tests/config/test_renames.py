"""A renamed name raises ConfigError with the new one, in files, variables and flags."""

import re

import pytest

from qproxy import cli
from qproxy.config import load
from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.config.renames import RENAMED_FIELDS, RENAMED_SETTINGS, RENAMED_TABLES
from qproxy.config.settings import SETTINGS, TABLES
from qproxy.wire.dialects.request_rules import RENAMED_RULES, RULES

OTHERS = {
    "a table": ("[[tool_offers]]\n", "tool_offers", "tool_rules"),
    "a field of a rule": ('[[tool_rules]]\noffer = "always"\n', "offer", "policy"),
    "a field of a tool": ('[[tools]]\nname = "t"\nargv = ["t"]\noffer = "never"\n', "offer", "policy"),
    "a field of a server": ('[[mcp_servers]]\nlabel = "s"\noffer = "never"\n', "offer", "policy"),
    "an account's kind": ('[[accounts]]\nname = "a"\nkind = "open"\n', "open", "openai_compatible"),
    "a value": ('stream_upstream = "asked"\n', "asked", "requested"),
    "a rule": ("[rules]\nchoices = false\n", "choices", "max_choices"),
    "a rule of an account": (
        '[[accounts]]\nname = "a"\n[accounts.rules]\none_system = false\n',
        "one_system",
        "merge_system_messages",
    ),
}
VARIABLES = {
    "QPROXY_STREAM_UPSTREAM": ("asked", "requested"),
    "QPROXY_RULES": ("effort=off", "reasoning_effort"),
}


def rename_error(old, new):
    return re.escape(f"{old!r} was renamed to {new!r}.")


@pytest.mark.parametrize("old", RENAMED_SETTINGS)
def test_a_renamed_setting(old, tmp_path, capsys):
    """In a file, in a variable and as a flag, the error names the new setting."""
    new, file = RENAMED_SETTINGS[old], tmp_path / "q.toml"
    file.write_text(f"{old} = 1\n")
    with pytest.raises(ConfigError, match=f"line 1: {rename_error(old, new)}"):
        load(path=str(file), environ={})
    with pytest.raises(ConfigError, match=f"QPROXY_{old.upper()}: {rename_error(old, new)}"):
        load(environ={f"QPROXY_{old.upper()}": "1"})
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", f"--{old.replace('_', '-')}", "1"])
    assert ended.value.code == 2
    assert f"{old!r} was renamed to {new!r}." in capsys.readouterr().err


@pytest.mark.parametrize(("text", "old", "new"), OTHERS.values(), ids=OTHERS.keys())
def test_another_renamed_name(text, old, new, tmp_path):
    """Renamed tables, fields, values and rules of a file raise ConfigError with the new name."""
    file = tmp_path / "q.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rename_error(old, new)):
        load(path=str(file), environ={})


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_renamed_value_of_a_variable(variable):
    """A renamed value of a variable raises ConfigError with the new one."""
    text, new = VARIABLES[variable]
    with pytest.raises(ConfigError, match=f"{variable}: {rename_error(text.partition('=')[0], new)}"):
        load(environ={variable: text})


def test_every_rename_leads_to_a_current_name():
    """No old name is in use, and every new one is."""
    rules = {rule.name for rule in RULES}
    assert not RENAMED_SETTINGS.keys() & SETTINGS.keys()
    assert set(RENAMED_SETTINGS.values()) <= SETTINGS.keys()
    assert not RENAMED_TABLES.keys() & TABLES.keys()
    assert set(RENAMED_TABLES.values()) <= TABLES.keys()
    assert not RENAMED_FIELDS.keys() & TABLES["tools"].__dataclass_fields__.keys()
    assert set(RENAMED_FIELDS.values()) <= TABLES["tools"].__dataclass_fields__.keys()
    assert not RENAMED_RULES.keys() & rules
    assert set(RENAMED_RULES.values()) <= rules


def test_an_account_keeps_its_identity():
    """An account's identity on disk does not change with the name of its kind."""
    account = AccountConfig("mine", "openai_compatible", base_url="http://x/v1", key="sk-1")
    assert account.identity == "ba821b24ce98b571d1ebc848585991d5"
