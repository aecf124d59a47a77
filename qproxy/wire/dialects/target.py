"""Whom one request goes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from qproxy.wire.http_request import Headers
from qproxy.wire.models import ModelSpec


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """Whom one request goes to, as whom, and for which model."""

    base_url: str
    """Without a trailing slash, e.g. `https://dashscope.aliyuncs.com/compatible-mode/v1`."""
    model: str
    """The model's name there (an alias is resolved before)."""
    token: str | None = field(default=None, repr=False)
    family: str = "dashscope"
    """"dashscope" (Alibaba's servers, where the Qwen rules apply) or "open" (any other)."""
    plan: str = "payg"
    """"payg", "coding", "token", "oauth" or "open": decides what a quota error means."""
    headers: Headers = field(default=(), repr=False)
    """The operator's additional header fields."""
    tool_schema: str = "openai"
    """"openai", or "function_declarations" for a server that speaks of functions as Gemini does (`declarations`)."""

    supports_completions: bool = False
    """Whether the server goes on from a text itself (`/completions`), for this model."""
    spec: ModelSpec = field(default=ModelSpec(""), repr=False)
    """What is known of the model."""

    def with_authorization(self, *extra: tuple[bytes, bytes]) -> Headers:
        """The header fields of a JSON request to this target."""
        fields = [(b"content-type", b"application/json"), *extra, *self.headers]
        if self.token is not None:
            fields.append((b"authorization", b"Bearer " + self.token.encode()))
        return tuple(fields)
