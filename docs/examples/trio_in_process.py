"""qproxy inside a Trio program without a socket: a streamed answer, printed as it comes.

python trio_in_process.py "Why is the sky blue?"
"""

import json
import sys

import trio

import qproxy

MODEL = "qwen3.7-plus"


async def main(question):
    """Print the answer; returns what went wrong, if anything did."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": question}]}
    async with (
        qproxy.in_process(qproxy.app) as client,
        client.request(
            "POST",
            "/v1/chat/completions",
            headers={"content-type": "application/json"},
            body=json.dumps(body),
        ) as response,
    ):
        if response.status != 200:
            return json.loads(await response.read())["error"]["message"]
        rest = b""
        while piece := await response.receive():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    return event["error"]["message"]
                for choice in event["choices"]:
                    print(choice["delta"].get("content") or "", end="", flush=True)
        print()
    return None


sys.exit(trio.run(main, " ".join(sys.argv[1:]) or "Hello there"))
