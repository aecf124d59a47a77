"""Every documented error of Qwen's servers, and the client's error for it."""

import json

import pytest

from qproxy.telemetry.redaction import Redactor
from qproxy.wire.dialects.error_mapping import MAX_MESSAGE, PATTERNS, error_from_event, error_from_response
from qproxy.wire.errors import LimitKind, RetryHint

BAD, RATE, QUOTA, SERVER, PERMISSION = (
    "invalid_request_error",
    "rate_limit_error",
    "insufficient_quota",
    "server_error",
    "permission_error",
)
NO, FAST, ELSE, LATER, REFRESH = (
    RetryHint.NEVER,
    RetryHint.SOON,
    RetryHint.OTHER_ACCOUNT,
    RetryHint.AFTER,
    RetryHint.REFRESH_TOKEN,
)
CREDENTIALS = (502, SERVER, "upstream_credentials_exhausted", REFRESH)
EXHAUSTED = (429, QUOTA, "insufficient_quota", ELSE)
MINUTE = (429, RATE, "rate_limit_exceeded", LATER)

# (upstream status, code, message, plan) -> (status, type, code, retry)
ROWS = [
    (400, "InvalidParameter", "bad parameter", "payg", (400, BAD, "invalid_parameter", NO)),
    (400, "invalid_parameter_error", "bad parameter", "payg", (400, BAD, "invalid_parameter", NO)),
    (400, "invalid_request_error", "you must provide a model parameter", "payg", (400, BAD, None, NO)),
    (400, "invalid_value", "seed is out of range", "payg", (400, BAD, "invalid_value", NO)),
    (400, "InvalidParameter", "Range of input length should be [1, 30720]", "payg", (400, BAD, "context_length_exceeded", NO)),
    (400, "InvalidParameter", "Total message token length exceed model limit", "payg", (400, BAD, "context_length_exceeded", NO)),
    (400, "InvalidParameter", "Range of max_tokens should be [1, 8192]", "payg", (400, BAD, "invalid_value", NO)),
    (400, "InvalidParameter.NotSupportEnableThinking", "x", "payg", (400, BAD, "unsupported_parameter", NO)),
    (400, "InvalidParameter", "parameter.enable_thinking must be set to true", "payg", (400, BAD, "unsupported_parameter", NO)),
    (400, "InvalidParameter", "url error, please check url!", "payg", (400, BAD, None, NO)),
    (400, "InternalError.Algo.InvalidParameter", "orphan tool message", "payg", (400, BAD, "invalid_parameter", NO)),
    (400, "InvalidSchema", "x", "payg", (400, BAD, None, NO)),
    (400, "InvalidSchemaFormat", "x", "payg", (400, BAD, None, NO)),
    (400, "DataInspectionFailed", "x", "payg", (400, BAD, "content_filter", NO)),
    (400, "data_inspection_failed", "x", "payg", (400, BAD, "content_filter", NO)),
    (400, "InvalidParameter.DataInspection", "x", "payg", (400, BAD, "content_filter", NO)),
    (400, "CustomRoleBlocked", "x", "payg", (400, BAD, "content_filter", NO)),
    (400, "FaqRuleBlocked", "x", "payg", (400, BAD, "content_filter", NO)),
    (400, "IPInfringementSuspect", "x", "payg", (400, BAD, "content_filter", NO)),
    (400, "Arrearage", "Access denied, your account is not in good standing", "payg", EXHAUSTED),
    (400, "BadRequest.EmptyInput", "x", "payg", (400, BAD, None, NO)),
    (400, "BadRequest.IllegalInput", "x", "payg", (400, BAD, None, NO)),
    (400, "BadRequest.InputDownloadFailed", "x", "payg", (400, BAD, "invalid_image_url", NO)),
    (400, "InvalidURL.Timeout", "x", "payg", (400, BAD, "invalid_image_url", NO)),
    (400, "BadRequest.ResourceNotExist", "x", "payg", (400, BAD, "invalid_image_url", NO)),
    (400, "BadRequest.UnsupportedFileFormat", "x", "payg", (400, BAD, "invalid_image", NO)),
    (400, "BadRequest.TooLarge", "x", "payg", (400, BAD, "invalid_image", NO)),
    (400, "InvalidImage.Resolution", "x", "payg", (400, BAD, "invalid_image", NO)),
    (400, "UnsupportedOperation", "x", "payg", (400, BAD, None, NO)),
    (400, "ServiceUnavailableError", "Role must be user or assistant", "payg", (400, BAD, None, NO)),
    (400, "Throttling.AllocationQuota", "voices", "payg", (400, BAD, None, NO)),
    (400, "", "Model not exist.", "payg", (404, BAD, "model_not_found", ELSE)),
    (400, None, "developer is not one of ['system', 'assistant']", "payg", (400, BAD, None, NO)),
    (401, "InvalidApiKey", "Invalid API-key provided.", "payg", CREDENTIALS),
    (401, "invalid_api_key", "Incorrect API key provided.", "payg", CREDENTIALS),
    (401, "invalid_api_key", "invalid access token or token expired", "oauth", CREDENTIALS),
    (401, "NOT AUTHORIZED", "Access denied: workspace", "payg", (403, PERMISSION, "workspace_access_denied", ELSE)),
    (403, "AccessDenied", "x", "payg", (403, PERMISSION, "access_denied", ELSE)),
    (403, "AccessDenied.Unpurchased", "x", "payg", (403, PERMISSION, "access_denied", ELSE)),
    (403, "Workspace.AccessDenied", "x", "payg", (403, PERMISSION, "workspace_access_denied", ELSE)),
    (403, "Model.AccessDenied", "x", "payg", (403, PERMISSION, "model_access_denied", ELSE)),
    (403, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted.", "payg", EXHAUSTED),
    (404, "ModelNotFound", "x", "payg", (404, BAD, "model_not_found", ELSE)),
    (404, "model_not_found", "The model `x` does not exist", "payg", (404, BAD, "model_not_found", ELSE)),
    (404, "model_not_supported", "x", "payg", (404, BAD, "model_not_found", ELSE)),
    (404, "WorkSpaceNotFound", "x", "payg", (404, BAD, "not_found", ELSE)),
    (405, None, "Coding Plan is currently only available for Coding Agents", "coding", (403, PERMISSION, "client_not_allowed", ELSE)),
    (413, "", "too large", "payg", (413, BAD, "request_too_large", NO)),
    (429, "Throttling", "Requests throttling triggered.", "payg", (429, RATE, "rate_limit_exceeded", FAST)),
    (429, "throttling", "x", "payg", (429, RATE, "rate_limit_exceeded", FAST)),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded", "payg", MINUTE),
    (429, "limit_requests", "You exceeded your current requests list", "payg", MINUTE),
    (429, "LimitRequests", "x", "payg", MINUTE),
    (429, "Throttling.BurstRate", "Request rate increased too quickly", "payg", (429, RATE, "rate_limit_exceeded", FAST)),
    (429, "limit_burst_rate", "x", "payg", (429, RATE, "rate_limit_exceeded", FAST)),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded", "payg", MINUTE),
    (429, "insufficient_quota", "You exceeded your current quota, see #token-limit", "payg", MINUTE),
    (429, "insufficient_quota", "hour allocated quota exceeded", "coding", EXHAUSTED),
    (429, "insufficient_quota", "week allocated quota exceeded", "coding", EXHAUSTED),
    (429, "insufficient_quota", "month allocated quota exceeded", "coding", EXHAUSTED),
    (429, "insufficient_quota", "Free allocated quota exceeded.", "oauth", EXHAUSTED),
    (429, "insufficient_quota", "x", "oauth", EXHAUSTED),
    (429, "x", "Your quota is exhausted and will reset at 00:00", "coding", EXHAUSTED),
    (429, "x", "concurrency allocated quota exceeded", "coding", MINUTE),
    (429, "x", "usage allocated quota exceeded", "coding", MINUTE),
    (429, "x", "API-Key Requests rate limit exceeded", "coding", MINUTE),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded", "token", MINUTE),
    (429, "CommodityNotPurchased", "x", "payg", EXHAUSTED),
    (429, "PrepaidBillOverdue", "x", "payg", EXHAUSTED),
    (429, "PostpaidBillOverdue", "x", "payg", EXHAUSTED),
    (500, "InternalError", "x", "payg", (502, SERVER, "upstream_error", FAST)),
    (500, "internal_error", "x", "payg", (502, SERVER, "upstream_error", FAST)),
    (500, "SystemError", "x", "payg", (502, SERVER, "upstream_error", FAST)),
    (500, "ModelServiceFailed", "x", "payg", (502, SERVER, "upstream_error", FAST)),
    (500, "InternalError.Timeout", "x", "payg", (504, SERVER, "upstream_timeout", NO)),
    (500, "RequestTimeOut", "x", "payg", (504, SERVER, "upstream_timeout", NO)),
    (500, "ResponseTimeout", "x", "payg", (504, SERVER, "upstream_timeout", NO)),
    (500, "ModelServingError", "x", "payg", (503, SERVER, "overloaded", FAST)),
    (503, "ModelServingError", "x", "payg", (503, SERVER, "overloaded", FAST)),
    (503, "ModelUnavailable", "x", "payg", (503, SERVER, "overloaded", FAST)),
    (503, "ServiceUnavailable", "x", "payg", (503, SERVER, "overloaded", FAST)),
    (504, "GatewayTimeout", "x", "payg", (504, SERVER, "upstream_timeout", NO)),
    (529, "", "overloaded", "payg", (503, SERVER, "overloaded", FAST)),
    (402, "x", "Payment required", "open", EXHAUSTED),
    (403, "insufficient_user_quota", "user quota is not enough", "open", EXHAUSTED),
    (403, "insufficient_user_quota", "\u7528\u6237\u989d\u5ea6\u4e0d\u8db3", "open", EXHAUSTED),
    (403, "30001", "Sorry, your account balance is insufficient", "open", EXHAUSTED),
    (402, "invalid_request_error", "Insufficient Balance", "open", EXHAUSTED),
    (400, "budget_exceeded", "Budget has been exceeded! Current cost: 10.5, Max budget: 10.0", "open", EXHAUSTED),
    (400, "400", "ExceededBudget: End User=x over budget. Spend=0.1, Budget=0.0001", "open", EXHAUSTED),
    (400, "invalid_request_error", "insufficient balance is no tool", "open", (400, BAD, None, NO)),
    (429, "insufficient_quota", "You exceeded your current quota, please check your plan", "open", MINUTE),
    (429, "1302", "x", "payg", (429, RATE, "rate_limit_exceeded", FAST)),
    (429, "x", "Your token-plan 1-week quota has been exhausted. The quota will reset at 08-14 09:18:00 UTC.", "token", EXHAUSTED),
    (400, "invalid_parameter_error", "unknown property overdue_since in tool invoice", "payg", (400, BAD, "invalid_parameter", NO)),
    (400, "invalid_parameter_error", "credit and balance are no fields", "payg", (400, BAD, "invalid_parameter", NO)),
    (500, "internal_error", "connection reset at peer", "payg", (502, SERVER, "upstream_error", FAST)),
    (500, "internal_error", "model worker: file not found", "payg", (502, SERVER, "upstream_error", FAST)),
    (418, "", "teapot", "open", (502, SERVER, "upstream_error", NO)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code", "message", "plan", "expected"),
    ROWS,
    ids=[f"{r[0]} {r[1]} {r[2][:20]} {r[3]}" for r in ROWS],
)
@pytest.mark.parametrize("native", [False, True])
def test_every_row(status, code, message, plan, expected, native):
    """A documented error has one meaning, in OpenAI's shape and in DashScope's."""
    body = (
        {"code": code, "message": message}
        if native
        else {"error": {"code": code, "message": message, "type": "x"}}
    )
    error = error_from_response(status, (), json.dumps(body).encode(), plan=plan)
    assert (error.status, error.type, error.code, error.retry) == expected
    assert message in error.message


LIMITS = {
    "limit_burst_rate": (429, "Request rate increased too quickly", LimitKind.BURST),
    "throttling": (429, "x", LimitKind.BURST),
    "limit_requests": (429, "x", LimitKind.MINUTE),
    "insufficient_quota": (429, "x", LimitKind.MINUTE),
    "a": (429, "concurrency allocated quota exceeded", LimitKind.CONCURRENCY),
    "b": (429, "week allocated quota exceeded", LimitKind.QUOTA),
    "Arrearage": (400, "x", LimitKind.QUOTA),
    "AllocationQuota.FreeTierOnly": (403, "x", LimitKind.FREE),
    "Model.AccessDenied": (403, "x", LimitKind.MODEL),
    "model_not_found": (404, "x", LimitKind.MODEL),
    "Workspace.AccessDenied": (403, "x", LimitKind.ACCESS),
    "invalid_api_key": (401, "x", LimitKind.ACCESS),
    "invalid_parameter_error": (400, "x", LimitKind.NONE),
    "internal_error": (500, "x", LimitKind.NONE),
}


@pytest.mark.parametrize(("code", "row"), LIMITS.items(), ids=LIMITS.keys())
def test_the_limit_of_an_account_error(code, row):
    """Each account error names its limit; a request error names none."""
    status, message, limit = row
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    assert error_from_response(status, (), body).limit is limit


def test_a_long_retry_after_is_kept_for_the_cooldown():
    """The client gets at most two minutes; the account's cooldown lasts the upstream's whole time."""
    error = error_from_response(429, ((b"retry-after", b"3600"),), b"{}")
    assert (error.retry_after, error.retry_after_hint) == (120, 3600)


SHAPES = {
    "error is a string": (405, {"error": "Coding Plan is currently only available for Coding Agents"},
        "client_not_allowed"),
    "code is a number": (400, {"error": {"code": 400, "message": "x", "type": "invalid_request_error"}},
        None),
    "gateway": (429, {"errorType": "THROTTLING.userQPSLimit", "rid": "r-1", "message": None, "status": 429},
        "rate_limit_exceeded"),
    "llama.cpp's context": (400, {"error": {"code": 400, "type": "exceed_context_size_error",
        "message": "the request exceeds the available context size"}}, "context_length_exceeded"),
    "a list": (500, [], "upstream_error"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "code"), SHAPES.values(), ids=SHAPES.keys())
def test_shapes_of_error_bodies(status, body, code):
    """Each shape of body gives its code."""
    error = error_from_response(status, (), json.dumps(body).encode())
    assert error.code == code
    assert error.message


@pytest.mark.parametrize("body", [b"<html>blocked</html>", b"", b"upstream connect error", b"\xff\xfe"])
@pytest.mark.parametrize("status", [200, 403, 502])
def test_a_body_that_is_not_json(status, body):
    """HTML, plain text and an empty body become upstream errors with a message."""
    error = error_from_response(status, (), body)
    assert error.status >= 403
    assert error.message
    if status != 403 or body.startswith(b"<"):
        assert error.code in ("upstream_invalid_response", "upstream_error")


WAITS = {
    "seconds": ({"retry-after": "7"}, 7),
    "milliseconds win": ({"retry-after": "7", "retry-after-ms": "1500"}, 1.5),
    "a date": ({"retry-after": "Tue, 01 Dec 2026 00:00:30 GMT", "date": "Tue, 01 Dec 2026 00:00:00 GMT"}, 30),
    "a date without a clock": ({"retry-after": "Tue, 01 Dec 2026 00:00:30 GMT"}, 60),
    "too long": ({"retry-after": "3600"}, 120),
    "nonsense": ({"retry-after": "soon"}, 60),
    "none": ({}, 60),
}


@pytest.mark.parametrize(("fields", "seconds"), WAITS.values(), ids=WAITS.keys())
def test_retry_after(fields, seconds):
    """The upstream's Retry-After is forwarded, at most two minutes; otherwise the row's default applies."""
    headers = tuple((name.encode(), value.encode()) for name, value in fields.items())
    error = error_from_response(429, headers, b'{"error": {"code": "limit_requests", "message": "x"}}')
    assert error.retry_after == seconds


def test_request_ids():
    """The upstream's id comes from the body, otherwise from the header."""
    headers = ((b"x-request-id", b"from-header"),)
    assert (
        error_from_response(400, headers, b'{"code":"x","request_id":"from-body"}').request_id == "from-body"
    )
    assert error_from_response(400, headers, b'{"code":"x"}').request_id == "from-header"


def test_keys_are_hidden_and_messages_bounded():
    """A key that the upstream repeats in its message is not forwarded."""
    body = {
        "error": {"message": "Incorrect API key provided: sk-abcdef0123456789. " + "x" * 9999, "code": "y"}
    }
    message = error_from_response(400, (), json.dumps(body).encode()).message
    assert "abcdef0123456789" not in message
    assert len(message) <= MAX_MESSAGE + 200


NOT_ERRORS = [
    {"choices": []},
    {"id": "x", "usage": {}},
    {"choices": [], "code": None},
    [],
    "x",
    {"error": None, "choices": []},
]


@pytest.mark.parametrize("data", NOT_ERRORS, ids=str)
def test_an_ordinary_chunk_is_no_error(data):
    """A chunk without an error gives None."""
    assert error_from_event(data, None) is None


IN_STREAM = {
    "openai": ({"error": {"message": "m", "code": "data_inspection_failed"}}, None, "content_filter"),
    "native": ({"code": "Throttling.AllocationQuota", "message": "m", "request_id": "r"}, None,
        "rate_limit_exceeded"),
    "native, named": ({"request_id": "r", "code": "Throttling.AllocationQuota", "message": "m"}, 429,
        "rate_limit_exceeded"),
    "gateway": ({"errorType": "THROTTLING.userQPSLimit", "status": 429}, None, "rate_limit_exceeded"),
    "number as a string": ({"error": {"code": "429", "message": "Throttling: TPM(1/1)"}}, None,
        "rate_limit_exceeded"),
    "overload": ({"error": {"code": "engine_overloaded_error", "message": "m"}}, None, "overloaded"),
    "status alone": ({"message": "m"}, 500, "upstream_error"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status", "code"), IN_STREAM.values(), ids=IN_STREAM.keys())
def test_errors_in_streams(data, status, code):
    """Each shape of error inside a 200 becomes the same error as with an error status."""
    error = error_from_event(data, status)
    assert error is not None
    assert error.code == code


@pytest.mark.parametrize(
    "unit", ["day", "hour", "max_tokens ", "enable_thinking ", "quota ", "model a", "the model "]
)
def test_a_long_message_is_truncated_before_parsing(unit):
    """The start of a message decides its meaning; the remainder costs no time."""
    body = {"error": {"code": "limit_requests", "message": "Requests rate limit exceeded " + unit * 200_000}}
    error = error_from_response(429, (), json.dumps(body).encode())
    assert (error.code, error.status) == ("rate_limit_exceeded", 429)
    assert len(str(error)) < 2 * MAX_MESSAGE


def test_a_message_may_be_any_json():
    """A message, a code or a type that is not text, at any depth, gives an error of its status."""
    for depth in (3, 300, 900):
        deep = "[" * depth + "]" * depth
        body = f'{{"error": {{"code": {deep}, "message": {deep}, "type": {{"a": {deep}}}}}}}'
        assert error_from_response(429, (), body.encode()).status == 429


def test_an_ambiguous_code_is_not_called_a_rate_limit():
    """OpenAI's code for an exhausted quota, from any gateway, is not reported as a limit per minute."""
    body = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}'
    error = error_from_response(429, (), body, plan="open")
    assert error.message.startswith("The account's quota is used up, or too many tokens for this minute: ")


@pytest.mark.parametrize("message", sorted({row.message for row in PATTERNS if row.message}))
def test_explanations_survive_redaction(message):
    """Redaction does not hide the message after qproxy's own explanation."""
    text = f"{message}: Incorrect API key provided."
    assert Redactor().text(text) == text
