"""Obtain, keep and refresh the tokens of accounts.

credentials       what a request asks for: `Credential`, and an API key's source
oauth_source      the source of an account that was signed in, as requests see it
token_state       what such an account holds in memory, its state and its words
refresher         the one task that watches the file and the clock, and refreshes
device_flow       the device flow that signs in; `login_sessions` holds those that run in a server
identity_client   the identity server over HTTP
credential_file   the credential file; `lock` who may write it; `blocking` both off the event loop; `encryption` encrypted
status            how such an account is doing, in words; `refresh_schedule` when its token is renewed
background        the tasks of a server's accounts
supervised_task   a task that is started again when it crashes

Whoever waits for a token waits for `refresher`'s round; nobody else touches lock, file or identity server.
"""

from qproxy.auth.credentials import Credential, CredentialSource, StaticKey
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import AccountStatus

__all__ = ["AccountStatus", "Credential", "CredentialSource", "OAuthSource", "StaticKey"]
