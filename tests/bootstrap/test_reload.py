"""A reload renews or keeps each part of the server, depending on its settings."""

from dataclasses import fields, replace

import pytest
import trio

from qproxy.backends import stores
from qproxy.backends.credentials import credential_opener
from qproxy.bootstrap import auth, reload, state, tools, transport
from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.server import ServerState
from tests.helpers import accounts

BEFORE = Config(accounts=accounts("one"), log_bodies=True)
LOGIN = AccountConfig("me", "oauth")

RENEWED = {
    "authentication", "cors", "trusted_proxies", "request_limits", "relay", "pool_settings",
    "model_directory", "tokenizers", "realtime", "response_sockets",
    "pricing", "body_logger", "redact", "compactor",
}  # fmt: skip
"""Parts that every reload builds again."""
VALUES = {"default_model", "root_path", "unpriced_models"}
"""Plain settings."""
RENEWED_IF_CHANGED: dict[str, dict] = {
    "concurrency": {"max_requests": 7},
    "tool_runtime": {"max_tool_rounds": 3},
    "responses": {"store_timeout": 1.0},
    "conversations": {"store_timeout": 1.0},
    "completions": {"store_timeout": 1.0},
    "response_runs": {"store_timeout": 1.0},
}
"""Parts that are kept unless one of their settings changed."""
KEPT = {
    "http_limits", "endpoints", "grants", "client_keys", "admin_keys", "metrics_access", "usage_limiter",
    "refresh_tasks", "prober", "audit",
    "login_sessions", "in_flight", "counters", "listeners", "ledger", "tracer", "peers", "background",
    "startup", "background_runs", "stream_recorder", "open_stores", "shared_state",
    "credential_opener", "files", "batches", "uploads", "batch_runner",
}  # fmt: skip
"""Parts that live as long as the server."""

NOT_IN_STATE = {
    "admin_key_file": "its content is the admin_key, when the settings are loaded",
    "region": "only decides which account a DASHSCOPE_API_KEY belongs to, when the settings are loaded",
    "log_level": "the process's logging (process.log_setup), which its reload configures again",
    "log_format": "the process's logging (process.log_setup), which its reload configures again",
}
"""Settings that no part reads."""


class RecordingConfig(Config):
    """A `Config` that records which settings are read."""

    def __getattribute__(self, name):
        if name in Config.__dataclass_fields__:
            object.__getattribute__(self, "__dict__").setdefault("read", set()).add(name)
        return super().__getattribute__(name)


def recording(**settings):
    """Return a recording config of which nothing has been read."""
    config = RecordingConfig(**settings)
    config.__dict__["read"] = set()
    return config


def test_the_table_names_every_part():
    """Each field of `ServerState` is in exactly one group."""
    groups = [RENEWED, VALUES, set(RENEWED_IF_CHANGED), KEPT]
    assert sorted(name for group in groups for name in group) == sorted(f.name for f in fields(ServerState))


async def test_a_reload_renews_and_keeps_parts_by_the_table():
    """With equal settings a renewed part is another object, and a kept part is the same one."""
    previous = build_server(BEFORE).state
    renewed = reload.rebuild_state(BEFORE, BEFORE, previous)
    for name in RENEWED:
        assert getattr(renewed, name) is not getattr(previous, name), name
    for name in KEPT | set(RENEWED_IF_CHANGED):
        assert getattr(renewed, name) is getattr(previous, name), name
    assert renewed.relay.accounts is previous.relay.accounts
    assert renewed.relay.transport is previous.relay.transport
    assert renewed.pool_settings.accounts == previous.pool_settings.accounts
    other = reload.rebuild_state(replace(BEFORE, default_model="m"), BEFORE, previous)
    assert (previous.default_model, other.default_model) == (None, "m")


@pytest.mark.parametrize("name", RENEWED_IF_CHANGED)
async def test_a_part_with_changed_settings_is_renewed(name):
    """It is another object then, as are parts of the same settings, and other parts of the kind are kept."""
    previous = build_server(BEFORE).state
    changed = RENEWED_IF_CHANGED[name]
    renewed = reload.rebuild_state(replace(BEFORE, **changed), BEFORE, previous)
    for part, settings in RENEWED_IF_CHANGED.items():
        assert (getattr(renewed, part) is getattr(previous, part)) is (settings != changed)


async def test_every_setting_reaches_the_server():
    """A reload reads every setting except those that require a restart and those that no part reads."""
    before = replace(BEFORE, log_bodies=False)  # its redactor would read every secret
    config = recording(accounts=before.accounts, upstream="http://upstream.test/v1")
    renewed = reload.rebuild_state(config, before, build_server(before).state)
    renewed.relay.policy.profile("m")  # reads the patterns when a model is first used
    everything = set(Config.__dataclass_fields__)
    assert everything - config.read - reload.RESTART_REQUIRED == set(NOT_IN_STATE)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (transport.build_transport, transport.SETTINGS),
        (state.build_concurrency, reload.CONCURRENCY_SETTINGS),
        (stores.open_stores, reload.STORE_SETTINGS),
        (
            lambda config: (
                tools.build_tool_runtime(config),
                tools.open_mcp_transport(config),
            ),
            reload.TOOL_SETTINGS,
        ),
        (
            lambda config: auth.build_oauth_source(
                LOGIN, config, credential_opener(config)(LOGIN), trio.open_tcp_stream
            ),
            auth.SETTINGS,
        ),
    ],
    ids=["transport", "concurrency", "responses", "tools", "oauth"],
)
async def test_a_kept_part_depends_on_no_other_setting(build, names, tmp_path, monkeypatch):
    """The settings that decide whether a part is kept are exactly those that it is built from."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    config = recording(store_responses=True)
    build(config)
    assert config.read == set(names)


async def test_restart_settings_stay_in_effect_after_a_reload():
    """The new settings are in effect, with the running server's values of those that require a restart."""
    changed = replace(BEFORE, port=1, max_body_bytes=1, default_model="m")
    assert reload.effective_config(changed, BEFORE) == replace(BEFORE, default_model="m")
