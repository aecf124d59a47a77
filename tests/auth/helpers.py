"""Helpers of the login tests: an account in front of an emulated identity server, in memory.

Files are real, in a temporary directory; their calls run in place (`in_place`), because Trio's test clock
would jump while a thread runs. The wall clock follows Trio's, and a test may set it.
"""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from qproxy.auth import OAuthSource
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.refresher import TokenRefresher
from qproxy.auth.token_state import TokenState
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.backends.local.credentials import FileCredentials
from qproxy.emulator import Emulator
from qproxy.emulator.identity import CLIENT_ID
from qproxy.transport import UpstreamTransport
from qproxy.wire.credential_format import TokenSet, dump
from qproxy.wire.oauth import IdentityProvider
from tests.defaults import transport_limits

HOST = "http://emulator.test"
PROVIDER = IdentityProvider(
    f"{HOST}/api/v1/oauth2/device/code", f"{HOST}/api/v1/oauth2/token", CLIENT_ID, "openid model.completion"
)
EPOCH = 1_760_000_000.0
LIFETIME = 5400.0


async def in_place(call, *arguments):
    """Run a blocking call as `run_blocking` does, without a thread."""
    await trio.lowlevel.checkpoint()
    return call(*arguments)


@dataclass
class Wall:
    """A wall clock that follows Trio's clock and can be shifted."""

    shift: float = 0.0

    def __call__(self):
        return EPOCH + trio.current_time() + self.shift


@dataclass
class LoginSetup:
    """An identity server and the parts of one account."""

    emulator: Emulator
    identity: IdentityClient
    file: CredentialFile
    path: Path
    nursery: trio.Nursery
    transport: UpstreamTransport
    wall: Wall = field(default_factory=Wall)

    def source(self, name="me", *, file=None, shared=False, ahead=1200.0, keep=True):
        """Return a new source on the same file, as another process has one."""
        file = file or self.file
        token_state = TokenState(name, ahead)
        lock = FileLock(file.path, shared=shared, wall_clock=self.wall)
        store = FileCredentials(file, lock, run=in_place)
        refresher = TokenRefresher(
            token_state, store, self.identity, wall_clock=self.wall, jitter=lambda: 0.5
        )
        source = OAuthSource(
            token_state,
            refresher,
            hosts=(HOST,),
            fallback_url="https://fallback.test/v1",
            interval=5.0,
            round_timeout=70.0,
        )
        if keep:
            self.nursery.start_soon(source.run)
        return source

    def flow(self):
        return self.source(keep=False).start_login()

    async def sign_in(self, *, approve=True):
        """Run a whole device flow, decided at once, and return its progress."""
        flow = self.flow()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.run)
            await flow.started.wait()
            assert self.emulator.identity.decide(flow.progress.user_code, approve=approve)
        return flow.progress

    def write(self, tokens):
        """Write the credential file as another program does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_bytes(dump(tokens))
        new.replace(self.path)

    def on_disk(self) -> TokenSet:
        found = self.file.load()
        assert found is not None
        return found


@asynccontextmanager
async def signed(tmp_path, **settings):
    """Yield a setup with an emulated identity server and one account that is not logged in yet."""
    emulator = Emulator()
    settings.setdefault("token_lifetime", LIFETIME)
    for name, value in settings.items():
        setattr(emulator.identity, name, value)
    path = tmp_path / "accounts" / "me" / "oauth_creds.json"
    async with trio.open_nursery() as nursery:

        async def connect(host, port):
            local, remote = trio.testing.memory_stream_pair()
            nursery.start_soon(emulator.handle, remote)
            return local

        transport = UpstreamTransport(transport_limits(), connect=connect)
        identity = IdentityClient(transport, PROVIDER, timeout=30.0)
        yield LoginSetup(emulator, identity, CredentialFile(path), path, nursery, transport)
        nursery.cancel_scope.cancel()
