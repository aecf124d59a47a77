"""The tree of errors; each has an HTTP status, a cause (type, code, parameter) and a retry hint.

    QproxyError
    ├── RequestError               the client's request: 4xx, never retried
    │   └── AuthenticationError    the client's own qproxy key: the only 401 that is sent
    │       └── InvalidKeyError    an unknown key: counted as a guess
    ├── OverloadedError            the server's own concurrency limits: 503, retry-after 1
    └── UpstreamError              Qwen, or the connection to it, failed; `retry` is the hint

A foreign error becomes one of these at the line of the foreign call, and nowhere else. An error knows no
JSON: each API writes it in its own shape (`wire.endpoints.api.Api.error_body`).
"""

from __future__ import annotations

import enum

from qproxy.wire.context_overflow import ContextOverflow


class RetryHint(enum.Enum):
    """The kind of retry before the first byte of the response that can help."""

    NEVER = "never"
    SOON = "quickly"
    """On any account, after a moment: connection errors, 5xx, bursts."""
    ONCE = "once"
    """As soon, but only one more time: it is likely to fail again."""
    OTHER_ACCOUNT = "elsewhere"
    """Only with another account: this one has no quota, no access or no such model."""
    AFTER = "later"
    """The client should wait `retry_after` seconds; another account may serve it now."""
    REFRESH_TOKEN = "refresh"
    """The account's token was rejected: refresh it once, then retry."""


class LimitKind(enum.Enum):
    """The kind of limit that an account reached, which decides about its next request."""

    NONE = "nothing"
    """The error is about the request, or about a server that is down."""
    BURST = "a burst"
    CONCURRENCY = "requests at once"
    MINUTE = "a minute's limit"
    QUOTA = "quota"
    """The quota of a period, or a prepaid one: exhausted until it resets or is paid."""
    FREE = "free quota"
    """The free quota of one model: exhausted until paid use is enabled."""
    MODEL = "this model"
    """This model is not available to the account; its other models may be."""
    ACCESS = "access"
    """The account itself is rejected."""


class QproxyError(Exception):
    """An error that may be sent to a client."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry = RetryHint.NEVER
    overflow: ContextOverflow | None = None
    """The numbers of a context that is too small, where they are known."""

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
        """Seconds to wait before a retry, if known."""
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
        """Return the value of `x-should-retry`; None leaves it to the client's own rules."""
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
    """The client's API key for this server is missing or wrong."""

    status = 401
    type = "authentication_error"
    code: str | None = "invalid_api_key"


class InvalidKeyError(AuthenticationError):
    """The API key is unknown; it counts against the client's address."""


class OverloadedError(QproxyError):
    """The server is at its concurrency limits."""

    status = 503
    type = "overloaded_error"
    code: str | None = "overloaded"
    retry = RetryHint.AFTER


class UpstreamError(QproxyError):
    """The upstream, or the connection to it, failed."""

    status = 502
    code: str | None = "upstream_error"
    limit = LimitKind.NONE
    server_responded = False
    """Whether the server responded with this failure itself, which may be the request's fault."""
    retry_after_hint: float | None = None
    """Seconds that the upstream requested, unbounded."""
