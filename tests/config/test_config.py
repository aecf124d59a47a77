"""Loading the configuration: precedence of its sources, and the errors for invalid values."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from qproxy import config as configuration
from qproxy.backends.api_keys import has_api_keys
from qproxy.bootstrap.app import create_app
from qproxy.config import Config, load
from qproxy.config.accounts import (
    PRESETS,
    AccountConfig,
    ConfigError,
    key_warnings,
    load_key,
    resolve_account,
)
from tests.helpers import accounts

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_precedence(tmp_path):
    """Defaults < file < environment < flags."""
    (tmp_path / "qproxy.toml").write_text('port = 1\nhost = "::1"\nlog_level = "debug"\n')
    environ = {"QPROXY_PORT": "2", "QPROXY_HOST": "localhost"}
    config = load(environ=environ, flags={"port": 3, "host": None})
    assert (config.port, config.host, config.log_level, config.graceful_timeout) == (
        3,
        "localhost",
        "debug",
        30.0,
    )


WRONG_FILES = {
    "unknown key": ("# c\nprot = 1\n", "line 2: unknown setting 'prot'. Did you mean 'port'?"),
    "wrong type": ('port = "x"\n', "line 1, port: expected integer, got 'x'."),
    "true is no number": ("port = true\n", "expected integer, got True"),
    "endless": ("upstream_read_timeout = inf\n", "must be finite, got inf"),
    "negative": ("upstream_read_timeout = -1\n", "must not be negative"),
    "none of the words": ('log_level = "loud"\n', "one of debug, info, warning, error"),
    "a list of numbers": ("api_keys = [1]\n", "list of strings"),
    "a table of numbers": ("[aliases]\na = 1\n", "table of strings"),
    "not toml": ("port = \n", "invalid TOML"),
    "unknown key of an account": ('[[accounts]]\nname = "a"\nbase_ulr = "x"\n', "Did you mean 'base_url'?"),
    "account without a name": ('[[accounts]]\nkind = "openai_compatible"\n', "name is required"),
    "odd kind": ('[[accounts]]\nname = "a"\nkind = "oauth2"\n', "one of key, openai_compatible"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_rejects_an_invalid_file(text, message, tmp_path):
    """An invalid file raises ConfigError with its name, the place and a suggestion."""
    (tmp_path / "q.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(path=str(tmp_path / "q.toml"), environ={})
    assert "q.toml" in str(caught.value)


WRONG_VARIABLES = {
    "unknown": ({"QPROXY_PROT": "1"}, "QPROXY_PROT: unknown setting 'prot'"),
    "wrong type": ({"QPROXY_PORT": "x"}, "QPROXY_PORT: expected integer, got 'x'."),
    "no file": ({"QPROXY_CONFIG": "/nonexistent.toml"}, "cannot read /nonexistent.toml"),
    "odd region": (
        {"DASHSCOPE_API_KEY": "sk-1", "QPROXY_REGION": "mars"},
        "region: must be one of singapore, beijing, us, hongkong, got 'mars'",
    ),
}


@pytest.mark.parametrize(("environ", "message"), WRONG_VARIABLES.values(), ids=WRONG_VARIABLES.keys())
def test_rejects_an_invalid_variable(environ, message):
    """An invalid variable raises ConfigError with its name."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(environ=environ)


SERVICE_LINKS = {
    "QPROXY_SERVICE_HOST": "10.96.0.7",
    "QPROXY_SERVICE_PORT": "8787",
    "QPROXY_SERVICE_PORT_HTTP": "8787",
    "QPROXY_PORT": "tcp://10.96.0.7:8787",
    "QPROXY_PORT_8787_TCP": "tcp://10.96.0.7:8787",
    "QPROXY_PORT_8787_TCP_PROTO": "tcp",
    "QPROXY_PORT_8787_TCP_PORT": "8787",
    "QPROXY_PORT_8787_TCP_ADDR": "10.96.0.7",
    "QPROXY_METRICS_SERVICE_HOST": "10.96.0.8",
    "QPROXY_METRICS_SERVICE_PORT": "9090",
    "QPROXY_METRICS_PORT": "udp://10.96.0.8:9090",
    "QPROXY_METRICS_PORT_9090_UDP_ADDR": "10.96.0.8",
}
"""Variables of a Pod beside Services named `qproxy` and `qproxy-metrics` (kubelet's envvars.FromServices)."""


def test_variables_of_a_service_in_kubernetes():
    """Variables of a Service whose name starts with qproxy are ignored."""
    assert load(environ=SERVICE_LINKS) == load(environ={})
    assert load(environ={**SERVICE_LINKS, "QPROXY_PORT": "8080"}).port == 8080


@pytest.mark.parametrize("name", ["QPROXY_SERVICE", "QPROXY_PORTS", "QPROXY_PORT_X_TCP", "QPROXY_TCP"])
def test_rejects_a_variable_that_resembles_a_service_link(name):
    """A variable that only resembles one of those raises ConfigError."""
    with pytest.raises(ConfigError, match=name):
        load(environ={name: "tcp://10.96.0.7:8787"})


