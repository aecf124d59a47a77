"""Costly heads, chunk sizes and trailers with their parsers, run in a child process with a CPU limit.

`python -m tests.hostile_heads SECONDS` is killed by SIGXCPU when the attacks take longer. Each kind of run is
tried in each place, up to 64 KiB long, with a near miss at its end.
"""

import itertools
import resource
import sys
from collections.abc import Callable, Iterator

import h11

from qproxy.transport.body_readers import ChunkedReader
from qproxy.wire import http1
from qproxy.wire.bounded_h11 import BoundedConnection

LIMIT = 64 * 1024
RUNS = [
    b" ", b"\t", b" \t", b"x", b"x ", b" x", b"A", b"A:", b"A: ", b"A:\r\n", b"A: \r\n", b"A:\n", b"A: b\r\n",
    b"\r\n ",
    b"\n ", b"\r", b"\n", b"\0", b":", b",", b";", b"0", b"9", b"f", b"\xff", b"\x0b", b"%", b"/", b"=", b'"',
]  # fmt: skip
SIZES = (25, 257, 4096, LIMIT)
ENDS = (b"", b"\0", b"bad\0line", b"\x0b", b"\r", b" x", b":")
REQUEST = b"HTTP/1.1\r\nHost: a\r\n"
PLACES = {
    "target": (b"POST /", b" " + REQUEST),
    "first field of a POST": (b"POST / " + REQUEST + b"Content-Length: 2\r\n", b""),
    "value in a POST": (b"POST / " + REQUEST + b"Content-Length: 2\r\nA:", b""),
    "value in a GET": (b"GET / " + REQUEST + b"A:", b""),
    "length": (b"POST / " + REQUEST + b"Content-Length: ", b""),
    "method": (b"", b" / " + REQUEST),
}
ANSWERS = {
    "reason": (b"HTTP/1.1 200 ", b"\r\ncontent-length: 2"),
    "field": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b""),
    "value": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nA:", b""),
    "interim value": (b"HTTP/1.1 103 Hints\r\nA:", b""),
}
BODIES = {
    "size": (b"", b""),
    "extension": (b"1;", b""),
    "blanks behind a size": (b"1 ", b""),
    "second size": (b"1\r\nx\r\n1;", b""),
    "trailer": (b"0\r\n", b"\r\n"),
    "value of a trailer": (b"0\r\nA:", b"\r\n"),
}
CHUNKED = b"POST / " + REQUEST + b"Transfer-Encoding: chunked\r\n\r\n"


def attacks(places: dict[str, tuple[bytes, bytes]], end: bytes) -> Iterator[bytes]:
    for (before, after), run, size, near in itertools.product(places.values(), RUNS, SIZES, ENDS):
        yield before + (run * (size // len(run) + 1))[:size] + near + after + end


def listen(http: h11.Connection, data: bytes) -> None:
    """Feed the bytes and then the end to h11, until it stops."""
    try:
        for piece in (data, b""):
            http.receive_data(piece)
            while http.next_event() not in (h11.NEED_DATA, h11.PAUSED) and http.their_state is not h11.CLOSED:
                pass
    except h11.RemoteProtocolError:
        pass


def client() -> BoundedConnection:
    http = BoundedConnection(h11.CLIENT, LIMIT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    return http


def parsers() -> list[tuple[Callable[[bytes], object], Iterator[bytes]]]:
    """Return each parser with its attacks."""
    return [
        (lambda data: http1.parse_request(data, LIMIT), attacks(PLACES, b"\r\n\r\n{}")),
        (lambda data: http1.parse_response(data, LIMIT), attacks(ANSWERS, b"\r\n\r\nok")),
        (lambda data: listen(BoundedConnection(h11.SERVER, LIMIT), data), attacks(PLACES, b"\r\n\r\n{}")),
        (lambda data: listen(BoundedConnection(h11.SERVER, LIMIT), CHUNKED + data), attacks(BODIES, b"\r\n")),
        (lambda data: listen(client(), data), attacks(ANSWERS, b"\r\n\r\nok")),
        (lambda data: ChunkedReader().feed(data), attacks(BODIES, b"\r\n")),
        (lambda data: http1.write_response(200, [(b"a", data), (data, b"")]),
            attacks({"value": (b"", b"")}, b"")),
    ]  # fmt: skip


def main(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    count = 0
    for parse, inputs in parsers():
        for data in inputs:
            parse(data)
            count += 1
    print(count)


if __name__ == "__main__":
    main(int(sys.argv[1]))
