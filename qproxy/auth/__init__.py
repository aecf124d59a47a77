"""Obtain, keep and refresh the tokens of accounts.

credentials       `Credential`, the source of credentials, and an API key
oauth_source      the credential source of a logged-in account
token_state       the tokens of such an account in memory, its state and message
refresher         the task that watches the store and the clock, and refreshes tokens
device_flow       a login by device flow; `login_sessions` holds the logins of a server
identity_client   the identity server over HTTP
credential_store  the interface of the token store; `encryption` of stored tokens
status            the status of such an account; `refresh_schedule` when its token is refreshed
background        the tasks of a server's accounts
supervised_task   a task that is restarted when it crashes

Requests wait for a round of `refresher`, which alone uses the store and the identity server.
"""

from qproxy.auth.credentials import Credential, CredentialSource, StaticKey
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import AccountStatus

__all__ = ["AccountStatus", "Credential", "CredentialSource", "OAuthSource", "StaticKey"]