def test_values_of_variables():
    """Variables hold lists, tables and booleans as text."""
    environ = {
        "QPROXY_API_KEYS": "a, b",
        "QPROXY_ALIASES": "x=y",
        "QPROXY_RULES": "seed=off",
        "QPROXY_STRICT_PARAMS": "yes",
    }
    config = load(environ=environ)
    assert (config.api_keys, config.aliases, config.rules, config.strict_params) == (
        ["a", "b"],
        {"x": "y"},
        {"seed": False},
        True,
    )


def test_zero_configuration():
    """A key in the customary variable configures an account."""
    (account,) = load(environ={"DASHSCOPE_API_KEY": "sk-1", "QPROXY_REGION": "beijing"}).all_accounts()
    assert account.base_url == PRESETS["beijing"].base_url
    plans = load(
        environ={"BAILIAN_CODING_PLAN_API_KEY": "sk-sp-1", "BAILIAN_TOKEN_PLAN_API_KEY": "t"}
    ).all_accounts()
    assert [account.plan for account in plans] == ["coding", "token"]
    (upstream,) = load(environ={"QPROXY_UPSTREAM": "http://x/v1/"}).all_accounts()
    assert (upstream.kind, upstream.base_url, upstream.key) == ("openai_compatible", "http://x/v1", None)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "workspace"])
def test_presets(preset):
    """Every preset resolves to its base URL."""
    assert resolve_account(AccountConfig("a", preset=preset, key="sk-1")).base_url == PRESETS[preset].base_url


def test_workspaces_and_keys(tmp_path):
    """A workspace fills the template; keys come from a variable or a file."""
    account = AccountConfig("a", preset="workspace", workspace="ws", region="eu-central-1", key="sk-1")
    assert resolve_account(account).base_url == "https://ws.eu-central-1.maas.aliyuncs.com/compatible-mode/v1"
    (tmp_path / "key").write_text("sk-file\n")
    assert load_key(AccountConfig("a", key_file=str(tmp_path / "key")), {}).key == "sk-file"
    assert load_key(AccountConfig("a", key_env="K"), {"K": "sk-env"}).key == "sk-env"
    for broken in (AccountConfig("a", key_env="K"), AccountConfig("a", key_file=str(tmp_path / "none"))):
        with pytest.raises(ConfigError):
            load_key(broken, {})


WRONG_ACCOUNTS = {
    "no base": AccountConfig("a", key="sk-1"),
    "odd preset": AccountConfig("a", preset="mars", key="sk-1"),
    "no key": AccountConfig("a", preset="us"),
    "odd url": AccountConfig("a", base_url="ftp://x", key="sk-1"),
    "url with a password": AccountConfig("a", base_url="http://u:p@x/v1", key="sk-1"),
    "no workspace": AccountConfig("a", preset="workspace", key="sk-1"),
    "no weight": AccountConfig("a", preset="us", key="sk-1", weight=0),
    "key with a line end": AccountConfig("a", preset="us", key="sk-1\nx"),
}


@pytest.mark.parametrize("account", WRONG_ACCOUNTS.values(), ids=WRONG_ACCOUNTS.keys())
def test_rejects_an_invalid_account(account):
    """An invalid account raises ConfigError with its name."""
    with pytest.raises(ConfigError, match="account 'a'"):
        resolve_account(account)


WARNINGS = {
    "plan key at pay-as-you-go": ("us", "sk-sp-1", "Coding Plan key"),
    "pay-as-you-go key at the plan": ("coding-plan-cn", "sk-1", "it will reject"),
    "sk- at the token plan": ("token-plan-sg", "sk-1", "Token Plan keys"),
    "no sk-": ("us", "abc", "start with sk-"),
    "terms": ("coding-plan-intl", "sk-sp-1", "against its terms"),
}


@pytest.mark.parametrize(("preset", "key", "message"), WARNINGS.values(), ids=WARNINGS.keys())
def test_warnings(preset, key, message):
    """A key that is likely wrong gives a warning without the key in it."""
    warnings = key_warnings(resolve_account(AccountConfig("a", preset=preset, key=key)))
    assert any(message in warning for warning in warnings)
    assert not any(key in warning for warning in warnings if key != "sk-1" and len(key) > 6)


def test_warns_only_about_likely_faults():
    """A key of the right kind gives no warning; one sent unencrypted does."""
    assert key_warnings(resolve_account(AccountConfig("a", preset="us", key="sk-1"))) == []
    assert (
        "unencrypted"
        in key_warnings(resolve_account(AccountConfig("a", base_url="http://x/v1", key="sk-1")))[0]
    )


def test_rejects_conflicting_settings():
    """A certificate without its key, a missing one, an invalid port or exposure without keys, and no account
    are errors."""
    account = AccountConfig("a", preset="us", key="sk-1")
    Config(accounts=(account,)).check(has_api_keys)
    Config(accounts=(account,), host="0.0.0.0", insecure_no_auth=True).check(has_api_keys)
    for config in (
        Config(accounts=(account,), certfile="x"),
        Config(accounts=(account,), certfile="nowhere.pem", keyfile="nowhere.pem"),
        Config(accounts=(account,), port=65536),
        Config(accounts=(account,), workers=100_000),
        Config(accounts=(account,), host="0.0.0.0"),
        Config(),
    ):
        with pytest.raises(ConfigError):
            config.check(has_api_keys)


