"""The transcript of docs/accounts.md: sign in, chat, refresh, sign out, on the emulator, by the real
commands.

Runs `qproxy emulator`, `login`, `serve` and `logout` as processes and prints what they say, with what differs
from run to run (ports, codes, ids, paths) replaced. A test compares it with the page.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

ASK = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "Hello"}]}


class Session:
    """A person at a terminal, with everything under one directory."""

    def __init__(self, home: Path) -> None:
        self.environ = {**os.environ, "QPROXY_HOME": str(home / "qproxy"), "HOME": str(home)}
        self.same: dict[str, str] = {str(home): "/home/you"}
        self.processes: list[subprocess.Popen[str]] = []
        self.said: list[str] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qproxy", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, text=True, env=self.environ, **streams)
        self.processes.append(process)
        return process

    def show(self, line: str) -> None:
        for found, instead in self.same.items():
            line = line.replace(found, instead)
        self.said.append(line.rstrip())

    def until(self, process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
        """Read what a process says up to a line of this pattern."""
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(pattern, line):
                return found
        raise SystemExit(f"{process.args} ended with {process.wait()} without saying {pattern}")

    def run(self, *arguments: str) -> None:
        self.show(f"$ qproxy {' '.join(arguments)}")
        process = self.start(*arguments)
        for line in process.communicate(timeout=60)[0].splitlines():
            self.show(line)

    def post(self, url: str, body: bytes, content_type: str, shown: str) -> str:
        self.show(f"$ {shown}")
        request = urllib.request.Request(url, body, {"content-type": content_type})
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def sign_in(session: Session, origin: str) -> None:
    session.show("$ qproxy login --no-browser")
    process = session.start("login", "--no-browser")
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"user_code=(\w{8})&", line):
            session.same[found[1]] = "BF0Q6UX9"
            form = urllib.parse.urlencode({"user_code": found[1], "decision": "approve"}).encode()
            urllib.request.urlopen(f"{origin}/authorize", form, timeout=60).close()
        session.show(line)
    if process.wait():
        raise SystemExit("\n".join(session.said))


def chat(session: Session, url: str) -> None:
    shown = f"curl -s {url}/chat/completions -H 'content-type: application/json' -d '{json.dumps(ASK)}'"
    answer = json.loads(
        session.post(f"{url}/chat/completions", json.dumps(ASK).encode(), "application/json", shown)
    )
    session.show(f"{{… {json.dumps(answer['choices'][0]['message']['content'])} …}}")


def story(session: Session) -> None:
    emulator = session.start("emulator", "--port", "0", "--interval", "0.05")
    origin = session.until(emulator, r"listening on (http://\S+)")[1]
    session.same[origin] = "http://127.0.0.1:8788"
    session.environ |= {
        "QPROXY_OAUTH_HOSTS": origin,
        "QPROXY_OAUTH_DEVICE_URL": f"{origin}/api/v1/oauth2/device/code",
        "QPROXY_OAUTH_TOKEN_URL": f"{origin}/api/v1/oauth2/token",
    }
    sign_in(session, origin)
    server = session.start("serve", "--port", "0", "--log-format", "text")
    session.show("$ qproxy serve &")
    line = session.until(server, r"(qproxy \S+ listening on (http://\S+?)/v1)")
    session.same[line[2]] = "http://127.0.0.1:8787"
    session.show(line[1])
    assert server.stdout is not None
    for row in server.stdout:
        session.show(row)
        if row.startswith("  stop"):
            break
    chat(session, f"{line[2]}/v1")
    session.show(
        session.post(
            f"{origin}/emulator/expire", b"", "text/plain", f"curl -s -X POST {origin}/emulator/expire"
        )
    )
    chat(session, f"{line[2]}/v1")
    session.show(re.sub(r"^.*?(account)", r"\1", session.until(server, r".*token refreshed.*")[0]))
    session.run("logout")


def told(story: Callable[[Session], None]) -> str:
    """What a session says, from beginning to end."""
    with tempfile.TemporaryDirectory() as home:
        session = Session(Path(home))
        try:
            story(session)
        finally:
            session.end()
    return "\n".join(session.said)


if __name__ == "__main__":
    print(told(story))
