"""Replay recorded sessions against the price table: what each policy of the prompt cache costs.

    scripts/cache_sim [FILE...]

The cache is the emulator's, with and without an implicit cache, which servers do not promise. Costs are those
of the prompts; outputs cost the same with every policy.
"""

import dataclasses
import json
import sys
from functools import cache
from pathlib import Path

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.prompt_cache import MESSAGE_TOKENS, PromptCache
from qproxy.emulator.unverified import NATURAL
from qproxy.ledger.prices import list_price
from qproxy.wire.events import Usage
from qproxy.wire.prompt_cache import CachePlanner, CachePrices
from qproxy.wire.prompt_cache.markers import place_markers

FOLDER = Path(__file__).parents[1] / "tests" / "recorded" / "cache_sessions"
WORD = "w "
RATIO = 1 / len(WORD)
"""Tokens per byte: the emulator counts words."""
SECOND_HAND = """\
prices: Model Studio international, of {date}, in wire/models/models.toml
first hand: input, output and implicit reads of qwen4-max
second hand: the other models' (litellm's table), and writes to the cache of qwen4-max (a reseller's)
not listed: a kind without a price has the share of [prices]; explicit reads cost as much as implicit ones"""


class Replay:
    """A session as requests of a policy, at the times they were sent."""

    def __init__(self, session):
        self.session = session
        self.model = session["model"]
        spec, self.catalog = package_catalog().get(session["model"]), package_catalog()
        self.price = list_price(spec.prices, self.catalog.price_terms)
        self.shares = CachePrices.of(spec.prices[0], self.catalog.price_terms)
        self.has_1h = self.allow_1h = spec.cache == "options"
        self.tools = [
            {"type": "function", "function": {"name": f"t{number}", "description": WORD * words}}
            for number, words in enumerate(session["tools"])
        ]

    def requests(self):
        """Yield (time, messages)."""
        now, messages = 0.0, []
        for request in self.session["requests"]:
            now += request["after"]
            messages = [*messages[: request["keep"]], *(message(tuple(entry)) for entry in request["add"])]
            yield now, messages

    def prompt_tokens(self, messages):
        """Return the tokens of a prompt as the emulator counts them."""
        words = sum(message["content"].count(" ") + MESSAGE_TOKENS for message in messages)
        return words + sum(len(json.dumps(tool).split()) for tool in self.tools)

    def cost(self, policy, *, implicit):
        """Return the US dollars of all prompts with a policy: a function of (time, messages) to places."""
        facts = dataclasses.replace(NATURAL, implicit_cache=implicit)
        clock = [0.0]
        prompt_cache, spent = PromptCache(lambda: clock[0], facts), 0.0
        for now, messages in self.requests():
            clock[0] = now
            places, long, learn = policy(now, messages)
            body = {"model": self.model, "tools": self.tools, "messages": place_markers(messages, places)}
            if long:
                body["prompt_cache_options"] = {"mode": "explicit", "ttl": "1h"}
            use, size = prompt_cache.use("key", body), self.prompt_tokens(messages)
            usage = Usage(prompt_tokens=size, prompt_details=use.details())
            spent += self.price.cost(usage)
            learn(usage)
        return spent


@cache
def message(entry):
    """Return a message of the recorded length, with a text of its own."""
    role, number, words = entry
    return {"role": role, "content": f"{number} " + WORD * (words - 1)}


def ignore(usage):
    """Learn nothing."""


def off(now, messages):
    """Mark nothing."""
    return (), False, ignore


def beginning(now, messages):
    """Mark the system message of every request."""
    return (0,), False, ignore


def whole(long):
    """Mark the beginning, the last message, and those that were last before, as Claude Code does."""

    def policy(now, messages):
        last = len(messages) - 1
        return {place for place in (0, last - 2, last) if place >= 0}, long, ignore

    return policy


def auto(replay, cache_planner, start=0.0):
    """Mark what the planner plans; `start` is when the session began."""

    def policy(now, messages):
        now += start
        plan = cache_planner.plan(
            replay.model,
            messages,
            replay.tools,
            ratio=RATIO,
            prices=replay.shares,
            allow_1h=replay.allow_1h,
            now=now,
        )
        return plan.places, plan.long, lambda usage: cache_planner.learn(plan, usage, now)

    return policy


COLUMNS = ("off", "markers", "auto", "beginning", "whole", "whole, 1 h")
FIXED = ("off", "markers", "beginning", "whole", "whole, 1 h")
"""Policies that a client or an operator can choose without knowing what comes."""


def table(replays, *, implicit, allow_1h=True):
    """Return the costs of each session by policy; one planner sees all sessions, hours apart."""
    cache_planner, rows = CachePlanner(), []
    for number, replay in enumerate(replays):
        replay.allow_1h = allow_1h and replay.has_1h
        policies = {
            "off": off,
            "markers": whole(False) if replay.session["marked"] else off,
            "auto": auto(replay, cache_planner, number * 4 * 3600.0),
            "beginning": beginning,
            "whole": whole(False),
            "whole, 1 h": whole(replay.allow_1h),
        }
        rows.append({name: replay.cost(policy, implicit=implicit) for name, policy in policies.items()})
    return rows


def total(rows):
    """Return the sum of the rows."""
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def best(costs):
    """Return the least cost of a policy that is the same for all requests."""
    return min(costs[name] for name in FIXED)


def load(paths=()):
    """Return the replays of recorded sessions, by default those in the repository."""
    return [Replay(json.loads(path.read_text())) for path in paths or sorted(FOLDER.glob("*.json"))]


def main():
    """Print the table."""
    terms = package_catalog().price_terms
    replays = load([Path(name) for name in sys.argv[1:]])
    for implicit in (False, True):
        for allow_1h in (False, True):
            hits = "always" if implicit else "never"
            print(f"\nprompts in US dollars; the implicit cache {hits} hits; prompt_cache_1h = {allow_1h}")
            print(f"{'session':12}{'model':14}", *(f"{name:>11}" for name in COLUMNS), "  auto/best", sep="")
            rows = table(replays, implicit=implicit, allow_1h=allow_1h)
            for replay, costs in zip(replays, rows, strict=True):
                print_row(replay.session["name"], replay.model, costs)
            print_row("all", "", total(rows))
    print("\n" + SECOND_HAND.format(date=terms["date"]))


def print_row(name, model, costs):
    """Print one row."""
    figures = "".join(f"{costs[column]:11.4f}" for column in COLUMNS)
    print(f"{name:12}{model:14}{figures}{costs['auto'] / best(costs):11.3f}")


if __name__ == "__main__":
    main()
