"""Client configuration for this server, and a playground.

The playground sends `/v1/chat/completions` from the browser, like any client.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import trio

from qproxy.dashboard.auth import PageRequest
from qproxy.dashboard.rendering import PageRenderer
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.state import StateHolder
from qproxy.wire.errors import QproxyError

BASE_URL, KEY = "http://127.0.0.1:8787/v1", re.compile(r"\bany\b")
"""Placeholders in a recipe: base URL and key."""
KEY_PLACEHOLDER = "YOUR-KEY"
MODELS_SECONDS = 3.0
"""Seconds that the page waits for the upstreams' model lists."""
CHAT_LAST = re.compile("embedding|rerank|tts|asr|ocr|image|audio|realtime|livetranslate", re.IGNORECASE)
"""Patterns of models that are not for chat, listed last."""


@dataclass(frozen=True, slots=True)
class ClientRecipe:
    """The configuration of one program."""

    name: str
    where: str
    """Location of the configuration file, if any."""
    text: str
    note: str = ""
    """A command to run afterwards."""
    model: str = ""
    """Placeholder of the model."""

    def with_values(self, base_url: str, model: str, key: str) -> ClientRecipe:
        """Return the recipe with the values of this server."""

        def fill(text: str) -> str:
            return KEY.sub(lambda _: key, text).replace(BASE_URL, base_url).replace(self.model, model)

        return ClientRecipe(self.name, self.where, fill(self.text).strip(), fill(self.note).strip())


def recipes() -> list[ClientRecipe]:
    """Return the recipes of the package."""
    text = (files("qproxy.dashboard") / "recipes.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return [ClientRecipe(**entry, model=data["model"]) for entry in data["recipes"]]


class ConnectPage:
    """The page with recipes and the playground."""

    def __init__(self, server: StateHolder, pages: PageRenderer) -> None:
        self._server = server
        self._pages = pages
        self._recipes = recipes()

    def views(self) -> Iterator[tuple[str, str, Callable[..., Awaitable[HTTPResponse]]]]:
        yield "GET", "/connect", self._view

    async def _view(self, visit: PageRequest) -> HTTPResponse:
        demanded = self._server.state.authentication.api_keys.required()
        base_url, models = f"{visit.origin}{request_context.root_path()}/v1", await self._models()
        model = self._server.state.default_model or (models[0] if models else self._recipes[0].model)
        key = KEY_PLACEHOLDER if demanded else "any"
        return self._pages.page(
            visit,
            "connect.html",
            base_url=base_url,
            models=models,
            model=model,
            demanded=demanded,
            key=key,
            recipes=[recipe.with_values(base_url, model, key) for recipe in self._recipes],
        )

    async def _models(self) -> list[str]:
        """Return the models that are known within a short timeout."""
        found: list[str] = []
        with trio.move_on_after(MODELS_SECONDS):
            try:
                found = [model.id for model in await self._server.state.model_directory.models()]
            except QproxyError:
                found = []
        return sorted(found, key=lambda name: (bool(CHAT_LAST.search(name)), name))
