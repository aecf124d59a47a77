"""docs/deploy: its files name existing settings, keep their isolation options, and have a working health
check."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from qproxy.bootstrap import app
from qproxy.cli import build_parser
from qproxy.config import SETTINGS, Config
from qproxy.http_server.shutdown import ERROR_DELIVERY_SECONDS
from qproxy.process import serve
from tests.helpers import accounts

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
DOCKERFILE, COMPOSE, UNIT, TOOLS = (
    (DEPLOY / name).read_text() for name in ("Dockerfile", "compose.yaml", "qproxy.service", "tools.conf")
)
ISOLATION = {
    "DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes", "CapabilityBoundingSet": "", "RestrictNamespaces": "yes",
    "MemoryDenyWriteExecute": "yes",
    "StateDirectory": "qproxy", "Type": "notify", "StateDirectoryMode": "0700", "UMask": "0077",
    "Restart": "always", "LimitNOFILE": "65536",
}  # fmt: skip


def unit(text):
    read = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(text)
    return read["Service"]


@pytest.mark.parametrize(
    "name", [str(path.relative_to(DEPLOY)) for path in sorted(DEPLOY.rglob("*")) if path.is_file()]
)
def test_variables_are_settings(name):
    """Every QPROXY_ variable is one that the server reads."""
    named = set(re.findall(r"\bQPROXY_([A-Z_]+)\b", (DEPLOY / name).read_text()))
    assert {word.lower() for word in named} <= {*SETTINGS, "config", "home"}


def test_the_unit_is_isolated():
    """The unit runs as a dynamic user, writes its own directory only, always restarts, and reloads by `qproxy
    reload`."""
    service = unit(UNIT)
    assert {name: service.get(name) for name in ISOLATION} == ISOLATION
    for line in ("ExecStart", "ExecReload"):
        program, *words = service[line].split()
        assert program == "/opt/qproxy/bin/qproxy"
        build_parser().parse_args(words)
    assert float(service["TimeoutStopSec"]) > Config().graceful_timeout + ERROR_DELIVERY_SECONDS
    needed, _ = serve.file_limit(Config())
    assert needed < int(service["LimitNOFILE"])


def test_the_drop_in_for_tools_keeps_the_isolation():
    """It changes neither the user nor the file system nor the privileges."""
    assert not unit(TOOLS).keys() & {
        "DynamicUser",
        "NoNewPrivileges",
        "ProtectSystem",
        "ProtectHome",
        "CapabilityBoundingSet",
    }


def test_the_container_is_unprivileged():
    """The last user of the image is not root; compose drops the default capabilities of a container."""
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:3.13-slim"}
    for option in ("read_only: true", "cap_drop: [ALL]", "no-new-privileges:true", '"127.0.0.1:8787:8787"'):
        assert option in COMPOSE
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])
    command = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    build_parser().parse_args([*entry, *command][1:])


async def test_the_health_check():
    """The image's command exits with 0 while the server runs, and with another code afterwards."""
    found = re.search(r"HEALTHCHECK.*?CMD (\[.*?\])$", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert found is not None
    _, *arguments = json.loads(found[1])

    async def healthy(port):
        command, variables = [sys.executable, *arguments], {"QPROXY_PORT": str(port)}
        done = await trio.run_process(
            command, env=variables, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return done.returncode == 0

    config = Config(port=0, accounts=accounts("one"), store_responses=False)
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(app.serve, config)
        port = urls[0].rpartition(":")[2]
        assert await healthy(port)
        nursery.cancel_scope.cancel()
    assert not await healthy(port)
