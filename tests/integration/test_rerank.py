"""Rerank in every shape, split over a model's limits, at Model Studio and at own servers."""

import json

import pytest

from qproxy.backends.local import key_file
from qproxy.emulator.faults import ScriptedReply, json_reply
from qproxy.emulator.rerank import score
from tests.helpers import accounts, world
from tests.openai_types import refusal

QUERY = "green apples"
DOCUMENTS = ["red cars", "green apples and pears", "green cars"]
BODY = {"model": "qwen3-rerank", "query": QUERY, "documents": DOCUMENTS}
ORDER = [1, 2, 0]


def order(body):
    return [item["index"] for item in body["results"]]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_the_common_shape(path):
    """Documents come back best first with the model, both kinds of usage, and scores of the upstream."""
    async with world() as it:
        status, _, body = await it.post(BODY, path)
        assert status == 200
        assert [(item["index"], item["document"]["text"]) for item in body["results"]] == [
            (n, DOCUMENTS[n]) for n in ORDER
        ]
        assert [item["relevance_score"] for item in body["results"]] == [
            score(QUERY, DOCUMENTS[n]) for n in ORDER
        ]
        assert (body["model"], body["object"]) == ("qwen3-rerank", "list")
        assert body["usage"]["total_tokens"] == 3 * 2 + 8
        assert body["meta"]["billed_units"] == {"search_units": 1}
        assert [seen.path for seen in it.emulator.requests] == ["/compatible-api/v1/reranks"]
        assert it.sound()


