"""`qproxy.app` in a Trio program that runs Hypercorn itself, with the settings of qproxy.toml and the
environment.

The address is Hypercorn's to know; the limits, and how long requests have at the end, are qproxy's settings.

    python trio_hypercorn.py 127.0.0.1:8787
"""

import signal
import sys

import hypercorn.trio
import trio
from hypercorn.config import Config

import qproxy


async def until_signal():
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def main():
    config = Config()
    config.bind = sys.argv[1:] or ["127.0.0.1:8787"]
    async with trio.open_nursery() as nursery:

        async def serve(task_status):
            await hypercorn.trio.serve(
                qproxy.app, config, shutdown_trigger=until_signal, task_status=task_status
            )
            nursery.cancel_scope.cancel()  # the rest of the program ends with the server

        (url,) = await nursery.start(serve)
        print(f"qproxy listening on {url}/v1", flush=True)
        # Your own tasks: nursery.start_soon(...)


trio.run(main)
