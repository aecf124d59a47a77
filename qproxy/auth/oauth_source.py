"""The credential source of a logged-in account.

Requests wait here for a refresh; tokens are sent to allowed hosts only. `auth.refresher` refreshes,
`auth.token_state` has the states.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from qproxy.auth.credentials import Credential
from qproxy.auth.device_flow import DeviceFlow
from qproxy.auth.refresher import RefreshRequest, TokenRefresher
from qproxy.auth.status import AccountStatus
from qproxy.auth.token_state import TokenState
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.oauth import base_url, sanitize


class OAuthSource:
    """The credentials of a logged-in account; its `run` must be running, supervised."""

    def __init__(
        self,
        token_state: TokenState,
        refresher: TokenRefresher,
        *,
        hosts: Sequence[str],
        fallback_url: str,
        interval: float,
        round_timeout: float,
    ) -> None:
        """`round_timeout`: seconds that a request waits for a refresh."""
        self.name = token_state.name
        self.refresher = refresher
        self.run = refresher.run
        self._token_state = token_state
        self._hosts = tuple(hosts)
        self._fallback_url = fallback_url
        self._interval = interval
        self._round_timeout = round_timeout

    def __repr__(self) -> str:
        status = self.status()
        return f"<OAuthSource {self.name}: {status.state}, generation {status.generation}>"

    async def credential(self) -> Credential:
        """Return the current token, after a refresh if it is about to expire. Raises UpstreamError."""
        if not self._has_usable_token():
            await self._request_refresh(RefreshRequest())
        tokens = self._token_state.tokens
        if tokens is None or not self._has_usable_token():
            raise self._unusable_error()
        return Credential(tokens.access_token, self._base_url(tokens), self._token_state.generation)

    async def report_rejected(self, credential: Credential, why: str = "") -> bool:
        """Refresh after a 401, once per generation; return whether there is a newer token.

        A token from such a refresh is refreshed again only if the upstream has accepted it since.
        """
        token_state = self._token_state
        if credential.generation == token_state.generation:
            if not token_state.can_force_refresh(trio.current_time()):
                token_state.rejected_by_api = token_state.generation, sanitize(why, token_state.secrets())
                return False
            await self._request_refresh(RefreshRequest(token_state.generation))
        return credential.generation != token_state.generation and self._has_usable_token()

    def report_accepted(self, credential: Credential) -> None:
        """Report that the upstream accepted this credential."""
        self._token_state.record_accepted(credential.generation)

    def start_login(self) -> DeviceFlow:
        """Return a login to this account, not started."""
        return self.refresher.start_login(self._interval)

    def reload(self) -> None:
        """Read the store now: a login in this process has changed it."""
        self.refresher.request_refresh(RefreshRequest())

    def status(self) -> AccountStatus:
        """Return the status of the account."""
        token_state, left = self._token_state, self.refresher.seconds_left()
        state = token_state.state(left)
        return AccountStatus(
            account=self.name,
            state=state,
            message=token_state.message(state),
            usable=token_state.is_usable(left),
            generation=token_state.generation,
            expires_at=token_state.tokens.expiry_date / 1000 if token_state.tokens is not None else None,
            refreshed_at=token_state.refreshed_at,
            refreshes=token_state.refreshes,
            failures=token_state.failures,
            last_error=token_state.last_error or token_state.storage_error,
            file=self.refresher.store.location,
        )

    def _has_usable_token(self) -> bool:
        return self._token_state.is_usable(self.refresher.seconds_left())

    async def _request_refresh(self, ask: RefreshRequest) -> None:
        self.refresher.request_refresh(ask)
        with trio.move_on_after(self._round_timeout):
            await ask.done.wait()

    def _base_url(self, tokens: TokenSet) -> str:
        if tokens.resource_url is None:
            return self._fallback_url
        try:
            return base_url(tokens.resource_url, self._hosts)
        except ValueError as error:
            raise self._login_error(
                f"its token must not be sent to this host: {error} (setting oauth_hosts)."
            ) from None

    def _unusable_error(self) -> UpstreamError:
        status = self.status()
        error = self._login_error(status.message)
        if status.state != "login_needed":
            error.retry_after = max(1.0, self._token_state.not_before - trio.current_time())
        return error

    def _login_error(self, text: str) -> UpstreamError:
        message = f"The Qwen account {self.name!r} cannot be used: {text}"
        return UpstreamError(message, code="upstream_credentials_exhausted", retry=RetryHint.OTHER_ACCOUNT)