SHAPES = {
    "Cohere v2": ("/v2/rerank", BODY, {"index", "relevance_score"}),
    "Cohere v2 with documents": (
        "/v2/rerank", {**BODY, "return_documents": True}, {"index", "relevance_score", "document"},
    ),
    "Cohere v1": ("/v1/rerank", {**BODY, "max_chunks_per_doc": 3}, {"index", "relevance_score"}),
    "Jina without documents": (
        "/v1/rerank", {**BODY, "return_documents": False}, {"index", "relevance_score"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "fields"), SHAPES.values(), ids=SHAPES)
async def test_documents_are_returned_by_the_rules_of_the_shape(path, body, fields):
    """Cohere returns documents on demand, Jina unless told not to."""
    async with world() as it:
        _, _, answer = await it.post({**body, "top_n": 2}, path)
        assert order(answer) == ORDER[:2]
        assert all(item.keys() == fields for item in answer["results"])
        assert ("usage" in answer) is (path == "/v1/rerank")


async def test_the_bare_array_of_tei():
    """A request with `texts` is answered by an array of scores, with texts on demand."""
    async with world() as it:
        body = {"model": "qwen3-rerank", "query": QUERY, "texts": DOCUMENTS, "return_text": True}
        _, _, answer = await it.post(body, "/rerank")
        assert [(item["index"], item["text"]) for item in answer] == [(n, DOCUMENTS[n]) for n in ORDER]


async def test_objects_and_rank_fields():
    """Documents may be objects: their text, or the fields that are to be ranked."""
    async with world() as it:
        objects = [{"text": text, "id": 3} for text in DOCUMENTS]
        _, _, answer = await it.post({**BODY, "documents": objects}, "/v1/rerank")
        assert order(answer) == ORDER
        objects = [{"title": text, "year": 3} for text in DOCUMENTS]
        body = {**BODY, "documents": objects, "rank_fields": ["title", "year", "none"]}
        _, _, answer = await it.post(body, "/v1/rerank")
        assert order(answer) == ORDER
        assert it.emulator.requests[-1].body["documents"][0] == "title: red cars\nyear: 3"


async def test_pictures_go_to_the_native_service():
    """A model for pictures gets objects in the native form, and its instruction."""
    async with world() as it:
        documents = [{"image": "https://a.test/x.png"}, {"text": "green apples"}]
        body = {"model": "qwen3-vl-rerank", "query": QUERY, "documents": documents, "instruction": "Match."}
        _, _, answer = await it.post(body, "/v1/rerank")
        assert answer["results"][0]["document"] == {"text": "green apples"}
        (seen,) = it.emulator.requests
        assert seen.path == "/api/v1/services/rerank/text-rerank/text-rerank"
        assert seen.body["input"]["documents"] == [{"image": "https://a.test/x.png"}, "green apples"]
        assert seen.body["parameters"] == {"return_documents": False, "instruct": "Match."}


async def test_more_documents_than_a_model_takes():
    """Batches are ranked in parallel and merged in one index space, with the sum of their tokens."""
    documents = [f"document {n}" for n in range(1100)]
    documents[777] = QUERY
    async with world() as it:
        body = {**BODY, "documents": documents, "top_n": 3, "return_documents": False}
        _, _, answer = await it.post(body, "/v1/rerank")
        assert order(answer) == [777, 0, 1]
        assert sorted(len(seen.body["documents"]) for seen in it.emulator.requests) == [100, 500, 500]
        assert answer["usage"]["total_tokens"] == 2 * 1100 + 2 * 1100


async def test_an_own_server_gets_the_clients_fields():
    """vLLM's route gets its own fields too, and its response has no index out of order."""
    one = accounts("one", kind="openai_compatible")
    async with world(accounts=one) as it:
        body = {**BODY, "model": "bge", "truncate_prompt_tokens": 100, "instruction": "Match."}
        status, _, answer = await it.post(body, "/v1/rerank")
        assert (status, order(answer)) == (200, ORDER)
        sent = it.emulator.requests[0]
        assert sent.path == "/v1/rerank"
        assert (sent.body["truncate_prompt_tokens"], sent.body["instruction"]) == (100, "Match.")


async def test_fields_that_qwen_does_not_know_are_named():
    """They are dropped with a header, or rejected with strict_params."""
    async with world() as it:
        _, headers, _ = await it.post({**BODY, "max_chunks_per_doc": 3}, "/v1/rerank")
        assert headers["x-qproxy-ignored-params"] == "max_chunks_per_doc"
    async with world(strict_params=True) as it:
        status, _, body = await it.post({**BODY, "max_chunks_per_doc": 3}, "/v1/rerank")
        assert (status, refusal(body).param) == (400, "max_chunks_per_doc")


INVALID = {
    "no query": ({"model": "qwen3-rerank", "documents": ["a"]}, "query"),
    "no documents": ({"model": "qwen3-rerank", "query": "a"}, "documents"),
    "an empty array": ({**BODY, "documents": []}, "documents"),
    "an empty text": ({**BODY, "documents": ["a", ""]}, "documents[1]"),
    "a number": ({**BODY, "documents": [1]}, "documents[0]"),
    "an object without a text": ({**BODY, "documents": [{"a": "b"}]}, "documents[0]"),
    "top_n of 0": ({**BODY, "top_n": 0}, "top_n"),
    "no model": ({"query": "a", "documents": ["a"]}, "model"),
    "too many": ({**BODY, "documents": ["a"] * 10_001}, "documents"),
}


@pytest.mark.parametrize(("body", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(body, param):
    """An invalid field is a 400 that names it, before any upstream."""
    async with world() as it:
        status, _, answer = await it.post(body, "/v1/rerank")
        assert (status, refusal(answer).param) == (400, param)
        assert it.emulator.requests == []


BROKEN = {
    "fewer ranks": {"results": [{"index": 0, "relevance_score": 1}]},
    "twice the same": {"results": [{"index": 0, "relevance_score": 1}] * 3},
    "no score": {"results": [{"index": 0}, {"index": 1}, {"index": 2}]},
    "a score that is true": {"results": [{"index": n, "relevance_score": True} for n in range(3)]},
    "nothing": {},
    "an error in a 200": {"code": "InvalidParameter", "message": "no"},
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_an_unusable_response_is_an_error(answer):
    """Ranks are never guessed."""
    async with world() as it:
        it.emulator.script(*[json_reply(answer)] * 3)
        status, _, body = await it.post(BODY, "/v1/rerank")
        assert status >= 400
        refusal(body)


async def test_a_failure_of_one_batch_is_the_clients_error():
    """The error has the upstream's status, and nothing stays open."""
    async with world() as it:
        failed = ScriptedReply(
            (json.dumps({"error": {"message": "x", "code": "Throttling"}}).encode(),), status=429
        )
        it.emulator.script(*[failed] * 9)
        status, _, body = await it.post({**BODY, "documents": ["a"] * 1100}, "/v1/rerank")
        assert status == 429
        refusal(body)
        assert it.sound()


async def test_the_ledger_counts_documents_and_tokens(tmp_path):
    """A key's budget and the ledger see the tokens, and the documents as a unit."""
    key, secret = key_file.create(tmp_path / "keys.json", name="bob")
    async with world(keys_file=str(tmp_path / "keys.json"), ledger=str(tmp_path / "ledger.sqlite3")) as it:
        status, _, _ = await it.post(BODY, "/v1/rerank", [(b"authorization", b"Bearer " + secret.encode())])
        assert status == 200
        ledger = it.server.state.ledger
        assert ledger is not None
        (row,) = await ledger.recent_requests(5)
        assert (row["endpoint"], row["documents"], row["prompt_tokens"]) == ("/rerank", 3, 14)
        assert (row["key"], row["account"], row["served_model"]) == (key.label, "one", "qwen3-rerank")