def test_repr_hides_secrets():
    """No repr shows a key or a proxy's password."""
    config = Config(
        upstream_key="s3cret",
        api_keys=["s3cret"],
        proxy="http://u:s3cret@x",
        accounts=(AccountConfig("a", key="s3cret"),),
    )
    assert "s3cret" not in repr(config)


def test_an_address_without_a_login_is_no_secret():
    """What a log says of a server without a password names it; a URL with a login is hidden whole."""
    assert Config(shared_state="redis://valkey:6379").secrets() == set()
    for url in ("redis://u:s%33cret@valkey", "redis://u@valkey?password=s%33cret"):
        assert Config(shared_state=url).secrets() == {url, "s%33cret", "s3cret"}
    assert Config(shared_state="redis://user@valkey").secrets() == {"redis://user@valkey"}


def test_rows_of_models(tmp_path):
    """`models` is a list of names, or an array of tables with facts about some of them."""
    file = tmp_path / "qproxy.toml"
    file.write_text('models = ["a", "b"]')
    assert load(environ={}).models == ["a", "b"]
    file.write_text('[[models]]\nid = "a"\ncontext = 5\nprices = [{ input = 1, output = 2.5 }]')
    (row,) = load(environ={}).model_rows
    assert (row.id, row.context, row.prices, row.thinking) == ("a", 5, [{"input": 1, "output": 2.5}], None)


WRONG_ROWS = {
    "[[models]]\ncontext = 5": r"\[\[models\]\] 1: id is required",
    '[[models]]\nid = "a"\ncontexts = 5': "unknown setting 'contexts'. Did you mean 'context'",
    '[[models]]\nid = "a"\nthinking = "often"': "expected one of none, off, on, only",
    '[[model_rows]]\nid = "a"': "unknown setting 'model_rows'",
}


@pytest.mark.parametrize(("text", "message"), WRONG_ROWS.items())
def test_rejects_invalid_rows_of_models(text, message, tmp_path):
    """A mistake in a row is rejected with its place and a suggestion."""
    (tmp_path / "qproxy.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(environ={})


def test_the_admin_key_may_be_in_a_file(tmp_path):
    """It is the one in the file, without its line end, and a secret; a key that is set itself wins; a file
    that cannot be read is an error that names the setting."""
    file, environ = tmp_path / "admin", {"QPROXY_HOME": str(tmp_path)}
    file.write_text("correct-horse-battery\n")
    environ["QPROXY_ADMIN_KEY_FILE"] = str(file)
    settings = configuration.load(environ=environ)
    assert settings.admin_key == "correct-horse-battery"
    assert "correct-horse-battery" in settings.secrets()
    assert "correct-horse" not in repr(settings)
    assert configuration.load(environ={**environ, "QPROXY_ADMIN_KEY": "another"}).admin_key == "another"
    for content in (None, b"\xff"):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match="admin_key_file: cannot read"):
            configuration.load(environ=environ)
        file.touch()


def test_documents_every_setting():
    """docs/configuration.md has the table of settings, every key of an account and every preset."""
    page = PAGE.read_text()
    assert configuration.table() in page
    for name in [*PRESETS, *(item.name for item in fields(AccountConfig))]:
        assert f"`{name}`" in page


def test_the_example_in_the_readme_loads(tmp_path):
    """The README's example is a valid configuration."""
    readme = (PAGE.parents[1] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert tomllib.loads(example)
    (tmp_path / "e.toml").write_text(example)
    config = load(path=str(tmp_path / "e.toml"), environ={"DASHSCOPE_API_KEY": "sk-1"})
    config.check(has_api_keys)
    assert [account.name for account in config.accounts] == ["singapore", "home"]


@pytest.mark.parametrize(
    "key", ["", "admin", "the-admin-key", "fourteen-chars", "a" * 40, "abcde" * 8, "1234123412341234"]
)
def test_rejects_a_guessable_admin_key(key):
    """A guessable admin key is an error in every way to start the server, with advice."""
    config = Config(accounts=accounts("one"), admin_key=key)
    with pytest.raises(ConfigError, match=r"admin_key: too easy to guess.*15 characters.*openssl rand"):
        config.check(has_api_keys)
    with pytest.raises(ConfigError, match=r"admin_key: too easy to guess"):
        create_app(config)


@pytest.mark.parametrize(
    "key", [None, "fifteen-chars-x", "k2Jp0nIzOAYIFcmE2GqkXtBJ8KJxwH5Q", "пароль-администратора"]
)
def test_accepts_a_strong_admin_key(key):
    """A long, varied admin key is accepted, and so is none."""
    Config(accounts=accounts("one"), admin_key=key).check(has_api_keys)
