"""An API as its clients see it apart from responses: errors, headers, keys and the keep-alive of a stream.

`Api` is one record for all endpoints of one vendor's API; a row of `ENDPOINTS` names its own. Errors stay
neutral (`wire.errors`: status, cause, retry hint) until they leave through one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from qproxy.wire.endpoints.models import Model
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON, Turn


class RateLimitStatus(NamedTuple):
    """The state of one rate limit of an API key."""

    unit: str
    """The limited unit: `requests` or `tokens`."""
    limit: float
    """Units per minute."""
    remaining: int
    reset_seconds: float
    """Seconds until all of it is available again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Api:
    """The properties shared by the endpoints of one API."""

    name: str
    """The display name, such as `OpenAI`."""
    error_body: Callable[[QproxyError, str], dict[str, Any]]
    """Returns the JSON of an error for a request id, which is empty if the request could not be read."""
    error_schema: JSON
    """JSON Schema of that body, for the OpenAPI document."""
    error_status: Callable[[QproxyError], int] = attrgetter("status")
    retry_headers: Callable[[QproxyError], dict[str, str]]
    """Returns the headers of an error that describe whether and when to retry."""
    rate_limit_headers: Callable[[Iterable[RateLimitStatus], float], dict[str, str]]
    """Returns the headers that report an API key's rate limits; the float is the wall clock in Unix
    seconds."""
    request_id_headers: tuple[str, ...] = ("x-request-id",)
    processing_ms_header: str | None = None
    exposed_headers: tuple[str, ...]
    """The response headers of this API that a page's script may read (CORS)."""
    api_key_headers: tuple[str, ...] = ("x-api-key",)
    """The headers that hold an API key beside `authorization: Bearer`; the first one is documented."""
    apply_headers: Callable[[Turn, Callable[[str], str | None]], Turn] | None = None
    """Adds to a decoded turn what the request's headers, looked up by name, say beyond its body."""
    keep_alive: bytes = b": keep-alive\n\n"
    """Bytes sent in a silent stream: SSE clients skip a line that begins with a colon."""
    model_list: Callable[[Iterable[Model], Mapping[str, str]], JSON]
    """Makes the list of models; the mapping is the request's query, for an API that lists them in pages."""
    model_object: Callable[[Model], JSON]
    path_prefixes: tuple[str, ...] = ()
    """The paths below `/v1` that belong to this API even without a route."""
    marker_headers: tuple[str, ...] = ()
    """Request headers that only clients of this API send: they decide where APIs share a path."""


def find_api(apis: Sequence[Api], path: str, has_header: Callable[[str], bool]) -> Api:
    """Return the API of a request to a path that is no endpoint's own: the first one unless another
    matches."""
    relative = path.removeprefix("/v1")
    for api in apis:
        if relative.startswith(api.path_prefixes) or any(map(has_header, api.marker_headers)):
            return api
    return apis[0]
