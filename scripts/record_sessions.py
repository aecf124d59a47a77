"""Write the sessions that `scripts/cache_sim` replays: the shapes of five programs' requests, without texts.

    .venv/bin/python scripts/record_sessions.py

A message is its role, a number that stands for its text, and the number of its words. The lengths and
pauses are assumptions about such programs, not measurements of them; a seed makes them repeat.
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tests" / "recorded" / "cache_sessions"
PAUSES = ((0.93, 4, 40), (0.97, 60, 240), (1.0, 400, 1500))
"""Seconds between an agent's requests: tools, a question to the user, a break."""


class Session:
    """A session in the making."""

    def __init__(self, name, model, *, tools, marked, seed):
        self.name, self.model, self.marked = name, model, marked
        self.random = random.Random(seed)
        self.tools = [self.random.randint(60, 240) for _ in range(tools)]
        self.texts = 0
        self.requests = []

    def message(self, role, least, most):
        """Return a new message of so many words."""
        self.texts += 1
        return [role, self.texts, self.random.randint(least, most)]

    def pause(self, pauses=PAUSES):
        """Return the seconds until the next request."""
        draw = self.random.random()
        _, least, most = next(entry for entry in pauses if draw <= entry[0])
        return self.random.randint(least, most)

    def request(self, keep, *messages, after):
        """Add a request with the first messages of the one before it, and new ones."""
        self.requests.append({"after": after, "keep": keep, "add": list(messages)})

    def write(self):
        """Write the session's file."""
        head = {"name": self.name, "model": self.model, "marked": self.marked, "tools": self.tools}
        lines = ",\n".join(json.dumps(request) for request in self.requests)
        text = json.dumps(head)[:-1] + ', "requests": [\n' + lines + "\n]}\n"
        (FOLDER / f"{self.name}.json").write_text(text)


LATER_TURNS = (12, 18)
"""Requests of the two conversations that follow a session's first one, with the same beginning."""


def agent(name, model, *, system, tools, result, turns, marked, seed):
    """An agent: a system prompt and tools, then calls and results; each request has the one before it."""
    session = Session(name, model, tools=tools, marked=marked, seed=seed)
    first = [session.message("system", *system)]
    for length in (turns, *LATER_TURNS):
        session.request(1 - len(first), *first, session.message("user", 30, 400), after=session.pause())
        for number in range(length - 1):
            pause = session.pause()
            reply = session.message("assistant", 20, 180)
            then = session.message("user", 10, 120) if pause > 50 else session.message("tool", *result)
            session.request(2 + 2 * number, reply, then, after=pause)
        first = []
    return session


def retrieval(name, model, *, turns, seed):
    """A retrieval loop: one system prompt, and for each question other documents."""
    session = Session(name, model, tools=0, marked=False, seed=seed)
    session.request(0, session.message("system", 1800, 1800), session.message("user", 1500, 3500), after=0)
    for _ in range(turns - 1):
        pause = session.pause(((0.9, 2, 60), (1.0, 60, 290)))
        session.request(1, session.message("user", 1500, 3500), after=pause)
    return session


def chat(name, model, *, turns, seed):
    """A chat: a short system prompt, and a person who reads and writes."""
    session = Session(name, model, tools=0, marked=False, seed=seed)
    first = [session.message("system", 150, 150)]
    for length in (turns, *LATER_TURNS):
        session.request(1 - len(first), *first, session.message("user", 20, 200), after=session.pause())
        for number in range(length - 1):
            pause = session.pause(((0.75, 20, 200), (0.9, 200, 290), (1.0, 310, 2400)))
            messages = session.message("assistant", 150, 700), session.message("user", 10, 150)
            session.request(2 + 2 * number, *messages, after=pause)
        first = []
    return session


def main():
    """Write all sessions."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for session in (
        agent("claude_code", "qwen4-max", system=(3000, 3000), tools=18, result=(40, 1500), turns=40,
            marked=True, seed=1),
        agent("codex", "qwen4-max", system=(2600, 2600), tools=7, result=(60, 1100), turns=45, marked=False,
            seed=2),
        agent("qwen_code", "qwen3.8-max", system=(3600, 3600), tools=14, result=(30, 1300), turns=40,
            marked=True, seed=3),
        retrieval("retrieval", "qwen3.8-flash", turns=60, seed=4),
        chat("chat", "qwen3.7-max", turns=30, seed=5),
    ):  # fmt: skip
        session.write()


if __name__ == "__main__":
    main()
