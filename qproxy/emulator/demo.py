"""`qproxy demo`: an end-to-end demo on one machine, without an account.

Starts the built-in emulator and qproxy in front of it, in one Trio program; sends a streamed request with a
tool over HTTP, as any OpenAI client would, and prints the response and the call; sends another one for which
the server itself runs a tool in the sandbox, if that is available; and keeps serving.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import trio

from qproxy import http_server
from qproxy.bootstrap import app
from qproxy.bootstrap.limits import transport_limits
from qproxy.bootstrap.models import package_catalog
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.config.tools import ToolConfig
from qproxy.emulator import Emulator
from qproxy.sandbox import SystemSandbox
from qproxy.sandbox.policy import PATH
from qproxy.tools import arguments
from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec, sse
from qproxy.wire.http_request import HTTPRequest

MODEL: str = package_catalog().defaults["chat"]
QUESTION = "What is the weather in Hangzhou today?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
WEATHER_REPORT = {"sky": "light rain", "temperature": 17}
CALCULATION_QUESTION = "What is '2**64 / 3'?"
CALCULATE = {"expression": {"type": "string", "description": "In Python's notation"}}
ANSWER_TIMEOUT = 30.0
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a demo that a signal ended."""
HOW_TO = """
Serving until Ctrl+C. Point any OpenAI client at it, with any key:

    export OPENAI_BASE_URL={url} OPENAI_API_KEY=any
    curl {url}/chat/completions -H 'content-type: application/json' \\
         -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

Dashboard:        {origin}/dashboard
Your own account: qproxy init
"""
NO_TOOL = "A tool that the server runs is not shown: "
PrintFunction = Callable[[str], None]


async def send_chat(
    url: str, messages: list[Any], tool: Any, raw: PrintFunction
) -> tuple[dict[str, Any], list[str]]:
    """Send a streamed request; return the message that its chunks add up to, and the notes on the server's
    tools.

    `raw` prints the lines of the response as they arrive.
    """
    body = {"model": MODEL, "messages": messages, "tools": [tool], "stream": True}
    headers = ((b"content-type", b"application/json"), (b"authorization", b"Bearer any-key"))
    request = HTTPRequest("POST", f"{url}/chat/completions", headers, json_codec.dumps(body))
    text, notes = "", list[str]()
    calls: dict[int, Any] = {}
    transport, decoder = UpstreamTransport(transport_limits(Config())), sse.Decoder()
    async with await transport.send(request) as response:
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {(await response.read(10_000)).decode()}")
        while data := await response.receive():
            for line in filter(None, data.decode(errors="replace").splitlines()):
                raw(f"  {line}")
                if line.startswith(": tool"):
                    notes.append(line.removeprefix(": "))
            for event in decoder.feed(data):
                chunk = {"choices": []} if event.data == "[DONE]" else json.loads(event.data)
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                    for entry in choice["delta"].get("tool_calls") or ():
                        call = calls.setdefault(entry["index"], {**entry, "function": {"arguments": ""}})
                        function = entry["function"]
                        call["function"]["name"] = function.get("name") or call["function"]["name"]
                        call["function"]["arguments"] += function.get("arguments") or ""
    await transport.aclose()
    message = {"role": "assistant", "content": text or None}
    return {**message, **({"tool_calls": list(calls.values())} if calls else {})}, notes


async def converse(url: str, say: PrintFunction, raw: PrintFunction) -> None:
    """Send a request, run the tool that the model calls, and print the response and how it came about."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    say(f"> {QUESTION}")
    with trio.fail_after(ANSWER_TIMEOUT):
        reply, _ = await send_chat(url, messages, WEATHER, raw)
        calls = [call["function"] for call in reply.get("tool_calls", ())]
        for call in reply.get("tool_calls", ()):
            result = {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(WEATHER_REPORT)}
            messages += [reply, result]
        if calls:
            reply, _ = await send_chat(url, messages, WEATHER, raw)
    say(f"< {reply['content']}")
    for function in calls:
        say(f"  The model called {function['name']}({function['arguments']}), a tool of the client.\n")


async def calculate(url: str, say: PrintFunction, raw: PrintFunction) -> None:
    """Send a request for which the server runs its own tool, and print the response."""
    say(f"> {CALCULATION_QUESTION}")
    with trio.fail_after(ANSWER_TIMEOUT):
        messages = [{"role": "user", "content": CALCULATION_QUESTION}]
        reply, notes = await send_chat(url, messages, {"type": "qproxy", "name": "calculate"}, raw)
    say(f"< {reply['content']}")
    for note in notes:
        say(f"  The server ran a tool in its sandbox: {note.removeprefix('tool ')}.")


def calculator() -> ToolConfig:
    """Python's own arithmetic as a tool, by whatever Python this machine has."""
    python = shutil.which("python3", path=PATH)
    return ToolConfig(
        name="calculate",
        description="The value of an arithmetic expression",
        parameters={"properties": CALCULATE, "required": ["expression"]},
        argv=[
            python or os.path.realpath(sys.executable),
            "-I",
            "-c",
            "import sys; print(eval(sys.argv[1]))",
            "{expression}",
        ],
        read=[] if python else [sys.base_prefix],
    )


async def tool_support_missing() -> str | None:
    """Return the reason why the server cannot run a tool here, or None."""
    try:
        arguments.make_validator({})
    except arguments.SchemaError as error:
        return str(error)
    sandbox = SystemSandbox()
    await sandbox.detect()
    return sandbox.unavailable_reason


def run(port: int, once: bool, say: PrintFunction, *, raw: bool = False) -> int:
    """Serve the emulator's Qwen on `port` until a signal arrives, or with `once` until the demo has ended.

    `raw` prints the lines of the responses, too.
    """
    with tempfile.TemporaryDirectory(prefix="qproxy-demo-") as folder:  # its ledger, for the dashboard
        return trio.run(_main, port, once, say, say if raw else _discard, f"{folder}/ledger.sqlite3")


def _discard(line: str) -> None:
    """Print nothing."""


async def _main(port: int, once: bool, say: PrintFunction, raw: PrintFunction, ledger: str) -> int:
    emulator, stop = Emulator(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http_server.wait_for_signal, stop, say)
        await nursery.start(emulator.serve)
        account = AccountConfig("emulator", base_url=emulator.base_url, key="sk-emulator")
        missing = await tool_support_missing()
        tools = () if missing else (calculator(),)
        config = Config(port=port, accounts=(account,), default_model=MODEL, tools=tools, ledger=ledger)

        async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
            await app.serve(config, shutdown_trigger=stop.wait, task_status=task_status)
            nursery.cancel_scope.cancel()

        url = f"{(await nursery.start(serve))[0]}/v1"
        say(f"qproxy listening on {url} (accounts: the built-in emulator)")
        async with trio.open_nursery() as requests:
            requests.start_soon(_cancel_at, stop, requests.cancel_scope)
            await converse(url, say, raw)
            if missing:
                say(f"{NO_TOOL}{missing}")
            else:
                await calculate(url, say, raw)
            requests.cancel_scope.cancel()
        if stop.is_set():
            return INTERRUPTED
        if once:
            stop.set()
        else:
            say(HOW_TO.format(url=url, model=MODEL, origin=url.removesuffix("/v1")))
    return 0


async def _cancel_at(stop: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel the demo's requests once a signal arrived: the server that they need is stopping."""
    await stop.wait()
    scope.cancel()
