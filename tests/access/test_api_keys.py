"""API keys: created once, stored as digests, required on every route that is not open, reread when the file
changes."""

import hashlib
import io
import json
import stat

import pytest

from qproxy import cli
from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, ApiKeyStoreError, StaticApiKeys
from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.local import key_file
from qproxy.backends.local.api_keys import FileApiKeys
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.server.authentication import Access
from qproxy.wire.errors import AuthenticationError
from tests.helpers import HELLO, MODEL, accounts, world


def bearer(secret):
    return [(b"authorization", b"Bearer " + secret.encode())]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "keys.json"


def test_a_key_is_stored_as_a_digest_readable_by_its_owner_only(path):
    """The file contains no secret and is readable by its owner only."""
    key, secret = key_file.create(path, name="bob", rpm=5, models=("qwen-*",))
    text = path.read_text()
    assert secret not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert key_file.read(path) == [key]
    assert len(secret) > 40
    assert secret not in repr(FileApiKeys(path))


def test_names_are_unique_among_keys_in_use(path):
    """A name can be reused only after its key is revoked."""
    key_file.create(path, name="bob")
    with pytest.raises(ApiKeyStoreError, match="bob"):
        key_file.create(path, name="bob")
    key_file.revoke(path, "bob")
    with pytest.raises(ApiKeyStoreError, match="no active key 'bob'"):
        key_file.revoke(path, "bob")
    key_file.create(path, name="bob")
    assert [key.status(0) for key in key_file.read(path)] == ["revoked", "active"]


@pytest.mark.parametrize(
    "name", ["a\nb", "a\r", "\x1b[31mred", "a\u2028b", " a", "a ", "\ud800", "\u202eevil", "a" * 61]
)
def test_rejects_a_name_with_line_ends_or_invisible_characters(name, path):
    """A name appears in lists, log lines and metrics: line ends, controls and invisible characters are
    rejected."""
    with pytest.raises(ApiKeyStoreError, match="one line of at most 60"):
        key_file.create(path, name=name)
    assert key_file.read(path) == []
    key_file.create(path, name="Ünïcode 团队 1")


def test_the_key_ring_rereads_its_file(path):
    """New, revoked and expired keys take effect with the next request; a broken file changes nothing."""
    now = 1000.0
    ring = FileApiKeys(path, wall_clock=lambda: now)
    assert not ring.required()
    key, secret = key_file.create(path, expires=2000)
    assert ring.required()
    assert ring.authenticate(secret) == key
    good = path.read_bytes()
    for bad in (b"{", b'{"keys": [{"id": "x", "digest": "no"}]}', b"[]"):
        path.write_bytes(bad)
        assert ring.required()
        assert ring.authenticate(secret) == key
    path.unlink()
    assert ring.required()
    path.write_bytes(good)
    now = 2000.0
    with pytest.raises(AuthenticationError, match="expired"):
        ring.authenticate(secret)
    now = 1000.0
    key_file.revoke(path, key.id)
    assert ring.required()
    with pytest.raises(AuthenticationError, match="revoked"):
        ring.authenticate(secret)


@pytest.mark.parametrize("wrong", ["", "x", "sk-qproxy-", "\udcff", "k" * 100_000])
def test_rejects_an_invalid_key(path, wrong):
    """Any text that is not a key is rejected."""
    key_file.create(path)
    ring = FileApiKeys(path)
    with pytest.raises(AuthenticationError):
        ring.authenticate(wrong)


def test_the_first_of_two_keys_with_one_digest_is_used(path):
    """A key that is also in `api_keys` is the configured one: it has no limits and no expiry."""
    _, secret = key_file.create(path, expires=1)
    ring = FileApiKeys(path, api_keys.keys_from_settings(["other", secret]))
    assert ring.authenticate(secret).id == "api_keys[1]"


def test_finding_a_key_reads_no_other_digest():
    """Finding one key among many reads no other key's digest."""
    read = []

    class RecordingKey(ApiKey):
        def __getattribute__(self, name):
            if name == "digest":
                read.append(self)
            return super().__getattribute__(name)

    ring = StaticApiKeys([RecordingKey(f"key_{n}", api_keys.hash_key(f"secret {n}")) for n in range(50)])
    read.clear()
    assert ring.authenticate("secret 49").id == "key_49"
    assert not read


