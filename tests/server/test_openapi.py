"""The document at /openapi.json matches the server: it has every route and no other, and its fields are the
checked ones. Random requests made from it never get a 500."""

import gc
import json
import logging

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qproxy.server.authentication import Access
from qproxy.wire.endpoints import ENDPOINTS
from qproxy.wire.errors import RequestError
from tests.defaults import decoder
from tests.examples import examples
from tests.helpers import HELLO, MODEL, world

METHODS = ("get", "post", "put", "patch", "delete")


async def get_document(it):
    status, document = await it.get("/openapi.json")
    assert status == 200
    return document


def operations(document):
    """Yield (path, method, operation) of everything that the document describes."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


async def test_every_route_is_described_and_no_other():
    """The document describes exactly the served paths, methods, and access."""
    async with world() as it:
        document = await get_document(it)
        served = {}
        for family in it.server.route_groups:
            for route in family.routes():
                if route.access is Access.SESSION:  # pages for people
                    continue
                for path in route.paths():
                    for method in route.methods:
                        served[
                            path.replace("<path:", "{").replace("<", "{").replace(">", "}"), method.lower()
                        ] = route
        found = {(path, method): operation for path, method, operation in operations(document)}
        assert found.keys() == served.keys()
        rules = {
            (rule.rule, method) for rule in it.app.url_map.iter_rules() for method in rule.methods - {"HEAD"}
        }
        pages = {(path, method) for path, method in rules if path.startswith("/dashboard")}
        assert len(rules - pages) == len(served)
        for key, route in served.items():
            schemes = [name for choice in found[key]["security"] for name in choice]
            expected = {Access.OPEN: [], Access.KEY: ["key", "x-api-key"], Access.ADMIN: ["admin"]}
            assert schemes == expected[route.access]
            assert ({} in found[key]["security"]) is (route.access is Access.KEY), "there are no keys here"
        assert len({operation["operationId"] for operation in found.values()}) == len(found)


async def test_required_keys_are_documented():
    """With keys, no operation of the document allows a request without one."""
    async with world(api_keys=["secret"]) as it:
        document = await get_document(it)
        assert document["openapi"] == "3.1.0"
        for path, method, operation in operations(document):
            assert {} not in operation["security"], (path, method)


OTHER = {"string": 5, "array": 5, "object": 5, "boolean": "x", "number": "x", "integer": "x"}
FIELDS = [
    (endpoint, name, schema)
    for endpoint in ENDPOINTS
    for name, schema in endpoint.schema["properties"].items()
]


@pytest.mark.parametrize(
    ("endpoint", "name", "schema"), FIELDS, ids=lambda item: getattr(item, "path", str(item)[:30])
)
def test_described_fields_are_checked(endpoint, name, schema):
    """A value of an undocumented type is rejected, and the error names the field."""
    sound = {"messages": HELLO["messages"], "input": "hi", "prompt": "hi", "max_tokens": 9}
    body = {"model": MODEL, **{key: sound[key] for key in endpoint.schema["required"] or ("input",)}}
    if name == "function_call":  # it has no meaning without functions
        body["functions"] = [{"name": "f"}]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    context = {"id": "x", "created": 0, "default_model": None, "max_messages": 10_000}
    with pytest.raises(RequestError) as rejection:
        decoder(endpoint)({**body, name: OTHER[kinds[0]]}, **context)
    assert (rejection.value.param or "").startswith(name)
    if "minimum" in schema:
        with pytest.raises(RequestError):
            decoder(endpoint)({**body, name: schema["minimum"] - 1}, **context)


def test_every_described_field_has_a_type():
    """Every check of a table has its schema."""
    assert all("type" in schema for _, _, schema in FIELDS)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_decoding_leaves_no_objects(endpoint):
    """Decoding the same body repeatedly adds no object to the process."""
    sound = {"messages": [*HELLO["messages"]] * 5, "input": "hi", "prompt": "hi", "max_tokens": 9}
    body = {"model": MODEL, **{key: sound[key] for key in endpoint.schema["required"] or ("input",)}}

    def objects_after(times):
        for _ in range(times):
            decoder(endpoint)(body, id="x", created=0, default_model=None, max_messages=10_000)
        gc.collect()
        return len(gc.get_objects())

    objects_after(5)
    gc.freeze()  # objects of the rest of the suite are not scanned again
    before = objects_after(5)
    assert objects_after(100) - before < 20


# At random

letters = st.text(st.characters(codec="utf-8", exclude_categories=()), max_size=12)
anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), letters
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(letters, inner, max_size=3)),
    max_leaves=6,
)


def values(schema):
    """Return a strategy of a schema's values, for the JSON Schema that the document uses."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema.get("type", "any")
    return st.one_of([_of_type(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _of_type(kind, schema):
    low, high = schema.get("minimum"), schema.get("maximum")
    if kind == "object":
        inner = {name: values(item) for name, item in schema.get("properties", {}).items()}
        required = {name: inner.pop(name) for name in schema.get("required", ()) if name in inner}
        return st.fixed_dictionaries(required, optional=inner)
    if kind == "array":
        items = schema.get("items", {})
        return st.lists(st.one_of(values(items), anything), min_size=schema.get("minItems", 0), max_size=3)
    kinds = {
        "null": st.none(),
        "boolean": st.booleans(),
        "integer": st.integers(low, high),
        "number": st.floats(low, high, allow_nan=False, allow_infinity=False),
        "string": st.one_of(letters, st.sampled_from([MODEL, "qwen-plus", "auto", "none"])),
    }
    return kinds.get(kind, anything)


def requests(document):
    """Return a strategy of requests that mostly fit the document."""
    return st.one_of([_requests(path, method, operation) for path, method, operation in operations(document)])


def _requests(path, method, operation):
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    body = values(content["schema"]) if content else st.just(None)
    raw = (
        st.one_of(body.map(_dumped), anything.map(_dumped), st.binary(max_size=30))
        if content
        else st.just(b"")
    )
    names = letters.filter(lambda text: text not in ("", ".", ".."))
    fields = st.dictionaries(
        st.sampled_from(
            [b"authorization", b"accept", b"origin", b"x-request-id", b"host", b"content-encoding"]
        ),
        st.binary(max_size=10).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"")),
        max_size=2,
    )
    where = names.map(lambda text: path.replace("{name}", text).replace("{id}", text))
    return st.tuples(st.just(method.upper()), where, fields, raw)


def _dumped(value):
    return json.dumps(value).encode()


async def play(sequence):
    async with world() as it:
        for method, path, fields, body in sequence:
            headers = [(b"content-type", b"application/json"), *fields.items()]
            target = path.encode("utf-8", "surrogatepass").decode("latin-1")
            async with it.client.request(method, target, headers=headers, body=body) as response:
                data = await response.read()
            assert response.status != 500, (method, path, fields, body)
            if response.status >= 400:
                anthropic = path.startswith(("/messages", "/v1/messages"))
                keys = {"message", "type"} if anthropic else {"message", "type", "param", "code"}
                assert set(json.loads(data)["error"]) == keys
        assert it.sound()
        assert (await it.post(HELLO))[0] == 200


def test_requests_at_random(caplog):
    """Any request made from the document, valid or not, gets a response other than 500."""

    async def read():
        async with world() as it:
            return await get_document(it)

    document = trio.run(read)

    @given(st.lists(requests(document), min_size=8, max_size=8))
    @examples(25)
    def check(sequence):
        caplog.clear()
        trio.run(play, sequence, clock=trio.testing.MockClock(autojump_threshold=0))
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    check()
