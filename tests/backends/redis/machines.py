"""Machines with one account, over a real server, in front of an identity server that detects re-use.

Time is Trio's test clock, for the server's script, too. A machine takes steps (commands to the server, calls
of its disk, exchanges with the identity server) and may be killed before or after any of them: then nothing
of it runs any more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from cryptography.fernet import Fernet

from qproxy.auth import OAuthSource
from qproxy.auth.credential_store import StorageError
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.refresher import TokenRefresher
from qproxy.auth.token_state import TokenState
from qproxy.backends.local.credential_copy import CredentialCopy
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.redis.credentials import CREDENTIALS, RedisCredentials
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.sealing import Sealer
from qproxy.emulator.identity import TokenFamily
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.oauth import RefreshResult
from tests.auth.helpers import EPOCH, HOST, LoginSetup, in_place
from tests.backends.redis.link import Link, LinkStream
from tests.backends.redis.process import start_client
from tests.backends.redis.server import Server, with_clock

SEALER = Sealer([Fernet.generate_key().decode()])
SCRIPT = with_clock(CREDENTIALS)
LIFETIME, MARGIN = 400.0, 100.0
OPERATIONS = (b"acquire", b"release", b"send", b"forget", b"reject", b"write", b"read")


async def open_credentials(server: Server, nursery: trio.Nursery, folder: Path) -> RedisCredentials:
    """Return the store of an account on a new machine."""
    client = await start_client(Link(server), nursery, [SCRIPT])
    copy = CredentialCopy(CredentialFile(folder / "shared_creds.json"), run=in_place)
    return RedisCredentials(client, SEALER, "me", copy, exchange_timeout=30.0, script=SCRIPT)


class Killed(BaseException):
    """The machine has been killed."""


class Life:
    """The steps of a machine."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.kill_at: tuple[int, str] | None = None
        """The number of the last step, and whether it still happens: `before` or `after`."""
        self.killed = False

    def before(self, step: str) -> None:
        if self.killed:
            raise Killed
        self.steps.append(step)
        if self.kill_at == (len(self.steps), "before"):
            self.killed = True
            raise Killed

    def after(self) -> None:
        if self.kill_at == (len(self.steps), "after"):
            self.killed = True
        if self.killed:
            raise Killed


class MortalLink(Link):
    """A link whose commands about tokens are steps."""

    def __init__(self, server: Server, life: Life) -> None:
        super().__init__(server)
        self.life = life

    async def open(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self._cut or self.life.killed:
            raise OSError("no route")
        try:
            stream = MortalStream(self)
        except OSError:
            raise OSError("no server") from None
        self._streams.append(stream)
        return stream


class MortalStream(LinkStream):
    """A stream of a machine that can be killed."""

    async def execute(self, data: bytes) -> None:
        life = self._link.life  # type: ignore[attr-defined]
        if b":tokens" not in data:
            if life.killed:
                raise Killed
            return await super().execute(data)
        operation = next(word for word in data.split(b"\r\n") if word in OPERATIONS)
        life.before(operation.decode())
        await super().execute(data)
        life.after()
        return None


class MortalIdentity:
    """A client of the identity server whose exchanges are steps."""

    def __init__(self, client: IdentityClient, life: Life) -> None:
        self._client = client
        self._life = life
        self.delay = 2.0

    async def refresh(self, refresh_token: str) -> RefreshResult:
        self._life.before("exchange")
        await trio.sleep(self.delay)
        answer = await self._client.refresh(refresh_token)
        self._life.after()
        return answer


class Machine:
    """One process of a machine, with a directory of its own."""

    def __init__(self, setup: LoginSetup, server: Server, folder: Path, *, sealer: Sealer = SEALER) -> None:
        self.life = Life()
        self.link = MortalLink(server, self.life)
        self.file = CredentialFile(folder / "me" / "shared_creds.json")
        self.identity = MortalIdentity(setup.identity, self.life)
        self.disk_error: StorageError | None = None
        self._setup = setup
        self._sealer = sealer
        self._scope = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Run until the machine is killed or stopped."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._start(nursery)
                    task_status.started()
        except* (Killed, RedisError):  # what a connection raised when it was killed, too
            assert self.life.killed

    async def _start(self, nursery: trio.Nursery) -> None:
        async def run_step(call: Callable[..., Any], *arguments: Any) -> Any:
            self.life.before(call.__name__)
            if self.disk_error is not None and call.__name__ == "prepare_write":
                raise self.disk_error
            try:
                return await in_place(call, *arguments)
            finally:
                self.life.after()

        self.client = await start_client(self.link, nursery, [SCRIPT], connected=not self.link._cut)
        copy = CredentialCopy(self.file, run=run_step)
        self.store = RedisCredentials(
            self.client, self._sealer, "me", copy, exchange_timeout=30.0, script=SCRIPT
        )
        state, wall = TokenState("me", MARGIN), self._setup.wall
        refresher = TokenRefresher(
            state,
            self.store,
            self.identity,  # type: ignore[arg-type]
            wall_clock=wall,
            jitter=lambda: 0.5,
        )
        self.source = OAuthSource(
            state, refresher, hosts=(HOST,), fallback_url=HOST, interval=5.0, round_timeout=100.0
        )
        nursery.start_soon(self.source.run)

    async def wait_step(self, name: str, after: int) -> None:
        """Wait until a step of this name has begun, not counting the first `after` steps."""
        with trio.fail_after(1000):
            while name not in self.life.steps[after:]:  # noqa: ASYNC110 - the steps of a test are no events
                await trio.sleep(0.5)

    def stop(self) -> None:
        """End the process as a signal does."""
        self._scope.cancel()

    @property
    def token(self) -> str | None:
        tokens = self.source.refresher._token_state.tokens
        return None if tokens is None else tokens.access_token


def first_tokens(setup: LoginSetup, left: float = LIFETIME) -> TokenSet:
    """Return tokens of a login that expire in `left` seconds."""
    setup.emulator.identity.token_lifetime = LIFETIME
    issued = setup.emulator.identity.issue(TokenFamily(), HOST)
    end = int((EPOCH + trio.current_time() + left) * 1000)
    return TokenSet(issued["access_token"], issued["refresh_token"], "Bearer", end, HOST, lifetime=LIFETIME)
