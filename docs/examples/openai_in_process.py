"""OpenAI's SDK inside a Trio program, without a socket: a streamed answer, printed as it comes.

    python openai_in_process.py "Why is the sky blue?"

`httpx2` is the HTTP client of today's SDKs; pass `httpx` instead if yours is built on that.
"""

import sys

import httpx2
import trio
from openai import AsyncOpenAI

import qproxy

MODEL = "qwen3.7-plus"


async def main(question):
    async with (
        qproxy.in_process(qproxy.create_app()) as client,
        httpx2.AsyncClient(transport=client.transport(httpx2)) as http_client,
    ):
        openai = AsyncOpenAI(http_client=http_client, base_url="http://in-process/v1", api_key="any")
        stream = await openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=True
        )
        async with stream:  # leaving it early is a disconnect
            async for chunk in stream:
                for choice in chunk.choices:
                    print(choice.delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        trio.run(main, " ".join(sys.argv[1:]) or "Hello there")
    except qproxy.ConfigError as error:
        sys.exit(str(error))
