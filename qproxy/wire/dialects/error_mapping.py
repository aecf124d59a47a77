"""Every error of a Qwen upstream, as one tree of errors.

One classification (`_classify`) serves error responses (`upstream_error`) and errors inside a 200
(`error_from_event`); it reads the table `PATTERNS` from the top, and the first row that fits wins. A row is
chosen by code, by words in the message and by plan, because the same code means different things:
`insufficient_quota` is the tokens of this minute on pay-as-you-go and the end of the month on a plan.

A rejection of *qproxy's* credential (401, no access) is never a 401 or 403 for the client, whose own key is
valid. The upstream's message is kept, with an explanation in front where it is unclear.

Sources: DashScope's error reference, its SDK's `error_mapping.py`, qwen-code's retry classification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from qproxy.wire import json_codec, storable
from qproxy.wire.context_overflow import parse_overflow
from qproxy.wire.dialects.error_text import (
    MAX_LISTED,
    MAX_READ,
    as_text,
    body_text,
    find_message,
    parse_inner,
    xml_message,
)
from qproxy.wire.errors import LimitKind, RetryHint, UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.http_request import Headers

MAX_LOCATION = 200
"""Characters of a redirect's target that an error repeats."""
MAX_RETRY_AFTER = 120.0
"""Seconds; OpenAI's clients give up if the wait is longer."""
MAX_MESSAGE = 2000
YEAR = 366 * 86400.0
CONTEXT_EXCEEDED = "context_length_exceeded"
_CONTENT_FIELDS = frozenset(("messages", "content", "response", "output", "text", "choices", "candidates"))
"""Fields that hold a part of a response."""


@dataclass(frozen=True, slots=True)
class ErrorPattern:
    """One kind of error: how it is recognized, and how it is reported to the client."""

    text: str
    """A pattern for `code message`, in lower case."""
    status: int
    type: str
    code: str | None
    retry: RetryHint = RetryHint.NEVER
    wait: float | None = None
    """Seconds to wait if the upstream names none."""
    message: str = ""
    param: str | None = None
    when: tuple[int, ...] = ()
    """Upstream statuses of the row; empty for any."""
    plans: tuple[str, ...] = ()
    limit: LimitKind = LimitKind.NONE


_INVALID_REQUEST, _RATE, _QUOTA, _SERVER = (
    "invalid_request_error",
    "rate_limit_error",
    "insufficient_quota",
    "server_error",
)
_PERMISSION = "permission_error"
_PLANS = ("coding", "token", "oauth")
_OVERDUE = "The upstream account has overdue payments or no credit"
_NO_CREDIT = "The upstream account has no credit or budget left"

