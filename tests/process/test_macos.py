"""macOS has no sandbox, and a limit of open files that the kernel does not raise."""

import logging
import resource
import sys

import pytest

from qproxy.config import Config
from qproxy.config.tools import ToolConfig
from qproxy.process.serve import raise_file_limit
from qproxy.sandbox import SystemSandbox
from tests.helpers import accounts, world

TOOL = ToolConfig(name="x", description="d", argv=[sys.executable, "-c", ""])


async def test_starts_without_a_sandbox(monkeypatch):
    """Without a sandbox the server starts and serves; its tools are unavailable, with the reason."""
    monkeypatch.setattr("sys.platform", "darwin")
    sandbox = SystemSandbox()
    await sandbox.detect()
    assert sandbox.unavailable_reason is not None
    assert "requires Linux" in sandbox.unavailable_reason
    async with world(accounts=accounts("one"), tools=(TOOL,), site=sandbox) as it:
        (tool,) = it.server.state.tool_runtime.registry.tools().values()
        assert tool.unavailable_reason == sandbox.unavailable_reason


@pytest.mark.parametrize("error", [ValueError("not allowed"), OSError(22, "Invalid argument")], ids=repr)
def test_a_limit_of_open_files_that_cannot_be_raised(error, monkeypatch, caplog):
    """A limit that the kernel does not raise is a warning with both numbers."""

    def refuse(kind, limits):
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with caplog.at_level(logging.WARNING):
        raise_file_limit(Config())
    assert "open file limit is 256; max_client_connections + max_requests need" in caplog.text
