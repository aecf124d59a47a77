"""Errors, models and rate limits in Anthropic's shape, with the phrases on which Claude Code acts."""

import re

import pytest
from anthropic.types import ModelInfo

from qproxy.wire.context_overflow import ContextOverflow
from qproxy.wire.endpoints import ANTHROPIC, RateLimitStatus
from qproxy.wire.endpoints.models import Model
from qproxy.wire.errors import (
    AuthenticationError,
    OverloadedError,
    QproxyError,
    RequestError,
    UpstreamError,
)
from tests.anthropic_types import judge_error
from tests.openai_types import judge

STATUSES = {
    "a wrong field": (RequestError("m"), 400, "invalid_request_error"),
    "another wrong field": (RequestError("m", status=422), 422, "invalid_request_error"),
    "a wrong key": (AuthenticationError("m"), 401, "authentication_error"),
    "no money": (RequestError("m", status=402), 402, "billing_error"),
    "no access": (RequestError("m", status=403), 403, "permission_error"),
    "an unknown path": (RequestError("m", status=404, code="unknown_url"), 404, "not_found_error"),
    "a wrong method": (RequestError("m", status=405), 405, "invalid_request_error"),
    "a wrong type": (RequestError("m", status=415), 415, "invalid_request_error"),
    "too many requests": (RequestError("m", status=429), 429, "rate_limit_error"),
    "a fault of ours": (QproxyError("m"), 500, "api_error"),
    "a fault of theirs": (UpstreamError("m"), 502, "api_error"),
    "too much at once": (OverloadedError("m"), 529, "overloaded_error"),
    "a busy upstream": (UpstreamError("m", status=503), 529, "overloaded_error"),
    "a slow upstream": (UpstreamError("m", status=504), 504, "timeout_error"),
}


@pytest.mark.parametrize(("error", "status", "kind"), STATUSES.values(), ids=STATUSES)
def test_types_and_statuses(error, status, kind):
    """Each error has a status and a type that the SDKs declare."""
    body = ANTHROPIC.error_body(error, "req_1")
    assert ANTHROPIC.error_status(error) == status
    assert body == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"}
    judge_error(body)


def test_too_large():
    """A request that is too large has the type at which Claude Code compacts, although the SDK does not
    declare it."""
    error = RequestError("m", status=413, code="request_too_large")
    assert ANTHROPIC.error_body(error, "")["error"]["type"] == "request_too_large"
    assert ANTHROPIC.error_body(error, "")["request_id"] is None


def test_unknown_model():
    """The error for an unknown model starts as Anthropic's does, and names the setting that maps names."""
    error = RequestError("The model 'x' does not exist.", status=404, code="model_not_found")
    message = ANTHROPIC.error_body(error, "")["error"]["message"]
    assert message.startswith("model: The model 'x' does not exist. ")
    assert message.endswith("aliases can map this name to a model of this server.")


TOO_LONG = re.compile(r"prompt is too long(?:: (\d+) tokens > (\d+) maximum)?", re.IGNORECASE)
LESS = re.compile(r"input length and `max_tokens` exceed context limit: (\d+) \+ (\d+) > (\d+)")
OVERFLOWS = {
    "nothing known": (None, TOO_LONG, (None, None)),
    "the limit": (ContextOverflow(100), TOO_LONG, ("101", "100")),
    "limit and prompt": (ContextOverflow(100, 150), TOO_LONG, ("150", "100")),
    "a prompt that leaves no room": (ContextOverflow(100, 100, 10), TOO_LONG, ("101", "100")),
    "a prompt that is too long with its answer": (ContextOverflow(100, 150, 10), TOO_LONG, ("150", "100")),
    "an answer that is too long": (ContextOverflow(100, 90, 20), LESS, ("90", "20", "100")),
}


@pytest.mark.parametrize(("numbers", "words", "expected"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_context_overflow(numbers, words, expected):
    """An overflow has the phrase on which clients act, followed by the upstream's message."""
    error = UpstreamError("Range of input length", status=400, code="context_length_exceeded")
    error.overflow = numbers
    message = ANTHROPIC.error_body(error, "")["error"]["message"]
    match = words.match(message)
    assert match
    assert match.groups() == expected
    assert message.endswith(" (Range of input length)")


def test_rate_limits():
    """The remainders of a key are in Anthropic's headers, the reset as a time."""
    limits = [RateLimitStatus("requests", 60, 59, 1.0), RateLimitStatus("tokens", 1000, 0, 59.5)]
    assert ANTHROPIC.rate_limit_headers(limits, 1755780000.0) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2025-08-21T12:40:01Z",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2025-08-21T12:40:59Z",
    }
    assert set(ANTHROPIC.rate_limit_headers(limits, 0.0)) <= set(ANTHROPIC.exposed_headers)


MODELS = [
    Model("a", 1_700_000_000, context=10, max_output=5),
    Model("b"),
    Model("a"),
    Model("c", alias_of="a"),
]


def test_models():
    """Every model is listed once, valid by the SDK's types; an alias is shown with its model."""
    page = ANTHROPIC.model_list(MODELS, {})
    assert [judge(ModelInfo, item).id for item in page["data"]] == ["a", "b", "c"]
    assert [item["display_name"] for item in page["data"]] == ["a", "b", "c (a)"]
    assert (
        page["data"][0]
        == ANTHROPIC.model_object(MODELS[0])
        == {
            "type": "model",
            "id": "a",
            "display_name": "a",
            "created_at": "2023-11-14T22:13:20Z",
            "lifecycle": "active",
            "max_input_tokens": 10,
            "max_tokens": 5,
        }
    )
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "a", "c")
    assert ANTHROPIC.model_list([], {}) == {"data": [], "has_more": False, "first_id": None, "last_id": None}


PAGES = {
    "a limit": ({"limit": "2"}, ["a", "b"], True),
    "a large limit": ({"limit": "1000"}, ["a", "b", "c"], False),
    "after": ({"after_id": "a"}, ["b", "c"], False),
    "after, with a limit": ({"after_id": "a", "limit": "1"}, ["b"], True),
    "before": ({"before_id": "c", "limit": "1"}, ["b"], True),
    "before the first": ({"before_id": "a"}, [], False),
    "after the last": ({"after_id": "c"}, [], False),
    "an unknown cursor": ({"after_id": "x"}, ["a", "b", "c"], False),
}


@pytest.mark.parametrize(("query", "ids", "more"), PAGES.values(), ids=PAGES)
def test_pages(query, ids, more):
    """A page of the list has its limit and cursor."""
    page = ANTHROPIC.model_list(MODELS, query)
    assert [item["id"] for item in page["data"]] == ids
    assert page["has_more"] is more


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", "", "9" * 5000, "²"])
def test_rejects_an_invalid_limit(limit):
    """An invalid limit is a 400."""
    with pytest.raises(RequestError) as caught:
        ANTHROPIC.model_list(MODELS, {"limit": limit})
    assert caught.value.param == "limit"
