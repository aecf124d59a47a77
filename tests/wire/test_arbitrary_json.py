"""Arbitrary JSON from a client or a server is accepted or rejected with a QproxyError, never another
exception.

Any value of a well-formed body is replaced by any other JSON, and the body goes through all of `wire`.
"""

import copy
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.wire import sse, tool_adapter, tool_calls
from qproxy.wire.dialects import (
    DIALECTS,
    UpstreamTarget,
    error_mapping,
    prompt_tools,
    request_rules,
)
from qproxy.wire.endpoints import ENDPOINTS
from qproxy.wire.endpoints.openai_errors import error_body
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Turn
from qproxy.wire.pipeline import Pipeline
from tests.defaults import decoder
from tests.examples import examples
from tests.wire.strangers import ANSWERS, ASK, ASKS, mutated, mutations
from tests.wire.strategies import TOOLS


def encoded(endpoint, turn, events):
    """Return the client's bytes for the events, streamed and whole."""
    encoder = endpoint.encoder(turn)
    for event in copy.deepcopy(events):
        list(encoder.feed(event))
    list(encoder.close())
    with suppress(QproxyError):
        json.dumps(endpoint.response(turn, events))


def turn_for(endpoint):
    asked = {**ASKS.get(endpoint.path, ASK), "response_format": {"type": "text"}}
    return decoder(endpoint)(asked, **CONTEXT)


SPEC = package_catalog().get("qwen4-max")
CONTEXT = {"id": "x-1", "created": 1, "default_model": None, "max_messages": 100}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ANSWERS)
def test_any_response(dialect, kind):
    """Any JSON from a server becomes events or a QproxyError, streamed and whole."""

    @given(mutations(ANSWERS[kind]), st.booleans())
    @examples(120)
    def check(changes, named):
        body = mutated(ANSWERS[kind], changes)
        text = json.dumps(body).encode()
        turn = Turn(id="c", created=0, model="m", messages=[], tools=TOOLS)
        target = UpstreamTarget("http://h/v1", "m")
        with suppress(QproxyError):
            chain = Pipeline(
                sse.Decoder(), DIALECTS[dialect].decoder(target), tool_calls.build_pipeline(turn)
            )
            data = b"event: error\n" * named + b"data: " + text + b"\n\n"
            events = [*chain.feed(data * 2), *chain.close()]
            for endpoint in ENDPOINTS:
                encoded(endpoint, turn_for(endpoint), events)
        with suppress(QproxyError):
            DIALECTS[dialect].response(json.loads(text), target)
        for status in (400, 429, 500):
            assert isinstance(error_mapping.error_from_response(status, (), text), QproxyError)

    check()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_any_request(endpoint):
    """Any JSON from a client becomes a turn that every dialect can send, or an error with a 4xx status."""

    asked = ASKS.get(endpoint.path, ASK)

    @given(mutations(asked))
    @examples(400)
    def check(changes):
        body, refusal = json.loads(json.dumps(mutated(asked, changes))), None
        try:
            turn = decoder(endpoint)(body, **CONTEXT)
            for dialect in DIALECTS.values():
                for family in ("dashscope", "open"):
                    adapted, _ = tool_adapter.adapt_tools(turn, names=family == "dashscope")
                    sent = request_rules.apply_rules(
                        adapted,
                        model=turn.model,
                        spec=SPEC,
                        family=family,
                        strict_params=False,
                        forced_tools="thinking-off",
                    ).turn
                    for form in (sent, prompt_tools.render_tools(sent, "auto", SPEC)):
                        dialect.request(form, UpstreamTarget("http://h/v1", turn.model, family=family))
        except QproxyError as error:
            refusal = error
        if refusal is not None:
            assert 400 <= refusal.status < 500
            json.dumps(error_body(refusal))

    check()