# fmt: off
PATTERNS: tuple[ErrorPattern, ...] = (
    # Invalid requests
    ErrorPattern(r"range of input length|context_length_exceeded|(maximum|model'?s) (context|model) length|"
                 r"exceeds? the (model'?s )?context|context size|context length of|maximum allowed length|"
                 r"(input|prompt) (is )?too long|message token length exceed|exceeds? the max_model_len",
                 400, _INVALID_REQUEST, CONTEXT_EXCEEDED),
    ErrorPattern(r"range of max_(completion_)?tokens|max_tokens .{0,200}(too large|exceed)", 400,
        _INVALID_REQUEST, "invalid_value", param="max_tokens"),
    ErrorPattern(r"enable_thinking.{0,200}(must be (set to )?true|restricted to true)", 400, _INVALID_REQUEST,
        "unsupported_parameter", param="enable_thinking"),
    ErrorPattern(r"notsupportenablethinking|enable_thinking", 400, _INVALID_REQUEST, "unsupported_parameter",
        param="enable_thinking", when=(400,)),
    ErrorPattern(r"data_?inspection_?failed|invalidparameter\.datainspection|content_filter|"
                 r"customroleblocked|faqruleblocked|ipinfringementsuspect|inappropriate content", 400,
                 _INVALID_REQUEST, "content_filter", message="Refused by the upstream's content inspection"),
    ErrorPattern(r"\barrearage\b|commoditynotpurchased|(prepaid|postpaid)billoverdue|not in good standing|"
                 r"overdue[- ]payment|payment is overdue", 429, _QUOTA, "insufficient_quota",
                     RetryHint.OTHER_ACCOUNT, message=_OVERDUE, limit=LimitKind.QUOTA),
    ErrorPattern(r"inputdownloadfailed|invalidurl|resourcenotexist|failed to download", 400, _INVALID_REQUEST,
        "invalid_image_url", when=(400,)),
    ErrorPattern(r"audiolengtherror|audio length must be|invalidfile\.duration", 400, _INVALID_REQUEST,
        "invalid_audio_length", param="file", when=(400, 0, 200)),
    ErrorPattern(r"unsupportedfileformat|badrequest\.toolarge|invalidfile|invalidimage", 400,
        _INVALID_REQUEST, "invalid_image", when=(400,)),
    ErrorPattern(r"model not exist|model_not_found|modelnotfound|model\.notexist|model_not_supported|"
                 r"the model \S{1,100} (does not exist|(is )?not found)|^model \S{1,100} (does not exist|"
                 r"(is )?not found)", 404, _INVALID_REQUEST, "model_not_found", RetryHint.OTHER_ACCOUNT,
                     param="model", limit=LimitKind.MODEL, when=(400, 403, 404, 0, 200)),
    ErrorPattern(r"invalid_value", 400, _INVALID_REQUEST, "invalid_value", when=(400,)),
    ErrorPattern(r"throttling\.allocationquota", 400, _INVALID_REQUEST, None, when=(400,)),
    # Exhausted quotas, as opposed to rate limits
    ErrorPattern(r"insufficient_user_quota|quota is not enough|insufficient[ _]balance|"
                 r"balance is insufficient|\u989d\u5ea6\u4e0d\u8db3|"  # one-api, new-api: quota too low
                 r"\u4f59\u989d\u4e0d\u8db3",  # balance too low
                 429, _QUOTA, "insufficient_quota", RetryHint.OTHER_ACCOUNT, message=_NO_CREDIT,
                 when=(402, 403, 429), limit=LimitKind.QUOTA),
    ErrorPattern(r"budget_exceeded|budget has been exceeded|exceededbudget",  # LiteLLM
                 429, _QUOTA, "insufficient_quota", RetryHint.OTHER_ACCOUNT, message=_NO_CREDIT,
                 when=(400, 403, 429), limit=LimitKind.QUOTA),
    ErrorPattern(r"freetieronly|free tier of the model has been exhausted", 429, _QUOTA, "insufficient_quota",
        RetryHint.OTHER_ACCOUNT, message="The account's free quota is used up", limit=LimitKind.FREE),
    ErrorPattern(r"free allocated quota exceeded", 429, _QUOTA, "insufficient_quota", RetryHint.OTHER_ACCOUNT,
        message="The account's free quota is used up", limit=LimitKind.QUOTA),
    ErrorPattern(r"(hour|day|daily|week|month)\w{0,8} allocated quota exceeded|quota has been exhausted|"
                 r"quota (is )?exhausted|quota_exceeded|(quota|limit|usage)\b.{0,200}(will reset|resets? at)",
                 429, _QUOTA, "insufficient_quota", RetryHint.OTHER_ACCOUNT,
                 message="The account's plan is used up for this period", when=(400, 403, 429, 0, 200),
                 limit=LimitKind.QUOTA),
    ErrorPattern(r"concurrency allocated quota exceeded|concurrency_limit", 429, _RATE, "rate_limit_exceeded",
        RetryHint.AFTER, 2, limit=LimitKind.CONCURRENCY),
    ErrorPattern(r"usage allocated quota exceeded", 429, _RATE, "rate_limit_exceeded", RetryHint.AFTER, 60,
        limit=LimitKind.MINUTE),
    ErrorPattern(r"insufficient_quota|allocationquota|allocated quota exceeded|exceeded your current quota",
        429, _RATE, "rate_limit_exceeded", RetryHint.AFTER, 60, plans=("token",),
        message="The plan's credits are gone, or too many tokens for this minute", when=(429, 0),
        limit=LimitKind.MINUTE),
    ErrorPattern(r"insufficient_quota|exceeded your current quota", 429, _RATE, "rate_limit_exceeded",
        RetryHint.AFTER, 60, plans=("open",),  # of a gateway: OpenAI's words for both
        message="The account's quota is used up, or too many tokens for this minute", when=(429, 0),
        limit=LimitKind.MINUTE),
    ErrorPattern(r"insufficient_quota", 429, _QUOTA, "insufficient_quota", RetryHint.OTHER_ACCOUNT,
        plans=_PLANS, when=(429, 403, 0), limit=LimitKind.QUOTA),
    ErrorPattern(r"insufficient_quota|allocationquota|allocated quota exceeded|exceeded your current quota",
        429, _RATE, "rate_limit_exceeded", RetryHint.AFTER, 60, message="Too many tokens for this minute",
        limit=LimitKind.MINUTE),
    ErrorPattern(r"burstrate|limit_burst_rate|increased too quickly", 429, _RATE, "rate_limit_exceeded",
        RetryHint.SOON, 2, limit=LimitKind.BURST),
    ErrorPattern(r"ratequota|limitrequests|limit_requests|requests rate limit exceeded|"
                 r"current requests list|userqpslimit", 429, _RATE, "rate_limit_exceeded", RetryHint.AFTER,
                     60, message="Too many requests for this minute", limit=LimitKind.MINUTE),
    ErrorPattern(r"throttling|rate.?limit|too many requests|^130[25]\b", 429, _RATE, "rate_limit_exceeded",
        RetryHint.SOON, 2, when=(429, 0, 200, 503, 1302, 1305), limit=LimitKind.BURST),
    # Authentication and access
    ErrorPattern(r"currently only available for coding agents", 403, _PERMISSION, "client_not_allowed",
        RetryHint.OTHER_ACCOUNT,
        message="The Coding Plan serves only the coding agents that Alibaba has listed; use a pay-as-you-go "
                "key for other programs", limit=LimitKind.ACCESS),
    ErrorPattern(r"model\.accessdenied|model_access_denied", 403, _PERMISSION, "model_access_denied",
        RetryHint.OTHER_ACCOUNT, limit=LimitKind.MODEL),
    ErrorPattern(r"workspace\.accessdenied|not authorized", 403, _PERMISSION, "workspace_access_denied",
        RetryHint.OTHER_ACCOUNT, when=(401, 403), limit=LimitKind.ACCESS),
    ErrorPattern(r"access_?denied|unpurchased", 403, _PERMISSION, "access_denied", RetryHint.OTHER_ACCOUNT,
        when=(403,), limit=LimitKind.MODEL),
    ErrorPattern(r"invalid_?api_?key|incorrect api key|invalid access token|token expired|unauthorized|"
                 r"authentication", 502, _SERVER, "upstream_credentials_exhausted", RetryHint.REFRESH_TOKEN,
                 when=(401, 403, 0),
                 message="The upstream rejects this server's own key or token (it may belong to another "
                         "region or plan)", limit=LimitKind.ACCESS),
    # Upstream failures
    ErrorPattern(r"url error, please check url", 400, _INVALID_REQUEST, None, when=(400,)),
    ErrorPattern(r"internalerror\.algo\.invalidparameter", 400, _INVALID_REQUEST, "invalid_parameter",
        when=(400,)),
    ErrorPattern(r"internalerror\.timeout|requesttimeout|responsetimeout|gatewaytimeout", 504, _SERVER,
        "upstream_timeout", RetryHint.NEVER),
    ErrorPattern(r"modelservingerror|modelunavailable|serviceunavailable|engine_overloaded|overloaded", 503,
        _SERVER, "overloaded", RetryHint.SOON, 2, when=(500, 503, 529, 0, 200)),
    ErrorPattern(r"internal_?error|systemerror|modelservicefailed|invokepluginfailed|appprocessfailed|"
                 r"rewritefailed|retrievalfailed", 502, _SERVER, "upstream_error", RetryHint.SOON,
                     when=(500, 502, 503, 0, 200)),
    ErrorPattern(r"invalid_?parameter", 400, _INVALID_REQUEST, "invalid_parameter", when=(400, 0, 200)),
    # By status alone
    ErrorPattern(r"", 502, _SERVER, "upstream_credentials_exhausted", RetryHint.REFRESH_TOKEN, when=(401,),
        message="The upstream rejects this server's own token or key", limit=LimitKind.ACCESS),
    ErrorPattern(r"", 429, _QUOTA, "insufficient_quota", RetryHint.OTHER_ACCOUNT, when=(402,),
        message="The upstream account has to be paid for", limit=LimitKind.QUOTA),
    ErrorPattern(r"", 403, _PERMISSION, "access_denied", RetryHint.OTHER_ACCOUNT, when=(403,),
        limit=LimitKind.MODEL),
    ErrorPattern(r"", 404, _INVALID_REQUEST, "not_found", RetryHint.OTHER_ACCOUNT, when=(404,),
        limit=LimitKind.MODEL),
    ErrorPattern(r"", 502, _SERVER, "upstream_error", when=(405,),
        message="The upstream does not offer this at its base URL"),
    ErrorPattern(r"", 413, _INVALID_REQUEST, "request_too_large", when=(413,)),
    ErrorPattern(r"", 429, _RATE, "rate_limit_exceeded", RetryHint.AFTER, 5, when=(429,),
        limit=LimitKind.BURST),
    ErrorPattern(r"", 400, _INVALID_REQUEST, None, when=(400,)),
    ErrorPattern(r"", 422, _INVALID_REQUEST, None, when=(422,)),
    ErrorPattern(r"", 503, _SERVER, "overloaded", RetryHint.SOON, 2, when=(503, 529)),
    ErrorPattern(r"", 504, _SERVER, "upstream_timeout", when=(408, 504)),
    ErrorPattern(r"", 502, _SERVER, "upstream_error", RetryHint.SOON,
        when=(500, 502, 520, 521, 522, 523, 524)),
    ErrorPattern(r"", 502, _SERVER, "upstream_error"),
)
# fmt: on
_COMPILED = tuple(re.compile(row.text, re.DOTALL) for row in PATTERNS)
_SECRET = re.compile(r"\b(sk-[\w*-]{3})[\w*-]+|(?<=[Bb]earer )[\w.~+/-]{8,}")


