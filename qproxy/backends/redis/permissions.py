"""The commands that qproxy sends to the engine, and which of them its user lacks.

docs/scaling.md has a user with these rights and no other one; a test compares both with the code.
"""

from __future__ import annotations

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.script import load_script

PERMISSIONS = load_script("permissions")
ALWAYS = ("auth", "hello", "ping", "select", "asking", "sentinel")
"""Sent before or without a user's rights, or to Sentinel."""
COMMANDS = {
    "client|setname": "x",
    "cluster|slots": "",
    "del": "{key}",
    "evalsha": "x 1 {key}",
    "exists": "{key}",
    "expire": "{key} 1",
    "get": "{key}",
    "getex": "{key}",
    "hdel": "{key} x",
    "hexists": "{key} x",
    "hget": "{key} x",
    "hgetall": "{key}",
    "hincrby": "{key} x 1",
    "hincrbyfloat": "{key} x 1",
    "hkeys": "{key}",
    "hlen": "{key}",
    "hmget": "{key} x",
    "hscan": "{key} 0",
    "hset": "{key} x x",
    "info": "",
    "memory|usage": "{key}",
    "publish": "{key} x",
    "role": "",
    "scan": "0",
    "script|load": "x",
    "set": "{key} x",
    "subscribe": "{key}",
    "time": "",
    "ttl": "{key}",
    "type": "{key}",
    "zadd": "{key} 1 x",
    "zcard": "{key}",
    "zrange": "{key} 0 1",
    "zrem": "{key} x",
    "zremrangebyscore": "{key} 0 1",
}
"""Each with arguments of its kind."""


async def missing_commands(client: RedisClient) -> list[str]:
    """Return the commands that the user may not use on this installation's keys. Raises a RedisError."""
    key = f"{client.prefix}:check"
    examples = {
        f"{name.replace('|', ' ')} {arguments.format(key=key)}".strip(): name
        for name, arguments in COMMANDS.items()
    }
    reply = await client.request(*client.script_command(PERMISSIONS, key, *examples))
    return sorted(examples[command.decode()] for command in reply)
