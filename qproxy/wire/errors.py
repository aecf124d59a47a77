"""The tree of errors.  Each knows its HTTP status, its cause (type, code, parameter) and whether a retry can help.

    QproxyError
    ├── RequestError            the client's request: 4xx, never retried
    │   └── NotAuthenticated    the client's own qproxy key: the only 401 we send
    │       └── WrongKey        it is none of ours: a guess, as far as we know
    ├── Overloaded              our own admission limits: 503, retry-after 1
    └── UpstreamError           what Qwen, or the way to it, did; `retry` says what may help

A foreign error becomes one of these at the line where the foreign call is made, and nowhere else.
An error knows no JSON: each API writes it in its own shape (`wire.endpoints.api.Api.error_body`).
"""

from __future__ import annotations

import enum


class RetryHint(enum.Enum):
    """What another try could help with, before the first byte of the answer."""

    NEVER = "never"
    SOON = "quickly"
    """Here or elsewhere, after a moment: connection trouble, 5xx, bursts."""
    ONCE = "once"
    """As quickly, but only one more time: it is likely to fail again."""
    OTHER_ACCOUNT = "elsewhere"
    """Only with another account: this one has no quota, no access or no such model."""
    AFTER = "later"
    """The client should wait `retry_after` seconds; another account may serve it now."""
    REFRESH_TOKEN = "refresh"
    """The account's token was refused: renew it once, then try again."""


class LimitKind(enum.Enum):
    """What a refusal says about the account that it came to, for the next request with it."""

    NONE = "nothing"
    """It is about the request, or about a server that is down."""
    BURST = "a burst"
    CONCURRENCY = "requests at once"
    MINUTE = "a minute's limit"
    QUOTA = "quota"
    """Of a period, or paid for: gone until it is reset or paid."""
    FREE = "free quota"
    """Of one model: gone until somebody lets it cost money."""
    MODEL = "this model"
    """Not with this account; its other models are another matter."""
    ACCESS = "access"
    """The account itself is refused."""


class QproxyError(Exception):
    """Anything a client may be told."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry = RetryHint.NEVER

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry: RetryHint | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds to wait before another try, where known."""
        self.request_id = request_id
        """The upstream's own id of the failed request."""
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code
        if retry is not None:
            self.retry = retry

    @property
    def should_retry(self) -> bool | None:
        """What `x-should-retry` tells a client; None leaves it to the client's own rules."""
        if self.type == "insufficient_quota":
            return False
        if self.status == 429 or self.retry in (RetryHint.SOON, RetryHint.ONCE, RetryHint.AFTER):
            return True
        return False if self.status > 500 else None


class RequestError(QproxyError):
    """The request cannot be served as it is."""

    status = 400
    type = "invalid_request_error"


class AuthenticationError(RequestError):
    """The client's own key for this server is missing or wrong."""

    status = 401
    type = "authentication_error"
    code: str | None = "invalid_api_key"


class InvalidKeyError(AuthenticationError):
    """The key is none of ours: it counts against its address."""


class OverloadedError(QproxyError):
    """More than this server is set to carry at once."""

    status = 503
    type = "overloaded_error"
    code: str | None = "overloaded"
    retry = RetryHint.AFTER


class UpstreamError(QproxyError):
    """The upstream, or the way to it, failed."""

    status = 502
    code: str | None = "upstream_error"
    limit = LimitKind.NONE
    server_responded = False
    """The server is up: it said itself that it failed at this request, which may be the request's fault."""
    retry_after_hint: float | None = None
    """Seconds that the upstream itself named, as many as it named."""
