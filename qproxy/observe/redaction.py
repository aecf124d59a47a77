"""Secrets out of text that is about to be logged.

Two nets.  What this process knows to be secret (keys and tokens of its settings) is replaced wherever it stands; what
looks like a secret (an Authorization field, `sk-...`, a JWT, a value named token or password) is replaced too, so that
somebody else's is not kept either.  Both are a last net: no code of ours logs a secret in the first place.

Clients choose part of what is logged, so every pattern takes a time that grows with the text and no faster.

`body` is for `log_bodies`: besides secrets it shortens what is large and says nothing (data: URIs, base64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SHORTEST = 8
"""Characters; a configured secret that is shorter would blank ordinary words."""
LONGEST_BODY = 64 * 1024
HIDDEN = "[hidden]"

_NAMED = re.compile(
    r"""(?ix)
    ( ["']? \b (?: [\w-]{0,40} (?:authorization|api[-_]?key|password|secret|verifier|cookie)
                 | (?:access|refresh|id|device|session|bearer)[-_]?(?:token|code) | token ) \b ["']?
      \s* [:=] \s* )
    ( ["'] (?:\\.|[^"'\\])* ["'] | (?:(?:bearer|basic)\s+)? [^\s,;"'}\]]+ )
    """
)
_SHAPED = re.compile(
    r"""(?x)
    \b (?i:bearer|basic) \s+ [A-Za-z0-9._~+/=-]{8,}     # RFC 9110 11.4
    | \b sk-[A-Za-z0-9_-]{8,}                           # keys of OpenAI, DashScope, qproxy
    | \b eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*   # JWT (RFC 7519)
    | (?<=://) [^\s/@:"']+ : [^\s/@"']+ (?=@)           # a URL's user and password
    """
)
_NAMES = (
    "authorization", "api-key", "api_key", "apikey", "password", "secret", "verifier", "cookie", "token", "code",
)  # fmt: skip
_ENDS = tuple("\"'=: \t\r\n")
"""What may follow a name that has a value."""
_SHAPES = ("sk-", "eyj", "bearer", "basic", "://")
"""Without one of these words (in lower case) the patterns find nothing: looking for them costs a tenth."""
_DATA_URI = re.compile(r"(data:[\w.+/-]*(?:;[\w=.-]+)*,)([A-Za-z0-9+/=_%-]{64,})")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{512,}={0,2}")


class Redactor:
    """Replaces secrets in text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= SHORTEST}, key=len, reverse=True)
        self._secrets = known
        self._known = re.compile("|".join(map(re.escape, known)))

    def __repr__(self) -> str:
        return "<Redactor>"

    def text(self, text: str) -> str:
        """The text without what is, or looks like, a secret."""
        if any(secret in text for secret in self._secrets):
            text = self._known.sub(HIDDEN, text)
        lowered = text.lower()
        named = [name for name in _NAMES if name in lowered]
        if any(name + end in lowered for name in named for end in _ENDS):
            text = _NAMED.sub(_hide_value, text)
        return _SHAPED.sub(HIDDEN, text) if any(shape in lowered for shape in _SHAPES) else text

    def body(self, data: bytes) -> str:
        """A request's or an answer's body as text to be logged."""
        text = data[:LONGEST_BODY].decode("utf-8", "replace")
        text = _BASE64.sub(_shorten, _DATA_URI.sub(lambda uri: uri[1] + _shorten(uri, 2), text))
        more = len(data) - LONGEST_BODY
        return self.text(text) + (f"... ({more} bytes more)" if more > 0 else "")


def _hide_value(match: re.Match[str]) -> str:
    quote = match[2][0] if match[2][0] in "\"'" else ""
    return f"{match[1]}{quote}{HIDDEN}{quote}"


def _shorten(match: re.Match[str], group: int = 0) -> str:
    return f"{match[group][:12]}...({len(match[group])} characters)"
