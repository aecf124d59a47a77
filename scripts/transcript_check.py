"""The transcript of docs/check.md: a configuration and a server under examination, on the emulator, by the
real command.

As `transcript.py`: what differs from run to run is replaced, and a test compares the result with the page.
"""

import re

from transcript import Session, told


def story(session: Session) -> None:
    emulator = session.start("emulator", "--port", "0")
    origin = session.until(emulator, r"listening on (http://\S+)")[1]
    session.same[origin.removeprefix("http://")] = "127.0.0.1:8080"
    session.environ |= {"QPROXY_UPSTREAM": f"{origin}/v1", "QPROXY_PORT": "0", "no_proxy": "127.0.0.1"}
    # a limit that any machine allows
    session.environ |= {"QPROXY_MAX_CLIENT_CONNECTIONS": "100", "QPROXY_MAX_REQUESTS": "100"}
    session.run("check")
    session.run("check", f"{origin}/v1")
    session.environ["QPROXY_PROT"] = "8787"
    session.run("check", "--offline")


def main() -> None:
    text = told(story).replace("port 0 is free", "port 8787 is free")
    text = text.replace("264 needed", "6064 needed")
    print(re.sub(r"responded in \d+\.\d s", "responded in 0.1 s", text))


if __name__ == "__main__":
    main()