def error_from_response(status: int, headers: Headers, body: bytes, *, plan: str = "payg") -> UpstreamError:
    """Return the error of a response with another status than 200."""
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(headers)}
    if 300 <= status < 400:
        return _redirect_error(status, fields.get("location", ""))
    error: UpstreamError | None = None
    try:
        data = json_codec.loads(body)
    except ValueError:
        data = parse_inner(body.decode("utf-8", "replace").strip())
        error = _error_from_text(status, body) if data is None else None
    if error is None:
        error = _from_json(data if isinstance(data, dict) else {"errors": data}, status, plan)
    error.server_responded = status == 500
    error.request_id = error.request_id or fields.get("x-request-id")
    wait = _retry_after(fields)
    if wait is not None:
        error.retry_after, error.retry_after_hint = min(wait, MAX_RETRY_AFTER), wait
    return error


def _redirect_error(status: int, location: str) -> UpstreamError:
    """Return the error of a redirect, which is not followed: it would send the key elsewhere."""
    target = storable.storable_text(location.partition("?")[0].rpartition("@")[2])[:MAX_LOCATION]
    message = f"The upstream redirects to {target or 'another address'} (status {status})"
    return UpstreamError(f"{message}: set the account's base_url to it.", retry=RetryHint.OTHER_ACCOUNT)


