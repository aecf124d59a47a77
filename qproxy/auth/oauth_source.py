"""The credential source of an account that was signed in by the device flow, as requests see it.

Here: what a request waits for, where a token may go, and the errors that say why there is none.  Not here: any refresh
(`auth.keeper`) and the states themselves (`auth.holding`).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from qproxy.auth.credentials import Credential
from qproxy.auth.device_flow import DeviceFlow
from qproxy.auth.refresher import Ask, Keeper
from qproxy.auth.status import Status
from qproxy.auth.token_state import Holding
from qproxy.wire.credential_format import Tokens
from qproxy.wire.errors import Retry, UpstreamError
from qproxy.wire.oauth import base_url, clean


class OAuthSource:
    """A signed-in account; its `keep` must be running, supervised."""

    def __init__(
        self,
        holding: Holding,
        keeper: Keeper,
        *,
        hosts: Sequence[str],
        fallback_url: str,
        interval: float = 5.0,
        patience: float = 70.0,
    ) -> None:
        """`patience` is how long a request waits for a round."""
        self.name = holding.name
        self.keeper = keeper
        self.keep = keeper.keep
        self._holding = holding
        self._hosts = tuple(hosts)
        self._fallback_url = fallback_url
        self._interval = interval
        self._patience = patience

    def __repr__(self) -> str:
        status = self.status()
        return f"<OAuthSource {self.name}: {status.state}, generation {status.generation}>"

    async def credential(self) -> Credential:
        """The token to use now; waits for a refresh where the one before is about to end."""
        if not self._usable():
            await self._round(Ask())
        tokens = self._holding.tokens
        if tokens is None or not self._usable():
            raise self._unusable()
        return Credential(tokens.access_token, self._base_url(tokens), self._holding.generation)

    async def refused(self, credential: Credential, why: str = "") -> bool:
        """Chat answered 401 to this credential: refresh, once for each generation.  Whether there is a newer one now.

        A token that a refresh of this kind has brought is refreshed again if chat has let it in since.
        """
        holding = self._holding
        if credential.generation == holding.generation:
            if not holding.may_force(trio.current_time()):
                holding.chat = holding.generation, clean(why, holding.secrets())
                return False
            await self._round(Ask(holding.generation))
        return credential.generation != holding.generation and self._usable()

    def accepted(self, credential: Credential) -> None:
        """Chat has let this credential in."""
        self._holding.note_accepted(credential.generation)

    def flow(self) -> DeviceFlow:
        """A sign-in to this account, not begun."""
        return self.keeper.flow(self._interval)

    def look_again(self) -> None:
        """The file has just changed (a sign-in in this process): read it now."""
        self.keeper.ask(Ask())

    def status(self) -> Status:
        """How the account is doing."""
        holding, left = self._holding, self.keeper.left()
        state = holding.state(left)
        return Status(
            account=self.name,
            state=state,
            words=holding.words(state),
            usable=holding.usable(left),
            generation=holding.generation,
            expires_at=holding.tokens.expiry_date / 1000 if holding.tokens is not None else None,
            refreshed_at=holding.refreshed_at,
            refreshes=holding.refreshes,
            failures=holding.failures,
            last_error=holding.said or holding.disk,
            file=str(self.keeper.file.path),
        )

    def _usable(self) -> bool:
        return self._holding.usable(self.keeper.left())

    async def _round(self, ask: Ask) -> None:
        self.keeper.ask(ask)
        with trio.move_on_after(self._patience):
            await ask.done.wait()

    def _base_url(self, tokens: Tokens) -> str:
        if tokens.resource_url is None:
            return self._fallback_url
        try:
            return base_url(tokens.resource_url, self._hosts)
        except ValueError as error:
            raise self._error(f"its token may not be used: {error} (setting oauth_hosts).") from None

    def _unusable(self) -> UpstreamError:
        status = self.status()
        error = self._error(status.words)
        if status.state != "login_needed":
            error.retry_after = max(1.0, self._holding.not_before - trio.current_time())
        return error

    def _error(self, words: str) -> UpstreamError:
        message = f"The Qwen account {self.name!r} cannot be used: {words}"
        return UpstreamError(message, code="upstream_credentials_exhausted", retry=Retry.ELSEWHERE)
