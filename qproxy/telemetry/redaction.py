"""Redaction of secrets in text to be logged.

Configured secrets (keys and tokens of the settings) are replaced everywhere; text that looks like a secret
(an Authorization header, `sk-...`, a JWT, a value named token or password) is replaced too. Both are a last
resort: qproxy does not log secrets in the first place.

Clients choose part of the logged text, so every pattern runs in linear time: repetitions are possessive, and
a value is consumed to its end, whether it is closed or truncated.

JSON is often nested in strings of other JSON (the arguments of a tool call), to any depth. Each level escapes
the quotes of the inner one: if a quote has n backslashes, one of the next level has 2n + 1, and a backslash
takes 2n + 2. So a value ends at the quote with the same number as its opening quote, or where an outer level
ends.

`body` is for `log_bodies`: it also shortens large opaque values (data: URIs, base64).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

MIN_SECRET_LENGTH = 8
"""Minimum characters of a configured secret: a shorter one would match ordinary words."""
MAX_LEVELS = 3
"""Levels of JSON within JSON at which configured secrets with escaped characters are recognized."""
MAX_BODY_LENGTH = 64 * 1024
REDACTED = "[hidden]"

_SHAPE_START = r"(?: \b | (?<=\\[bfnrt]) )"
"""Start of a word, which in JSON may follow an escaped line break."""
_PAIRS = r"(?: (?P=slashes) \\ (?P=slashes) \\ )*+"
"""Escaped backslashes in a value whose quotes have `slashes`."""
_NAMED = re.compile(
    rf"""(?ix)
    (?P<name> {_SHAPE_START}
      (?: [\w-]{{0,40}} (?: authorization | passw(?:or)?d | passphrase | secret | verifier | cookie
                         | (?:api|access|secret|private)[-_]?key )
        | (?: access|refresh|id|device|session|bearer|auth|api )[-_]?(?:token|code) | token ) \b
      (?: \\*+ ["'] )?+ [ \t\r\n]*+ [:=] [ \t\r\n]*+ )
    (?: (?P<open> (?P<slashes> (?: \\ (?:\\\\)*+ )?+ ) (?: (?P<double> " ) | ' ) )
        (?: [^\\"'] | \\++ [^\\"'] | {_PAIRS} (?P=slashes) \\ (?P=slashes) ["']
          | (?(double) \\*+ ' | (?!) ) )*+
        (?: {_PAIRS} (?P<close> (?P=open) ) )?+
      | (?: (?:bearer|basic) \s++ )? (?: [^\s,;"'}}\]\\] | \\++ (?!["']) )++ )
    """
)
_SHAPED = re.compile(
    rf"""(?x)
    {_SHAPE_START} (?:
        (?i:bearer|basic) \s++ [A-Za-z0-9._~+/=-]{{8,}}+           # RFC 9110 11.4
      | sk-[A-Za-z0-9_-]{{8,}}+                                  # OpenAI, DashScope, qproxy
      | eyJ[A-Za-z0-9_-]{{12,}}+ (?: \.[A-Za-z0-9_-]*+ ){{0,4}}+     # JWT, JWE (RFC 7519): base64 of '{{"'
      | (?: gh[pousr]_ | github_pat_ ) [A-Za-z0-9_]{{16,}}+
      | gl(?:pat|dt|rt|ptt|oas|cbt|ft|soat)-[A-Za-z0-9_-]{{16,}}+  # GitLab
      | (?: AKIA | ASIA | LTAI ) [A-Za-z0-9]{{12,}}+             # AWS, Alibaba Cloud
      | AIza[A-Za-z0-9_-]{{30,}}+ | ya29\.[A-Za-z0-9_-]{{16,}}+  # Google
      | xox[a-z]-[A-Za-z0-9-]{{10,}}+ | xapp-[A-Za-z0-9-]{{10,}}+  # Slack
      | [rs]k_(?:live|test)_[A-Za-z0-9]{{10,}}+                  # Stripe
      | (?: hf_ | npm_ | pypi- ) [A-Za-z0-9_-]{{20,}}+           # Hugging Face, npm, PyPI
      )
    | -----BEGIN\ [A-Z0-9\ ]{{0,40}}PRIVATE\ KEY(?:\ BLOCK)?-----  # RFC 7468, OpenPGP
      (?: [^-"'\\] | \\++ (?!["']) | - (?!----) )*+ (?: -----END\ [A-Z0-9\ ]{{1,60}}+ ----- )?+
    | (?<=://) [^\s/@:"']++ : [^\s/@"']++ (?=@)                  # a URL's user and password
    """
)
_NAMES = (
    "authorization", "password", "passwd", "passphrase", "secret", "verifier", "cookie", "token", "code",
    "_key", "-key", "ikey", "skey", "tkey", "ekey",
)  # fmt: skip
"""Endings of names of secret values; the last six are those of `api_key`, `accesskey` and the like."""
_VALUE_DELIMITERS = tuple("\\\"'=: \t\r\n")
"""Characters that may follow a name that has a value."""
_SECRET_SHAPES = (
    "sk-", "eyj", "bearer", "basic", "://", "akia", "asia", "ltai", "aiza", "ya29.", "xox", "xapp-",
    "k_live_", "k_test_",
    "hf_", "npm_", "pypi-", "private key",
)  # fmt: skip
_GIT = re.compile(r"gh[oprsu]_|github_pat_|gl[a-z]{2,4}-")
"""The patterns match only texts with one of these words (in lower case); the check takes a tenth of the
time."""
_ESCAPED = re.compile(r"(?<!\\)(\\++)u00(2[0-9a-f]|[3-6][0-9a-f]|7[0-9a-e])", re.IGNORECASE)
"""Escapes of ASCII characters that JSON need not escape; they could hide a secret."""
_DATA_URI = re.compile(r"(data:[\w.+/-]*+(?:;[\w=.-]++)*+,)([A-Za-z0-9+/=_%-]{64,}+)")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{512,}+={0,2}+")


class Redactor:
    """Replaces secrets in text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spelled = {
            spelling
            for secret in secrets
            if len(secret) >= MIN_SECRET_LENGTH
            for spelling in _encodings(secret)
        }
        known = sorted(spelled, key=len, reverse=True)
        self._secrets = known
        self._secret_pattern = re.compile("|".join(map(re.escape, known)))

    def __repr__(self) -> str:
        return "<Redactor>"

    def text(self, text: str) -> str:
        """Replace what is, or looks like, a secret."""
        if any(secret in text for secret in self._secrets):
            text = self._secret_pattern.sub(REDACTED, text)
        lowered = text.lower()
        named = [name for name in _NAMES if name in lowered]
        if any(name + end in lowered for name in named for end in _VALUE_DELIMITERS):
            text = _NAMED.sub(_hide_value, text)
        shaped = any(map(lowered.__contains__, _SECRET_SHAPES))
        if not shaped and ("gh" in lowered or "gl" in lowered):
            shaped = _GIT.search(lowered) is not None
        return _SHAPED.sub(REDACTED, text) if shaped else text

    def body(self, data: bytes) -> str:
        """Return a request's or response's body as text for the log."""
        text = _ESCAPED.sub(_unescape, data[:MAX_BODY_LENGTH].decode("utf-8", "replace"))
        text = _BASE64.sub(_shorten, _DATA_URI.sub(lambda uri: uri[1] + _shorten(uri, 2), text))
        more = len(data) - MAX_BODY_LENGTH
        return self.text(text) + (f"... ({more} bytes more)" if more > 0 else "")


def _encodings(secret: str) -> set[str]:
    """Return a secret as it is, in JSON, and in nested JSON."""
    found = {secret}
    for _ in range(MAX_LEVELS):
        found |= {json.dumps(text, ensure_ascii=plain)[1:-1] for text in found for plain in (False, True)}
    return found


def _hide_value(match: re.Match[str]) -> str:
    return f"{match['name']}{match['open'] or ''}{REDACTED}{match['close'] or ''}"


def _unescape(match: re.Match[str]) -> str:
    """Return the character; a quote with the backslashes of this depth."""
    char = chr(int(match[2], 16))
    if char == "\\":
        return match[0]
    return "\\" * (2 * len(match[1]) - 1) + char if char in "\"'" else char


def _shorten(match: re.Match[str], group: int = 0) -> str:
    return f"{match[group][:12]}...({len(match[group])} characters)"
