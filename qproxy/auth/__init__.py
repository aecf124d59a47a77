"""Obtain, keep and refresh the tokens of accounts.

source      what a request asks for: `Credential`, and an API key's source
oauth       the source of an account that was signed in, as requests see it
holding     what such an account holds in memory, its state and its words
keeper      the one task that watches the file and the clock, and refreshes
device      the device flow that signs in; `logins` holds those that run in a server
identity    the identity server over HTTP
files       the credential file; `locks` who may write it; `disk` both off the event loop; `sealing` encrypted
status      how such an account is doing, in words; `schedule` when its token is renewed
keepers     the tasks of a server's accounts
supervisor  tasks that are started again when they crash

Whoever waits for a token waits for `keeper`'s round; nobody else touches lock, file or identity server.
"""

from qproxy.auth.credentials import Credential, CredentialSource, StaticKey
from qproxy.auth.oauth_source import OAuthSource
from qproxy.auth.status import AccountStatus

__all__ = ["Credential", "CredentialSource", "OAuthSource", "StaticKey", "AccountStatus"]
