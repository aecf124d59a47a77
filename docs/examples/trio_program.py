"""qproxy inside a Trio program, on a port of its own, with the settings of qproxy.toml and the environment.

At SIGINT or SIGTERM no new connection is taken; running requests have `graceful_timeout` seconds to end.
"""

import signal

import trio

import qproxy


async def until_signal():
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def main():
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            await qproxy.serve(qproxy.load(), shutdown_trigger=until_signal, task_status=task_status)
            nursery.cancel_scope.cancel()  # the rest of the program ends with the server

        (url,) = await nursery.start(serve)
        print(f"qproxy listening on {url}/v1", flush=True)
        # Your own tasks: nursery.start_soon(...)


trio.run(main)
