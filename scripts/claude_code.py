"""Run the real Claude Code through qproxy, in front of the emulator, and print what happened.

    npm install --prefix FOLDER @anthropic-ai/claude-code
    .venv/bin/python scripts/claude_code.py FOLDER/node_modules/@anthropic-ai/claude-code-linux-x64/claude

Nothing leaves this machine: the responses of the model are scripted, Claude Code runs in a directory of its
own with a home of its own. Each scenario prints the client's output and the requests to the upstream; one
that fails ends the run.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

import qproxy
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator, ScriptedReply
from qproxy.emulator.faults import DONE, chunk

MODEL = "qwen3.7-plus"
TIMEOUT = 120.0
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj"
    b"\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)
HEAD = chunk({"role": "assistant", "content": ""})
OVERFLOW = "Range of input length should be [1, 129024]"


def png() -> bytes:
    """A red picture of 8 by 8."""
    rows = zlib.compress(b"".join(b"\0" + b"\xff\0\0" * 8 for _ in range(8)))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def says(text: str, thought: str = "") -> ScriptedReply:
    """An answer in words."""
    usage = json.dumps(
        {"choices": [], "usage": {"prompt_tokens": 20_000, "completion_tokens": 9, "total_tokens": 20_009}}
    )
    begun = chunk({"reasoning_content": thought}) if thought else b""
    return ScriptedReply(
        (
            HEAD
            + begun
            + chunk({"content": text})
            + chunk({}, "stop")
            + b"data: "
            + usage.encode()
            + b"\n\n"
            + DONE,
        )
    )


def calls(*wanted: tuple[str, dict[str, Any]], thought: str = "") -> ScriptedReply:
    """An answer that calls tools."""
    entries = [
        {
            "index": number,
            "id": f"call_{name}_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(wanted)
    ]
    begun = chunk({"reasoning_content": thought}) if thought else b""
    return ScriptedReply((HEAD + begun + chunk({"tool_calls": entries}) + chunk({}, "tool_calls") + DONE,))


def overflow() -> ScriptedReply:
    """DashScope's error for a prompt that is too long."""
    body = json.dumps(
        {"error": {"message": OVERFLOW, "type": "invalid_request_error", "code": "invalid_parameter_error"}}
    )
    return ScriptedReply((body.encode(),), status=400, content_type="application/json")


@dataclass
class Scenario:
    """One run of Claude Code."""

    name: str
    prompt: str
    replies: Callable[[Path], list[ScriptedReply]]
    expected: str
    """In what the client prints."""
    upstream: Callable[[list[Any]], bool] = bool
    """What must be true of the bodies that the model's server got."""
    arguments: tuple[str, ...] = ()


def tool_texts(bodies: list[Any]) -> str:
    """What the last request says of tools' results."""
    return json.dumps([message for message in bodies[-1]["messages"] if message["role"] == "tool"])


SCENARIOS = (
    Scenario("hello", "Say hello", lambda _: [says("Hello from Qwen.", "Be kind.")], "Hello from Qwen."),
    Scenario(
        "a file is read",
        "Read hello.txt",
        lambda path: [
            calls(("Read", {"file_path": str(path / "hello.txt")}), thought="Let me see."),
            says("It says hello."),
        ],
        "It says hello.",
        lambda bodies: (
            "hello from a file" in tool_texts(bodies)
            and bodies[-1]["messages"][-2]["reasoning_content"] == "Let me see."
        ),
    ),
    Scenario(
        "two tools side by side, one fails",
        "Look around",
        lambda path: [
            calls(
                ("Read", {"file_path": str(path / "missing.txt")}),
                ("Bash", {"command": "echo hi", "description": "say hi"}),
            ),
            says("One failed."),
        ],
        "One failed.",
        lambda bodies: (
            [message["role"] for message in bodies[-1]["messages"][-3:]] == ["assistant", "tool", "tool"]
            and "does not exist" in tool_texts(bodies)
        ),
    ),
    Scenario(
        "a picture is read",
        "Look at red.png",
        lambda path: [calls(("Read", {"file_path": str(path / "red.png")})), says("It is red.")],
        "It is red.",
        lambda bodies: "data:image/png;base64," in json.dumps(bodies[-1]["messages"]),
    ),
    Scenario(
        "a PDF leaves a note",
        "Read doc.pdf",
        lambda path: [calls(("Read", {"file_path": str(path / "doc.pdf")})), says("I cannot read it.")],
        "I cannot read it.",
        lambda bodies: "was left out here" in json.dumps(bodies[-1]["messages"]),
    ),
    Scenario(
        "a context that is too small is compacted",
        "Go on",
        lambda _: [overflow(), says("<summary>We said hello.</summary>"), says("Going on.")],
        "Going on.",
        lambda bodies: len(bodies) == 3 and "TEXT ONLY" in json.dumps(bodies[1]["messages"]),
        ("--continue",),
    ),
    Scenario(
        "tokens are counted for free", "/context", lambda _: [], "Context Usage", lambda bodies: bodies == []
    ),
    Scenario(
        "an answer that breaks off is asked for again",
        "Say hello",
        lambda _: [ScriptedReply((HEAD + chunk({"content": "Hel"}),)), says("Hello again.")],
        "Hello again.",
        lambda bodies: len(bodies) == 2,
    ),
)


def run(program: str, url: str, folder: Path, scenario: Scenario) -> str:
    """Run Claude Code once, and return what it prints."""
    settings = {
        "HOME": str(folder / "home"),
        "PATH": os.environ["PATH"],
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "any",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    command = [program, "-p", scenario.prompt, "--allowedTools", "Read,Bash(echo:*)", *scenario.arguments]
    done = subprocess.run(
        command,
        cwd=folder / "project",
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.stdout + done.stderr


async def main(program: str) -> None:
    emulator = Emulator()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = folder / "project"
        project.mkdir()
        (folder / "home").mkdir()
        (project / "hello.txt").write_text("hello from a file\n")
        (project / "red.png").write_bytes(png())
        (project / "doc.pdf").write_bytes(PDF)
        async with trio.open_nursery() as nursery:
            await nursery.start(emulator.serve)
            account = AccountConfig("emulator", base_url=emulator.base_url, key="sk-test-key")
            config = Config(port=0, accounts=(account,), log_level="error")
            urls = await nursery.start(partial(qproxy.serve, config))
            for scenario in SCENARIOS:
                emulator.script(*scenario.replies(project))
                before = len(emulator.requests)
                said = await trio.to_thread.run_sync(run, program, urls[0], folder, scenario)
                bodies = [
                    request.body for request in emulator.requests[before:] if isinstance(request.body, dict)
                ]
                good = scenario.expected in said and scenario.upstream(bodies)
                print(
                    f"{'ok    ' if good else 'FAILED'}  {scenario.name}: {len(bodies)} requests to the model",
                    flush=True,
                )
                for body in bodies:
                    print(f"          {' '.join(message['role'] for message in body['messages'])}")
                print(f"          > {' '.join(said.split())[:140]}", flush=True)
                if not good:
                    sys.exit(1)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