@pytest.mark.parametrize(("text", "expected"), [("30d", 3592000), ("2h", 1007200), ("1970-01-12", 950400)])
def test_expiry_of_a_key(text, expected):
    """A span counts from now; a date is in UTC."""
    assert api_keys.parse_expiry(text, 1_000_000.0) == expected
    with pytest.raises(ValueError):
        api_keys.parse_expiry("soon", 0)


async def test_every_route_declares_its_access():
    """Each route of the app is in the table; routes that are not open reject a client without a key, or
    without the admin key."""
    async with world(api_keys=["secret"]) as it:
        rules = list(it.app.url_map.iter_rules())
        assert {rule.endpoint for rule in rules} == set(it.server.routes)
        opened = {rule.rule for rule in rules if it.server.routes[rule.endpoint].access is Access.OPEN}
        assert opened == {"/", "/livez", "/readyz", "/openapi.json"}
        for rule in rules:
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                path = rule.rule.replace("<path:name>", "x")
                async with it.client.request(method, path, body=b"{}") as response:
                    await response.read()
                access = it.server.routes[rule.endpoint].access
                if access is Access.SESSION:
                    continue  # tests/dashboard/test_auth.py
                refused = {Access.OPEN: False, Access.KEY: 401}.get(access, 403)
                assert (response.status in (401, 403) and response.status) == refused, (method, path)


async def test_an_undeclared_route_requires_a_key():
    """A route missing from the table is not open."""

    async def undeclared():
        return "secret"

    async with world(api_keys=["secret"]) as it:
        it.app.add_url_rule("/forgotten", "forgotten", undeclared)
        async with it.client.request("GET", "/forgotten") as response:
            assert response.status == 401


async def test_a_key_created_while_serving(path):
    """A running server requires keys once there is one, and applies a key's models."""
    async with world(keys_file=str(path)) as it:
        assert (await it.post(HELLO))[0] == 200
        _, secret = key_file.create(path, name="narrow", models=("qwen-max*",))
        assert (await it.post(HELLO))[0] == 401
        status, _, body = await it.post(HELLO, headers=bearer(secret))
        assert (status, body["error"]["code"], body["error"]["param"]) == (
            403,
            "model_access_denied",
            "model",
        )
        assert (await it.post({**HELLO, "model": "qwen-max"}, headers=bearer(secret)))[0] == 200
        _, listed = await it.get("/v1/models", bearer(secret))
        assert MODEL not in [model["id"] for model in listed["data"]]
        key_file.revoke(path, "narrow")
        assert (await it.post({**HELLO, "model": "qwen-max"}, headers=bearer(secret)))[0] == 401


def test_listening_on_all_addresses_requires_a_key(path):
    """A key in the file is as good as api_keys; an invalid file is a configuration error."""
    others = {"host": "0.0.0.0", "keys_file": str(path), "accounts": accounts("one")}
    with pytest.raises(ConfigError, match="qproxy keys create"):
        Config(**others).check(has_api_keys)
    key_file.create(path)
    Config(**others).check(has_api_keys)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"keys\.json"):
        Config(**others).check(has_api_keys)


def test_the_keys_command(path, capsys, monkeypatch):
    """create prints only the key on stdout; list shows everything except the secret; revoke takes a name."""
    monkeypatch.setenv("QPROXY_HOME", str(path.parent))
    assert cli.main(["keys", "create", "--name", "bob", "--rpm", "3", "--models", "a, b*"]) == 0
    secret = capsys.readouterr().out.strip()
    (key,) = key_file.read(path)
    assert key == ApiKey(key.id, api_keys.hash_key(secret), "bob", key.created, rpm=3, models=("a", "b*"))
    assert cli.main(["keys", "list"]) == 0
    shown = capsys.readouterr().out
    assert "bob" in shown
    assert "active" in shown
    assert secret not in shown
    assert cli.main(["keys", "revoke", "bob"]) == 0
    assert json.loads(path.read_text())["keys"][0]["revoked"]
    assert cli.main(["keys", "revoke", "bob"]) == 2
    assert cli.main(["keys", "create", "--expires", "soon"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["keys", "create", "--rpm", "0"])


def test_an_unencodable_character_is_escaped(path, monkeypatch):
    """A character that the locale cannot encode is written by its number."""
    monkeypatch.setenv("QPROXY_HOME", str(path.parent))
    key_file.create(path, name="Zoë")
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, "ascii"))
    assert cli.main(["keys", "list"]) == 0
    assert b"Zo\\xeb" in shown.getvalue()
