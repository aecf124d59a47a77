"""Requests for multimodal embeddings, of anything that clients write, within every model's limits."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.multimodal_embeddings import native_response
from qproxy.wire.dialects.multimodal_embeddings import studio_request
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.endpoints import multimodal_embeddings as endpoint
from qproxy.wire.errors import RequestError
from tests.examples import examples

MODELS = [spec for spec in package_catalog().models() if spec.is_for("multimodal_embedding")]
URLS = st.sampled_from(["https://a.test/a", "data:image/png;base64,AAAA", "/9j/4AAQ"])
PARTS = st.one_of(
    st.builds(lambda text: {"text": text}, st.text("ab", min_size=1, max_size=3)),
    st.builds(lambda url: {"image": url}, URLS),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, URLS),
    st.just({"video": "https://a.test/v"}),
)
ITEMS = st.one_of(st.text("ab", min_size=1, max_size=3), PARTS, st.lists(PARTS, min_size=1, max_size=3))
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | URLS
KEYS = st.sampled_from(["text", "image", "video", "image_url", "text_url", "content", "url", "type", "role"])
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3)
)


def outcome(work):
    """Return the result and the rejection of some work, one of them None."""
    try:
        return work(), None
    except RequestError as error:
        return None, error


@examples(500)
@given(st.lists(ITEMS, min_size=1, max_size=50), st.sampled_from(MODELS))
def test_every_part_of_a_request_is_within_the_limits(items, spec):
    """The parts keep the order of the contents, and the emulated model accepts each, with a vector for each
    content; or the request is rejected because of one of its items."""
    request = endpoint.decode({"model": spec.id, "input": items})
    batches, rejection = outcome(lambda: list(request.split(spec)))
    if rejection is not None:
        assert rejection.param in [content.path for content in request.contents]
        return
    assert [content for batch in batches for content in batch.contents] == request.contents
    target = UpstreamTarget("https://a.test/compatible-mode/v1", spec.id, "key")
    for batch in batches:
        body = json.loads(studio_request(batch, spec, target).body)
        assert len(native_response(body)["output"]["embeddings"]) == len(batch.contents)


@examples(500)
@given(st.dictionaries(st.sampled_from(["input", "messages", "dimensions", "instruct"]), ANYTHING))
def test_any_json_is_decoded_or_rejected(fields):
    """Whatever has parts is decoded to contents that are not empty, or rejected by a field of the request."""
    body = {**fields, "model": "qwen3-vl-embedding"}
    if not endpoint.has_parts(body):
        return
    request, rejection = outcome(lambda: endpoint.decode(body))
    if rejection is not None:
        assert (rejection.param or "").split("[")[0].split(".")[0] in fields
    else:
        assert all(content.parts for content in request.contents)


@pytest.mark.parametrize("body", [None, [], "x", {"input": "x"}, {"input": [[1, 2], [3]]}, {"input": []}, {}])
def test_texts_are_no_parts(body):
    """Requests of OpenAI's own forms, and those that are none, stay with the endpoint for texts."""
    assert not endpoint.has_parts(body)
