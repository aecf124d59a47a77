"""The destination of one request."""

from __future__ import annotations

from dataclasses import dataclass, field

from qproxy.wire.http_request import Headers
from qproxy.wire.models import ModelSpec


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """The destination of one request: server, credentials and model."""

    base_url: str
    """Without a trailing slash, e.g. `https://dashscope.aliyuncs.com/compatible-mode/v1`."""
    model: str
    """The model's name on that server (aliases are resolved before)."""
    token: str | None = field(default=None, repr=False)
    family: str = "dashscope"
    """"dashscope" (Alibaba's servers, where the Qwen rules apply) or "open" (any other)."""
    plan: str = "payg"
    """"payg", "coding", "token", "oauth" or "open": decides what a quota error means."""
    headers: Headers = field(default=(), repr=False)
    """The operator's additional header fields."""
    tool_schema: str = "openai"
    """"openai", or "function_declarations" for a server with Gemini's function calling."""

    supports_completions: bool = False
    """Whether the server supports `/completions` for this model."""
    spec: ModelSpec = field(default=ModelSpec(""), repr=False)
    """What is known of the model."""
    native: bool = False
    """Whether the request is for DashScope's native API."""

    @property
    def has_native_api(self) -> bool:
        """Return whether the server is known to have DashScope's native API beside the compatible one."""
        payg = self.family == "dashscope" and self.plan == "payg"
        return payg and self.base_url.endswith("/compatible-mode/v1")

    def with_authorization(self, *extra: tuple[bytes, bytes]) -> Headers:
        """Return the header fields of a JSON request to this target."""
        fields = [(b"content-type", b"application/json"), *extra, *self.headers]
        if self.token is not None:
            fields.append((b"authorization", b"Bearer " + self.token.encode()))
        return tuple(fields)
