"""The tokens of accounts for all processes of all machines.

A refresh token can be used once, and an identity server may end the login when one is used again. So the
steps are: take the lease of the account; read again; make room in this machine's copy; record on the server
that the token is about to be sent; send it; keep the new tokens in memory; publish them; write the copy;
give the lease back. A lease is checked in the last step before the token is sent, and must outlast the
exchange. New tokens are published without one: they replace an older generation, however late.

Each process keeps the newest generation that it knows in memory and on its disk, and gives it to a server
that has an older one: at every connection before anything else, and before every use. After a server has
changed (a restart, a failover) no token is sent before all others have had the time to do so.

A process that ended between sending a token and publishing its answer leaves the record that it was sent. No
process can know what came of it: the token is sent once more when the current one is about to expire, and
never again after that.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import trio

from qproxy.auth.credential_store import LockTimeout, RefreshTokenUsed, StorageError
from qproxy.auth.sealed_tokens import PendingCopy, SealedCopy, SealedTokens
from qproxy.backends.redis import reconnection
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.connection import Argument
from qproxy.backends.redis.errors import RedisError
from qproxy.backends.redis.pending_tokens import PendingTokens
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sealing import Sealer, SealError
from qproxy.backends.redis.subscriber import Changes
from qproxy.wire import credential_format
from qproxy.wire.credential_format import TokenSet

CREDENTIALS = load_script("credentials")
CHANNEL = "credentials"
LEASE_TIMEOUT = 29.0
"""Seconds to wait for the lease of another process."""
FIRST_PAUSE, MAX_PAUSE = 0.1, 2.0
DISK_TIMEOUT = 10.0
MIN_LEASE = 90.0
SEND_RESERVE = 10.0
"""Seconds of the lease that must be left after an exchange that takes as long as it may."""
RETRY_SECONDS = 5.0
"""Seconds in which a request to the server is repeated: a server that restarts is soon back."""
RETRY_PAUSE = 0.2
SENT, LOST, UNKNOWN, USED = 1, 0, 2, 3
"""Replies to `send`."""
log = logging.getLogger("qproxy.auth")


class RedisCredentials:
    """The store of one account."""

    timeout = 2 * LEASE_TIMEOUT + DISK_TIMEOUT

    def __init__(
        self,
        client: RedisClient,
        sealer: Sealer,
        account: str,
        copy: SealedCopy,
        *,
        exchange_timeout: float,
        script: Script = CREDENTIALS,
    ) -> None:
        """`exchange_timeout`: seconds that the identity server may take."""
        name = hashlib.sha256(account.encode()).hexdigest()[:32]
        self.location = f"shared_state ({client.address})"
        self.client = client
        self._key = f"{client.prefix}:{{a:{name}}}:tokens"
        self._channel = f"{client.prefix}:{CHANNEL}"
        self._script = script
        self._sealer = sealer
        self._copy = copy
        self._newest: SealedTokens | None = None
        """None before the copy has been read."""
        self._needed = exchange_timeout + SEND_RESERVE
        self._lease_seconds = max(MIN_LEASE, 2 * self._needed)
        self._settling_seconds = 2 * reconnection.MAX_PAUSE + client.connect_timeout
        """Within which all processes are connected to a server that has changed."""
        self._mutex = trio.Lock()
        self._lease: str | None = None
        self._has_disk = False
        self._copied: SealedTokens | None = None
        self.unsaved = False
        """Whether the newest tokens are in memory only."""
        self._known_send = "-"
        """The lease under which this process last sent a refresh token of which nothing came."""
        self._sending: tuple[str, str] | None = None
        """The lease and the digest of a refresh token that is being exchanged."""
        self._servers = self._server_ids()
        self._changed_at = trio.current_time()
        self._watcher: Callable[[], None] = lambda: None
        client.on_connect.append(self._on_connect)

    def __repr__(self) -> str:
        return f"<RedisCredentials {self._key}>"

    def watch(self, changed: Callable[[], None]) -> None:
        self._watcher = changed

    def receive(self, changes: Changes) -> None:
        """Have the watcher look, if tokens of this account were published."""
        if changes.everything or self._key in changes.messages:
            self._watcher()

    async def version(self) -> Hashable | None:
        newest = await self._synchronize()
        return None if self._open(newest) is None else newest

    async def load(self) -> TokenSet | None:
        return self._open(await self._synchronize())

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lease. Raises LockTimeout also when another process has refreshed meanwhile."""
        async with self._hold_lease(until_refreshed=True):
            yield

    @asynccontextmanager
    async def _hold_lease(self, *, until_refreshed: bool) -> AsyncIterator[None]:
        async with self._mutex, AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._copy.exclusive())
                self._has_disk = True
            except LockTimeout:
                raise
            except StorageError as error:
                log.warning("no copy of the tokens can be written: %s", error)
                self._has_disk = False
            lease = await self._acquire(until_refreshed)
            try:
                self._lease = lease
                yield
            finally:
                self._lease = None
                with trio.CancelScope(shield=True), suppress(RedisError):
                    await self._request("release", lease)

    async def prepare_write(self, refresh_token: str, *, urgent: bool = False) -> PendingTokens:
        newest = self._newest
        if self._lease is None or newest is None:
            raise LockTimeout("The lease of the tokens in shared_state is not held.")
        if refresh_token:
            self._require_newest(refresh_token, newest)
        room: PendingCopy | None = None
        if self._has_disk:
            try:
                room = await self._copy.prepare()
            except StorageError:
                if not urgent:
                    raise
        pending = PendingTokens(self, newest.generation, room, self._lease)
        if refresh_token:
            try:
                await self._record_send(pending, refresh_token, urgent)
            except BaseException:
                with trio.CancelScope(shield=True), suppress(StorageError):
                    await pending.discard()
                raise
        return pending

    def _require_newest(self, refresh_token: str, newest: SealedTokens) -> None:
        """Raise LockTimeout unless a refresh token is that of the newest generation, which can be read."""
        try:
            tokens = self._open(newest)
        except StorageError as error:
            raise LockTimeout(str(error)) from None
        if tokens is None or tokens.refresh_token != refresh_token:
            raise LockTimeout("Another process has refreshed the token.")

    async def save(self, tokens: TokenSet) -> None:
        async with self._hold_lease(until_refreshed=False):
            await self._replace(tokens)

    async def remove(self) -> bool:
        if await self.version() is None:
            return False
        async with self._hold_lease(until_refreshed=False):
            await self._replace(None)
        return True

    async def _replace(self, tokens: TokenSet | None) -> None:
        with trio.CancelScope(shield=True):
            pending = await self.prepare_write("", urgent=True)
            try:
                await pending.commit(tokens)
            finally:
                await pending.discard()

    async def publish(self, tokens: SealedTokens) -> bool:
        """Make these tokens the newest ones, also if the server does not reply now; return whether it did."""
        self._newest, self._sending = tokens, None
        try:
            reply = await self._repeat("write", *tokens, self._channel)
        except RedisError as error:
            log.warning("new tokens are published when the server is back: %s", error)
            return False
        self._newest = SealedTokens(int(reply[0]), bytes(reply[1]))  # another one's, if a login was faster
        return True

    def seal(self, tokens: TokenSet | None, generation: int) -> SealedTokens:
        """Return the tokens as a generation; None for a logout."""
        data = b"" if tokens is None else credential_format.dump(tokens)
        return SealedTokens(generation, self._sealer.seal(data, self._key, generation))

    async def record_outcome(self, operation: str, lease: str, digest: str) -> None:
        """Record what came of a refresh token that was sent (`forget`: nothing, `reject`)."""
        self._sending = None
        if operation == "forget":
            self._known_send = lease
        with suppress(RedisError):
            await self._request(operation, lease, digest)

    def _open(self, tokens: SealedTokens) -> TokenSet | None:
        if not tokens.sealed:
            return None
        try:
            data = self._sealer.open(tokens.sealed, self._key, tokens.generation)
            return credential_format.load(data) if data else None
        except SealError as error:
            raise StorageError(str(error)) from None

    async def _synchronize(self) -> SealedTokens:
        """Return the newest tokens of the server and this process; this process's, without the server."""
        newest = await self._known()
        try:
            generation, sealed = await self._request("read", "")
        except RedisError as error:
            if not newest.generation or self.unsaved:
                raise StorageError(f"shared_state cannot be used: {error}.") from None
            return newest
        newest = await self._merge(SealedTokens(generation, sealed))
        self.unsaved = False
        if self._lease is None and self._copied != newest:
            with suppress(StorageError):
                if await self._copy.keep(newest):
                    self._copied = newest
        return newest

    async def _known(self) -> SealedTokens:
        if self._newest is not None:
            return self._newest
        try:
            copy = await self._copy.read()
            self._open(copy)
        except StorageError as error:  # damaged, or of another installation
            log.warning("the copy of the tokens is not used: %s", error)
            copy = SealedTokens()
        self._copied = copy
        self._newest = self._newest or copy
        return self._newest

    async def _merge(self, found: SealedTokens) -> SealedTokens:
        """Adopt newer tokens of the server, or give it those of this process; return the newest ones."""
        newest = await self._known()
        if found.generation < newest.generation:
            with suppress(RedisError):
                generation, sealed = await self._request("write", *newest, self._channel)
                found = SealedTokens(generation, sealed)
        if found.generation >= newest.generation and found != newest:
            self._open(found)  # raises StorageError: what cannot be read replaces nothing
            self._newest = newest = found
        return newest

    async def _acquire(self, until_refreshed: bool) -> str:
        """Take the lease. Raises LockTimeout, StorageError."""
        before = await self._known()
        lease, pause = f"{self.client.process}:{secrets.token_hex(8)}", FIRST_PAUSE
        started, lease_ms = trio.current_time(), round(self._lease_seconds * 1000)
        try:
            while True:
                settled = self._changed_at + self._settling_seconds
                if trio.current_time() < settled:  # the other processes give the server what it may lack
                    await trio.sleep_until(settled)
                    continue
                try:
                    taken, *found = await self._request("acquire", lease, lease_ms)
                except RedisError:
                    if trio.current_time() - started >= RETRY_SECONDS:
                        raise
                    await trio.sleep(RETRY_PAUSE)
                    continue
                newest = await self._merge(SealedTokens(*found))
                if taken:
                    return lease
                if until_refreshed and before.generation and newest != before:
                    raise LockTimeout("Another process has refreshed the token.")
                if trio.current_time() + pause > started + LEASE_TIMEOUT:
                    raise LockTimeout(f"Another process has held the tokens for {LEASE_TIMEOUT:g} s.")
                await trio.sleep(pause)
                pause = min(pause * 1.5, MAX_PAUSE)
        except RedisError as error:
            self._release(lease)
            raise LockTimeout(
                f"shared_state cannot be used ({error}), and no token is refreshed without it."
            ) from None
        except BaseException:
            self._release(lease)
            raise

    def _release(self, lease: str) -> None:
        with suppress(RedisError):  # the lease ends by itself, too
            self.client.send(self._command("release", lease), lambda reply: None)

    async def _record_send(self, pending: PendingTokens, refresh_token: str, urgent: bool) -> None:
        """Record that the refresh token is about to be sent. Raises StorageError, RefreshForbidden."""
        digest = hashlib.sha256(refresh_token.encode("utf-8", "surrogatepass")).hexdigest()
        pending.digest, needed = digest, round(self._needed * 1000)
        try:
            reply = await self._request("send", pending.lease, digest, needed, int(urgent), self._known_send)
        except RedisError as error:
            raise LockTimeout(f"shared_state cannot be used: {error}.") from None
        if reply != SENT:
            pending.digest = ""
        if reply == LOST:
            raise LockTimeout("The lease of the tokens in shared_state was lost.")
        if reply == UNKNOWN:
            raise StorageError(
                "A process has sent the refresh token and ended: it is sent again when the current token is "
                "about to expire."
            )
        if reply == USED:
            raise RefreshTokenUsed("The refresh token was rejected, or sent twice without a known outcome.")
        self._sending = pending.lease, digest

    def _on_connect(self) -> None:
        """Give the server what it may lack, before any other command: new tokens, and what is being sent."""
        servers = self._server_ids()
        if servers != self._servers:
            self._servers, self._changed_at = servers, trio.current_time()
        commands: list[tuple[Argument, ...]] = []
        if self._newest is not None and self._newest.generation:
            commands.append(("write", *self._newest, self._channel))
        if self._sending is not None:
            lease, digest = self._sending
            commands.append(("acquire", lease, round(self._lease_seconds * 1000)))
            commands.append(("send", lease, digest, 0, 0, lease))
        with suppress(RedisError):
            for command in commands:
                self.client.send(self._command(*command), lambda reply: None)

    def _server_ids(self) -> tuple[str, ...]:
        return tuple(node.server.run_id for node in self.client.nodes if node.server)

    async def _repeat(self, *arguments: Argument) -> Any:
        """Return the reply to an operation that may be repeated. Raises a RedisError after a while."""
        until = trio.current_time() + RETRY_SECONDS
        while True:
            try:
                return await self._request(*arguments)
            except RedisError:
                if trio.current_time() >= until:
                    raise
                await trio.sleep(RETRY_PAUSE)

    async def _request(self, *arguments: Argument) -> Any:
        return await self.client.run_script(self._script, self._key, *arguments)

    def _command(self, *arguments: Argument) -> tuple[Argument, ...]:
        return self.client.script_command(self._script, self._key, *arguments)
