"""Common heads are parsed and written as h11 does; all others are left to h11."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import http1

LIMIT = 64 * 1024
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
PLAIN = {
    "least": POST,
    "a client's": POST
    + b"Accept: */*\r\nConnection: Keep-Alive\r\nAuthorization: Bearer sk-x\r\nX-A:\t a, b \t\r\nx-a: c\r\n",
    "no value": POST + b"x-a:\r\nx-b: \r\n",
    "text beyond ASCII": POST + "x-a: é \x01\r\n".encode("latin-1"),
    "a query": POST.replace(b"completions ", b"completions?a=b%20c "),
    "no body": POST.replace(b"Length: 2", b"Length: 0"),
}
NOT_PLAIN = {
    "another method": b"GET / HTTP/1.1\r\nhost: x\r\n",
    "an older version": POST.replace(b"1.1", b"1.0"),
    "no host": POST.replace(b"Host", b"Hast"),
    "two hosts": POST + b"host: x\r\n",
    "no length": POST.replace(b"Length", b"Width"),
    "two lengths": POST + b"content-length: 2\r\n",
    "a list of lengths": POST.replace(b": 2", b": 2, 2"),
    "a negative length": POST.replace(b": 2", b": -2"),
    "a length in other digits": POST.replace(b": 2", b": \xb2"),
    "a huge length": POST.replace(b": 2", b": " + b"9" * 19),
    "chunks": POST + b"transfer-encoding: chunked\r\n",
    "chunks and no length": POST.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    "an expectation": POST + b"Expect: 100-continue\r\n",
    "an upgrade": POST + b"Upgrade: h2c\r\n",
    "a last request": POST + b"Connection: close\r\n",
    "a connection of more": POST + b"Connection: keep-alive, upgrade\r\n",
    "a folded line": POST + b"x-a: b\r\n c\r\n",
    "a bare line feed": POST + b"x-a: b\n",
    "a bare line feed that hides a field": POST + b"x-a: b\ntransfer-encoding: chunked\r\n",
    "a space before the colon": POST + b"x-a : b\r\n",
    "a name of nothing": POST + b": b\r\n",
    "a NUL": POST + b"x-a: \x00\r\n",
    "a space in the target": POST.replace(b"completions", b"comp letions"),
    "an empty line before": b"\r\n" + POST,
    "too long": POST + b"x-a: " + b"a" * LIMIT + b"\r\n",
}  # fmt: skip


def by_h11(data):
    """Return h11's reading of a request: (target, headers)."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    return request.target, list(request.headers)


@pytest.mark.parametrize("head", PLAIN.values(), ids=PLAIN)
def test_a_plain_request(head):
    """A plain request parses as in h11, and its body starts where its head ends."""
    found = http1.parse_request(head + b"\r\nhi", LIMIT)
    assert found is not None
    assert (found.target, found.headers) == by_h11(head + b"\r\n")
    assert found.end == len(head) + 2
    assert found.content_length in (0, 2)


@pytest.mark.parametrize("head", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_requests_that_are_left_to_h11(head):
    """Longer, older, rarer or invalid requests are left to h11."""
    assert http1.parse_request(head + b"\r\n", LIMIT) is None


def test_an_incomplete_head():
    """Nothing is parsed before its empty line."""
    whole = POST + b"\r\n"
    assert http1.parse_request(whole, LIMIT)
    assert not any(http1.parse_request(whole[:end], LIMIT) for end in range(len(whole)))


def damaged(head, where, spoil, cut):
    """Return a whole head with other bytes in place of `cut` of its bytes."""
    place = where % (len(head) + 1)
    return head[:place] + spoil + head[place + cut :] + b"\r\n"


SPOILS = [
    b"",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b"\x00",
    b"\x0b",
    b"\x85",
    b"a",
    b"1",
    b",",
    b"\r\nhost: a",
]


@given(
    st.sampled_from([*PLAIN.values(), *NOT_PLAIN.values()][:-1]),
    st.integers(0, 300),
    st.sampled_from(SPOILS),
    st.integers(0, 3),
)
def test_requests_agree_with_h11(head, where, spoil, cut):
    """A head that is parsed here, however damaged, parses in the same way in h11."""
    data = damaged(head, where, spoil, cut)
    found = http1.parse_request(data, LIMIT)
    if found is not None:
        assert (found.target, found.headers) == by_h11(data[: found.end])


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "a length": (OK + b"Content-Length: 5\r\n", 5, True),
    "nothing": (OK + b"content-length: 0\r\n", 0, True),
    "chunks": (OK + b"Transfer-Encoding: Chunked\r\nX-Request-Id: a\r\n", None, True),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 5\r\n", 5, True),
    "an error's": (b"HTTP/1.1 404 Not  Found\r\ncontent-length: 5\r\n", 5, True),
    "the last": (OK + b"content-length: 5\r\nConnection: Close\r\n", 5, False),
    "not the last": (
        OK + b"connection: keep-alive\r\ncontent-length: 5\r\nkeep-alive: timeout=5\r\n",
        5,
        True,
    ),
}
OTHER_ANSWERS = {
    "an interim one": b"HTTP/1.1 100 Continue\r\n",
    "an interim one with a length": b"HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n",
    "until the end": OK,
    "both": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
    "both, the other way round": OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 5\r\n",
    "another coding": OK + b"transfer-encoding: gzip, chunked\r\n",
    "an older version": b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 5\r\n",
    "another protocol": b"ICY 200 OK\r\ncontent-length: 5\r\n",
    "an upgrade": OK + b"connection: upgrade\r\ncontent-length: 5\r\n",
}


