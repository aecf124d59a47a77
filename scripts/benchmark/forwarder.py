"""The floor: the least that a Trio program can do between a client and a server, and still be HTTP.

It reads one request to its end, sends it on by a kept connection, and passes the answer's bytes as they come.
It checks nothing, changes nothing, limits nothing. usage: forwarder.py PORT UPSTREAM-PORT
"""

import re
import resource
import sys

import trio

LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
MOST = 65536


async def message(stream, data=b""):
    """The first whole message with a content-length, and what came behind it; None at the end."""
    while (head := data.find(b"\r\n\r\n")) < 0:
        more = await stream.receive_some(MOST)
        if not more:
            return None
        data += more
    found = LENGTH.search(data, 0, head)
    total = head + 4 + (int(found[1]) if found else 0)
    while len(data) < total:
        data += await stream.receive_some(MOST)
    return data[:total], data[total:]


async def main(port, upstream_port):
    idle = []

    async def serve(client):
        rest = b""
        try:
            while (request := await message(client, rest)) is not None:
                whole, rest = request
                server = idle.pop() if idle else await trio.open_tcp_stream("127.0.0.1", upstream_port)
                try:
                    await server.send_all(whole)
                    await passed(server, client)
                except BaseException:
                    await trio.aclose_forcefully(server)
                    raise
                idle.append(server)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(client)

    async def passed(server, client):
        """One answer, from server to client."""
        data = await server.receive_some(MOST)
        while (head := data.find(b"\r\n\r\n")) < 0:
            data += await server.receive_some(MOST)
        await client.send_all(data)
        found = LENGTH.search(data, 0, head)
        if found:
            left = head + 4 + int(found[1]) - len(data)
            while left > 0:
                data = await server.receive_some(MOST)
                await client.send_all(data)
                left -= len(data)
            return
        tail = data[-5:]
        while tail != b"0\r\n\r\n":
            data = await server.receive_some(MOST)
            await client.send_all(data)
            tail = (tail + data)[-5:]

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=2048)
    await trio.serve_listeners(serve, listeners)


files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
