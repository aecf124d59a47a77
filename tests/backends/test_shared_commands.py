"""Commands on shared tokens: login, logout, import, export, sealing again; and what cannot be shared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.fernet import Fernet

from qproxy.auth.credential_store import StorageError
from qproxy.backends.credentials import credential_opener
from qproxy.backends.local.files import credential_copy_path, credential_path
from qproxy.backends.shared_commands import (
    export_credentials,
    import_credentials,
    reseal_credentials,
    with_credentials,
)
from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.wire.credential_format import TokenSet

ME = AccountConfig("me", kind="oauth")
TOKENS = TokenSet("a1", "r1", "Bearer", 1_760_000_000_000, "portal.qwen.ai")


@pytest.fixture
def config(valkey, tmp_path, monkeypatch) -> Config:
    """Return the settings of a machine without waits: no server changes meanwhile."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    monkeypatch.setattr("qproxy.backends.redis.reconnection.MAX_PAUSE", 0.0)
    (tmp_path / "seal").write_text(f"{Fernet.generate_key().decode()}\n")
    return Config(
        accounts=(ME,),
        shared_state=f"unix://{valkey.path}",
        shared_state_key_file=str(tmp_path / "seal"),
        shared_state_timeout=5.0,
        shared_state_connect_timeout=0.2,
        ledger="none",
    )


async def load(config: Config) -> TokenSet | None:
    return await with_credentials(config, ME, lambda store: store.load())


async def test_tokens_move_to_shared_state_and_back(config, valkey):
    """The file is gone afterwards: what is in it would be used up; a second login is not overwritten."""
    file = credential_opener(config)(ME)
    assert not await import_credentials(config, ME)
    await file.save(TOKENS)
    assert await import_credentials(config, ME)
    assert not credential_path(ME).exists()
    assert credential_copy_path(ME).stat().st_mode & 0o777 == 0o600
    assert await load(config) == TOKENS
    await file.save(TOKENS)
    with pytest.raises(StorageError, match="logged in in shared_state"):
        await import_credentials(config, ME)
    assert await export_credentials(config, ME)
    assert await load(config) is None
    assert await file.load() == TOKENS
    assert not await export_credentials(config, ME)


async def test_tokens_are_sealed_again_with_the_first_key(config, tmp_path, valkey):
    """After that the old key is not needed any more."""
    old, new = (tmp_path / "seal").read_text(), f"{Fernet.generate_key().decode()}\n"
    await with_credentials(config, ME, lambda store: store.save(TOKENS))
    (tmp_path / "seal").write_text(new + old)
    assert await reseal_credentials(config, ME)
    (tmp_path / "seal").write_text(new)
    assert await load(config) == TOKENS
    assert await with_credentials(config, ME, lambda store: store.remove())
    assert not await reseal_credentials(config, ME)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared_state_key_file": None}, "require shared_state_key_file, which encrypts them"),
        ({"accounts": (replace(ME, credentials="~/.qwen"),)}, "cannot be a file of other programs"),
    ],
)
async def test_a_server_does_not_start_with_tokens_that_cannot_be_shared(config, changes, words):
    """Without keys nothing would encrypt them; a file that qwen-code uses too is not under the lease."""
    with pytest.raises(ConfigError, match=f"^account 'me': with shared_state, .*{words}"):
        build_server(replace(config, **changes))
    build_server(replace(config, shared_state=None, **changes))


async def test_without_the_server_a_command_fails_with_words(config, tmp_path):
    """Nothing was read or changed."""
    away = replace(config, shared_state=f"unix://{tmp_path}/none", shared_state_connect_timeout=0.01)
    with pytest.raises(StorageError, match=r"^shared_state cannot be used: no connection"):
        await load(away)
