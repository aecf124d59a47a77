"""Talk to a realtime model through a running qproxy: say a text, or let it hear a tone, and see what comes
back.

    scripts/realtime --url ws://127.0.0.1:8787/v1/realtime --say "Hello"
    scripts/realtime --tone 440
    scripts/realtime --emulator --say "What is the weather in Hangzhou?" --tool

With `--emulator` it starts the built-in Qwen emulator and qproxy in front of it, and needs no account.
"""

import argparse
import base64
import json
import os
from contextlib import AsyncExitStack

import trio
from trio_websocket import ConnectionClosed, open_websocket_url

from qproxy.bootstrap import app
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator
from qproxy.emulator.realtime_session import tone

MODEL = "qwen3-omni-flash-realtime"
CHUNK = 24_000 * 2 // 10
"""A tenth of a second of sound at 24 kHz."""
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="ws://127.0.0.1:8787/v1/realtime")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument(
        "--key", default=os.environ.get("OPENAI_API_KEY", "any"), help="default: OPENAI_API_KEY"
    )
    parser.add_argument("--say", default="Hello", metavar="TEXT")
    parser.add_argument(
        "--tone", type=float, metavar="HERTZ", help="instead of a text, one second of this tone"
    )
    parser.add_argument("--tool", action="store_true", help="offer a tool, and answer its call")
    parser.add_argument(
        "--emulator", action="store_true", help="start the emulator and qproxy in front of it"
    )
    return parser.parse_args()


async def main(asked):
    async with AsyncExitStack() as stack:
        if asked.emulator:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            emulator = await nursery.start(Emulator().serve)
            account = AccountConfig("emulator", base_url=emulator.base_url, key="sk-emulator")
            config = Config(port=0, accounts=(account,), ledger="none")
            (url,) = await nursery.start(app.serve, config)
            asked.url = url.replace("http", "ws", 1) + "/v1/realtime"
        fields = [(b"authorization", f"Bearer {asked.key}".encode())]
        target = f"{asked.url}?model={asked.model}"
        socket = open_websocket_url(target, extra_headers=fields, max_message_size=2**24)
        await converse(await stack.enter_async_context(socket), asked)


async def converse(socket, asked):
    async def say(**event):
        await socket.send_message(json.dumps(event))

    session = {"type": "realtime", "audio": {"input": {"turn_detection": None, "transcription": {}}}}
    if asked.tone is None:
        session["output_modalities"] = ["text"]
    if asked.tool:
        session["tools"] = [WEATHER]
    await say(type="session.update", session=session)
    if asked.tone is None:
        content = [{"type": "input_text", "text": asked.say}]
        await say(
            type="conversation.item.create", item={"type": "message", "role": "user", "content": content}
        )
    else:
        sound = tone(asked.tone, 1.0)
        for start in range(0, len(sound), CHUNK):
            audio = base64.b64encode(sound[start : start + CHUNK]).decode()
            await say(type="input_audio_buffer.append", audio=audio)
        await say(type="input_audio_buffer.commit")
    await say(type="response.create")
    try:
        while await heard(json.loads(await socket.get_message()), say):
            pass
    except ConnectionClosed as closed:
        print(f"closed: {closed.reason.code} {closed.reason.reason or ''}")


async def heard(event, say):
    """Show an event; whether there is more to come."""
    kind = event["type"]
    shown = (
        event.get("delta")
        or event.get("transcript")
        or event.get("text")
        or event.get("arguments")
        or event.get("error")
        or ""
    )
    if kind.endswith("audio.delta"):
        shown = f"{len(base64.b64decode(shown)) / 48_000:.2f} s of sound"
    print(f"{kind:56} {shown}".rstrip())
    if kind != "response.done":
        return True
    calls = [item for item in event["response"]["output"] if item["type"] == "function_call"]
    for call in calls:
        output = {
            "type": "function_call_output",
            "call_id": call["call_id"],
            "output": "light rain, 17 degrees",
        }
        await say(type="conversation.item.create", item=output)
    if calls:
        await say(type="response.create")
    return bool(calls)


if __name__ == "__main__":
    trio.run(main, arguments())
