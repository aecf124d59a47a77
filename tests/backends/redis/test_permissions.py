"""The rights that the server's user needs: the code, the list and the documentation agree."""

import ast
import re
from pathlib import Path

import qproxy.backends.redis
from qproxy.backends.redis.address import Address
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.permissions import ALWAYS, COMMANDS, PERMISSIONS, missing_commands
from qproxy.backends.redis.report import connection_of
from qproxy.diagnostics.shared_state import check_shared_state
from tests.backends.redis.test_shared_state import config_of

PACKAGE = Path(qproxy.backends.redis.__file__).parent
ROOT = PACKAGE.parent.parent.parent
CONTAINERS = ("CLIENT", "CLUSTER", "MEMORY", "SCRIPT")


def commands_in_python(text):
    """Yield the commands that begin a call or a tuple, such as ("GET", key)."""
    for node in ast.walk(ast.parse(text)):
        parts = node.elts if isinstance(node, ast.Tuple) else node.args if isinstance(node, ast.Call) else []
        words = [part.value if isinstance(part, ast.Constant) else None for part in parts[:2]]
        if words and isinstance(words[0], str) and re.fullmatch("[A-Z]{3,}", words[0]):
            yield "|".join(map(str, words)).lower() if words[0] in CONTAINERS else words[0].lower()


def sent_commands():
    """Return every command that the package can send."""
    found = set()
    for file in PACKAGE.glob("*.py"):
        found |= set(commands_in_python(file.read_text()))
    for file in PACKAGE.glob("*.lua"):
        found |= {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", file.read_text())}
    return found


def documented_user():
    """Return the rules of the user in docs/scaling.md."""
    text = (ROOT / "docs" / "scaling.md").read_text()
    (rules,) = re.findall(r"^user qproxy (.*)$", text, re.MULTILINE)
    return rules.split()


def test_every_command_is_listed_and_documented():
    """The list has what the code sends, and the user of the documentation may do that and nothing more."""
    assert sent_commands() == {*COMMANDS, *ALWAYS}
    granted = {rule[1:] for rule in documented_user() if rule.startswith("+")}
    assert granted == {*COMMANDS, *ALWAYS} - {"sentinel"}


async def test_the_documented_user_may_do_everything(valkey):
    """The check finds nothing missing, and names what another user lacks."""
    rules = [rule for rule in documented_user() if rule != ">password"]
    valkey.execute("ACL", "SETUSER", "documented", *rules, ">secret")
    valkey.execute(
        "ACL", "SETUSER", "lesser", *rules, ">secret", "-hset", "-publish", "-script", "+script|load"
    )

    async def missing(user):
        address = Address("", 0, valkey.path, user=user, password="secret")
        client = RedisClient(address, prefix="q", timeout=5, connect_timeout=5, scripts=[PERMISSIONS])
        async with connection_of(client, 5):
            return await missing_commands(client)

    try:
        assert await missing("documented") == []
        valkey.execute("HSET", "q:meta", "schema", "1", "least_reader", "1")
        assert await missing("lesser") == ["hset", "publish"]
    finally:
        valkey.execute("ACL", "DELUSER", "documented", "lesser")


async def test_the_check_names_missing_commands(valkey):
    """A user without the right to publish is a failure with advice."""
    valkey.execute("ACL", "SETUSER", "default", "-publish")
    try:
        found = {item.name: item for item in await check_shared_state(config_of(valkey), offline=False)}
    finally:
        valkey.execute("ACL", "SETUSER", "default", "+publish")
    assert found["rights"].state == "failed"
    assert found["rights"].message == "the user may not use: publish"
