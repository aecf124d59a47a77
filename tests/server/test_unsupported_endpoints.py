"""Paths of OpenAI's API that are not served are 404s that name what is here instead."""

import json
import re
from pathlib import Path

import openai
import pytest

from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.wire.endpoints.unsupported import UNSUPPORTED
from tests.helpers import accounts, world
from tests.openai_types import refusal

RESOURCES = Path(openai.__file__).parent / "resources"
PATHS = re.compile(r'"(/[a-z_]+(?:/[a-z_{}]+)*)(?:\?[^"]*)?"')


def sdk_paths():
    """Return the paths that the SDK requests, with `{name}` for ids."""
    found = set()
    for path in RESOURCES.rglob("*.py"):
        found |= set(PATHS.findall(path.read_text()))
    return {path for path in found if not path.startswith("/v1")}


def served_paths():
    """Return the paths that have a route, with `{}` for ids."""
    server = build_server(Config(accounts=accounts("one")))
    return {re.sub(r"<[^>]+>", "{}", route.path) for group in server.route_groups for route in group.routes()}


def test_every_path_of_the_sdk_is_served_or_named():
    """A path that a new SDK requests is found here; nothing is both served and named as not served."""
    served = served_paths()
    paths = {re.sub(r"{[^}]+}", "{}", path) for path in sdk_paths()}
    assert len(paths) > 80
    named = {path for path in paths if any(f"{path}/".startswith(f"{it}/") for it in UNSUPPORTED)}
    assert named & served == set()
    assert paths - served - named == set()


@pytest.mark.parametrize(
    "path", ["/v1/videos", "/v1/fine_tuning/jobs/ftjob-1", "/assistants", "/v1/vector_stores/vs_1/files"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_error_names_what_is_there_instead(method, path):
    """The status is 404, the code tells it from a wrong path, and the message says what to do."""
    async with (
        world() as it,
        it.client.request(method, path, headers=[(b"content-type", b"application/json")]) as response,
    ):
        body = await response.read()
    assert response.status == 404
    error = refusal(json.loads(body))
    assert error.code == "unsupported_endpoint"
    assert "is not served." in error.message


def test_the_page_has_the_same_table():
    """docs/endpoints.md has a row for each path that is not served, with the reason of its error."""
    page = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text()
    for path, reason in UNSUPPORTED.items():
        assert f"| `/v1{path}` | {reason} |" in page