def error_from_event(
    data: JSON, status: int | None, *, plan: str = "payg", is_error: bool = False
) -> UpstreamError | None:
    """Return the error in a value inside a 200; None if it is not an error.

    Shapes: `{"error": {...}}` or `{"error": "..."}` (OpenAI), `{"code", "message", "request_id"}`
    (DashScope), `{"errorType", "status", "rid"}` (its gateway), a list of such, and any value with a `status`
    of 400 or more or of an event named error (`is_error`).
    """
    is_error = is_error or (status or 0) >= 400
    if not isinstance(data, dict):
        if not is_error and not (isinstance(data, list) and any(map(_is_error, data[:MAX_LISTED]))):
            return None
        data = {"errors": data}
    elif not is_error and not _is_error(data):
        return None
    known = data.get("status") if isinstance(data.get("status"), int) else status
    code = _unwrap(data).get("code")
    if not known and re.fullmatch("[1-9][0-9]{2}", str(code)):
        known = int(str(code))
    error = _from_json(data, known if known and known >= 400 else 0, plan)
    error.server_responded = True
    return error


def _is_error(data: JSON) -> bool:
    """Return whether an object has the fields of an error."""
    if not isinstance(data, dict):
        return False
    named = any(data.get(name) for name in ("error", "errorType", "error_msg", "error_message", "errors"))
    return named or ("choices" not in data and bool(data.get("code") or data.get("detail")))


def unknown_body_error(body: JSON, expected: str) -> UpstreamError:
    """Return the error for JSON in a 200 that is neither a response nor an error; a part of a response is not
    repeated.
    """
    text = "" if _may_be_content(body) else find_message(body) or body_text(body)
    message = f"The upstream returned something that is not {expected}{f': {text}' if text else '.'}"
    return UpstreamError(_storable_message(message), code="upstream_invalid_response")