@pytest.mark.parametrize(("head", "length", "stays"), ANSWERS.values(), ids=ANSWERS)
def test_a_plain_response(head, length, stays):
    """A plain response parses as in h11."""
    found = http1.parse_response(head + b"\r\nhello", LIMIT)
    assert found is not None
    assert (found.content_length, found.keep_alive, found.end) == (length, stays, len(head) + 2)
    assert (found.status, found.headers) == answer_by_h11(head + b"\r\n")


def answer_by_h11(data):
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    http.receive_data(data)
    response = http.next_event()
    assert isinstance(response, h11.Response)
    fields = [(name, value) for name, value in response.headers]
    return response.status_code, [(n, b"Chunked" if n == b"transfer-encoding" else v) for n, v in fields]


@pytest.mark.parametrize("head", OTHER_ANSWERS.values(), ids=OTHER_ANSWERS)
def test_responses_that_are_left_to_h11(head):
    """Older, rarer or invalid responses are left to h11."""
    assert http1.parse_response(head + b"\r\n", LIMIT) is None


@given(
    st.sampled_from([head for head, _, _ in ANSWERS.values()] + list(OTHER_ANSWERS.values())),
    st.integers(0, 120),
    st.sampled_from(SPOILS),
    st.integers(0, 3),
)
def test_responses_agree_with_h11(head, where, spoil, cut):
    """A head that is parsed here, however damaged, parses in the same way in h11."""
    data = damaged(head, where, spoil, cut)
    found = http1.parse_response(data, LIMIT)
    if found is not None:
        status, fields = answer_by_h11(data[: found.end])
        fields_here = [(n, b"Chunked" if n == b"transfer-encoding" else v) for n, v in found.headers]
        assert (found.status, fields_here) == (status, fields)


NAMES = st.text("abcXYZ-_ :\r\n\x00é", max_size=6).map(lambda text: text.encode("latin-1"))
VALUES = st.text("ab, \t:\r\n\x00\x0b\x01é", max_size=6).map(lambda text: text.encode("latin-1"))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=3))
def test_written_as_h11_writes(fields):
    """A head is written here only if h11 writes it, and in the same bytes."""
    fields = [(b"content-length", b"0"), *fields]
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    http.next_event()
    try:
        expected = http.send(h11.Response(status_code=200, headers=fields, reason=b"OK"))
    except h11.LocalProtocolError:
        expected = None
    assert http1.write_response(200, fields) == expected


@given(NAMES, VALUES, st.lists(st.tuples(NAMES, VALUES), max_size=2))
def test_requests_written_as_h11_writes(method, target, fields):
    """A request is written here only if h11 writes it, and in the same bytes."""
    fields = [(b"host", b"x"), *fields]
    try:
        expected = h11.Connection(h11.CLIENT).send(h11.Request(method=method, target=target, headers=fields))
    except h11.LocalProtocolError:
        expected = None
    assert http1.write_request(method, target, fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"host", b"x"), (b"host", b"x")],
        [(b"host", b"x"), (b"content-length", b"1"), (b"content-length", b"2")],
        [(b"host", b"x"), (b"transfer-encoding", b"chunked")],
    ],
    ids=["no host", "two hosts", "two lengths", "chunks"],
)
def test_requests_that_are_not_written(fields):
    """Requests with framing other than one host and at most one length are not written."""
    assert http1.write_request(b"POST", b"/", fields) is None


def test_reason_phrases():
    """Assigned statuses have their phrase (RFC 9110 15), whatever Python calls them; the others have none."""
    expected = {200: b"OK", 413: b"Content Too Large", 422: b"Unprocessable Content", 529: b"", 599: b""}
    assert {status: http1.reason_phrase(status) for status in expected} == expected
    assert http1.write_response(404, []) == b"HTTP/1.1 404 Not Found\r\n\r\n"
    assert http1.write_response(529, []) == b"HTTP/1.1 529 \r\n\r\n"
