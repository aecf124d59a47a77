"""Imports of commands, which dominate the startup time and a supervisor's memory."""

import subprocess
import sys

import pytest

TRIO = {"trio", "trio_websocket", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"}
HYPERCORN = {"hypercorn", "h11", "h2", "hpack", "hyperframe", "wsproto", "priority"}
QUART = {
    "quart", "quart_trio", "flask", "werkzeug", "jinja2", "markupsafe", "click", "itsdangerous", "blinker",
    "aiofiles",
}  # fmt: skip
OURS_FOR_OTHERS = {
    "qproxy.emulator",
    "qproxy.emulator.demo",
    "qproxy.server.asgi_client",
    "qproxy.cli.login",
    "qproxy.cli.demo",
}
COMMANDS = {
    "a server": (
        "qproxy.cli, qproxy.cli.serve, qproxy.process.serve",
        {"qproxy", "prometheus_client", *TRIO, *HYPERCORN, *QUART},
        OURS_FOR_OTHERS,
    ),
    "a supervisor": (
        "qproxy.cli, qproxy.cli.serve, qproxy.process.supervisor",
        {"qproxy"},
        {
            *OURS_FOR_OTHERS,
            "qproxy.server",
            "qproxy.bootstrap",
            "qproxy.relay",
            "sqlite3",
            "multiprocessing",
            "asyncio",
        },
    ),
    "qproxy reload": (
        "qproxy.cli, qproxy.cli.reload",
        {"qproxy"},
        {*OURS_FOR_OTHERS, "qproxy.server", "sqlite3"},
    ),
}


@pytest.mark.parametrize(("modules", "packages", "late"), COMMANDS.values(), ids=COMMANDS.keys())
def test_imports_only_what_is_needed(modules, packages, late):
    """A command imports no optional package (jsonschema, mcp, segno, …) and no module of another command."""
    code = f"import sys; before = set(sys.modules); import {modules}; print(*(set(sys.modules) - before))"
    found = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        ).stdout.split()
    )
    foreign = {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"__mp_main__"}
    assert foreign <= packages, foreign - packages
    assert not found & late