def _may_be_content(body: JSON) -> bool:
    """Return whether an object of an unknown shape may hold a part of a response."""
    if not isinstance(body, dict):
        return False
    message = body.get("message")
    return not _CONTENT_FIELDS.isdisjoint(body) or (isinstance(message, dict) and "content" in message)


def _unwrap(data: Mapping[str, JSON]) -> Mapping[str, JSON]:
    error = data.get("error")
    if isinstance(error, dict):
        return error
    return {**data, "message": error} if isinstance(error, str) else data


def _from_json(data: Mapping[str, JSON], status: int, plan: str) -> UpstreamError:
    error = _unwrap(data)
    code = next((as_text(error[key]) for key in ("code", "errorType", "type") if error.get(key)), "")
    message = (find_message(error) or find_message(data))[:MAX_READ]
    param = error.get("param")
    row = _classify(status, f"{code} {as_text(error.get('type') or '')} {message}", plan)
    param = storable.storable_text(param) if isinstance(param, str) else None
    words = message or ("" if code.isdecimal() else code) or body_text(dict(data))
    ours = _error(row, words or f"status {status}", param)
    if ours.code == CONTEXT_EXCEEDED:
        ours.overflow = parse_overflow(message, error)  # llama.cpp has the numbers in fields
    ids = (data.get(key) or error.get(key) for key in ("request_id", "requestId", "rid"))
    ours.request_id = next((storable.storable_text(value) for value in ids if isinstance(value, str)), None)
    return ours


def _classify(status: int, text: str, plan: str) -> ErrorPattern:
    text = text.lower()
    for row, pattern in zip(PATTERNS, _COMPILED, strict=True):
        fits = (not row.when or status in row.when) and (not row.plans or plan in row.plans)
        if fits and pattern.search(text):
            return row
    raise AssertionError("the last row fits everything")


def _error(row: ErrorPattern, message: str, param: str | None = None) -> UpstreamError:
    message = _storable_message(message)
    error = UpstreamError(
        f"{row.message}: {message}" if row.message else message,
        status=row.status,
        type=row.type,
        param=param or row.param,
        retry=row.retry,
        retry_after=row.wait,
    )
    error.code, error.limit = row.code, row.limit
    if error.code == CONTEXT_EXCEEDED:
        error.overflow = parse_overflow(message)
    return error


def _storable_message(message: str) -> str:
    """Return a message without secrets, as the account's state stores it and the dashboard shows it."""
    message = _SECRET.sub(lambda match: (match[1] or "") + "***", message.strip())[:MAX_MESSAGE]
    return storable.storable_text(message)


def _error_from_text(status: int, body: bytes) -> UpstreamError:
    """Return the error for a body that is no JSON: HTML of a firewall or a proxy, plain text, or nothing."""
    text = body[:500].decode("utf-8", "replace").strip()
    text = xml_message(text) or text
    if not text.startswith("<") and status >= 400:
        return _error(_classify(status, text, ""), text or f"The upstream returned status {status}.")
    if (
        text.startswith("<") and status >= 400 and status != 403
    ):  # a JSON error of that status would be the same
        row = _classify(status, "", "")
        return _error(row, f"The upstream returned a web page (status {status}).")
    return invalid_response_error(status, body)


def invalid_response_error(status: int, body: bytes) -> UpstreamError:
    """Return the error for a body that is no JSON; it is not repeated, since it may be part of a response."""
    page = body[:500].lstrip().startswith(b"<")
    what = "a web page" if page else "something that is not JSON" if body.strip() else "an empty body"
    hint = ": a firewall or a proxy may be in the way" if page else ""
    message = f"The upstream returned {what} (status {status}){hint}."
    return UpstreamError(message, code="upstream_invalid_response", retry=RetryHint.ONCE)


def _retry_after(fields: Mapping[str, str]) -> float | None:
    """Return the seconds of retry-after-ms or retry-after; a date is relative to the response's own Date."""
    try:
        if "retry-after-ms" in fields:
            return _cap_at_year(float(fields["retry-after-ms"]) / 1000)
        value = fields["retry-after"].strip()
        if value.replace(".", "", 1).isdecimal():
            return _cap_at_year(float(value))
        when, now = parsedate_to_datetime(value), parsedate_to_datetime(fields["date"])
        return _cap_at_year((when - now).total_seconds())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _cap_at_year(seconds: float) -> float:
    """Return the seconds clamped to 0 to one year; 0 for a NaN."""
    return min(max(0.0, seconds), YEAR)
