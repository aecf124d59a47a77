"""Files that a response links to come from the allowed hosts and from nowhere else."""

import pytest
import trio
import trio.testing

from qproxy.config import Config
from qproxy.relay.result_files import download_result
from qproxy.transport import UpstreamTransport
from qproxy.wire.errors import UpstreamError
from tests.defaults import transport_limits

HOSTS = (*Config().result_hosts, "http://127.0.0.1:8788")
RESULT = "dashscope-result-bj.oss-cn-beijing.aliyuncs.com"
REPLY = b"HTTP/1.1 %d X\r\ncontent-length: 4\r\n\r\nRIFF"

ALLOWED = {
    "as it is": f"https://{RESULT}/a.wav?Expires=1&Signature=x%2B",
    "http, made https": f"http://{RESULT}:80/a.wav",
    "an origin": "http://127.0.0.1:8788/a.wav",
}
REFUSED = {
    "another host": "https://evil.test/a.wav",
    "a deeper name": f"https://x.{RESULT}/a.wav",
    "a tenant's bucket": "https://dashscope-result-bj.evil.oss-cn-beijing.aliyuncs.com/a",
    "a port": f"https://{RESULT}:8443/a.wav",
    "http on a port": f"http://{RESULT}:8080/a.wav",
    "a user": f"https://{RESULT}@evil.test/a.wav",
    "an address": "http://169.254.169.254/latest",
    "another origin": "http://127.0.0.1:8789/a.wav",
    "another scheme": f"file://{RESULT}/etc/passwd",
    "no URL": "a.wav",
    "a broken one": "https://[::1/a",
    "nothing": None,
    "a number": 3,
}


class Host:
    """Opens memory connections, and answers each request with one status."""

    def __init__(self, nursery, status=200):
        self.nursery = nursery
        self.status = status
        self.connected = []
        self.requests = []

    async def connect(self, host, port):
        self.connected.append((host, port))
        client_end, server_end = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.serve, server_end)
        return client_end

    async def serve(self, stream):
        self.requests.append(bytes(await stream.receive_some(65536)))
        await stream.send_all(REPLY % self.status)


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
async def test_another_host_is_not_connected_to(url, nursery):
    """A link to anything else is an error of the upstream, before any connection."""
    host = Host(nursery)
    transport = UpstreamTransport(transport_limits(), connect=host.connect)
    with pytest.raises(UpstreamError, match="cannot be downloaded"):
        await download_result(transport, url, HOSTS, 100)
    assert host.connected == []


async def test_an_allowed_origin_is_downloaded(nursery):
    """The file comes back whole, and without the account's headers in the request."""
    host = Host(nursery)
    transport = UpstreamTransport(transport_limits(), connect=host.connect)
    assert await download_result(transport, ALLOWED["an origin"], HOSTS, 100) == b"RIFF"
    assert host.connected == [("127.0.0.1", 8788)]
    assert b"authorization" not in host.requests[0]


async def test_http_is_made_https():
    """A link of the vendor's host is followed over TLS only."""
    for name in ("as it is", "http, made https"):
        seen: list[tuple[str, int]] = []

        async def connect(host, port, seen=seen):
            seen.append((host, port))
            raise OSError("no network")

        transport = UpstreamTransport(transport_limits(), connect=connect)
        with pytest.raises(UpstreamError, match="no network"):
            await download_result(transport, ALLOWED[name], HOSTS, 100)
        assert seen == [(RESULT, 443)]


@pytest.mark.parametrize(
    ("status", "limit", "words"), [(302, 100, "answered 302"), (200, 3, "more than 3 bytes")]
)
async def test_redirects_and_large_files_are_errors(status, limit, words, nursery):
    """A redirect is not followed, and a file beyond the bound is not read."""
    transport = UpstreamTransport(transport_limits(), connect=Host(nursery, status).connect)
    with pytest.raises(UpstreamError, match=words):
        await download_result(transport, ALLOWED["an origin"], HOSTS, limit)
