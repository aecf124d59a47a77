"""The emulated identity server: device flow with a page in the browser, tokens that end, refresh tokens that
rotate.

Here: what it remembers and what it answers, without a socket. It is as strict as the strictest real one: a
verifier must fit its challenge, polls that come too fast get `slow_down`, each refresh token works once, and
one that is used twice takes its whole family with it. `FAULTS` is what it does wrong on demand: `script(...)`
in a test, or `curl -d fault=html URL/emulator/next` by hand; `curl -X POST URL/emulator/expire` ends every
access token.

RFC 8628, RFC 7636, RFC 6749 6, RFC 9700 4.14.2 (reuse detection); bodies and habits are Qwen's (slow_down
with 429).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import trio

from qproxy.emulator.faults import CloseConnection, PauseStep, ScriptedReply, json_reply

DEVICE_PATH, TOKEN_PATH, PAGE_PATH = "/api/v1/oauth2/device/code", "/api/v1/oauth2/token", "/authorize"
CLIENT_ID = "f0304373b74a44d2b584a3fb70ca9e56"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
HTML = "text/html; charset=utf-8"
FAULTS: dict[str, ScriptedReply] = {
    "html": ScriptedReply((b"<html><script>aliyun_waf_aa</script></html>",), 200, HTML),
    "html-401": ScriptedReply((b"<html>blocked</html>",), 401, HTML),
    "503": json_reply({"error": "temporarily_unavailable"}, 503),
    "500-text": ScriptedReply((b"upstream connect error",), 500, "text/plain"),
    "429": json_reply({"error": "too_many_requests"}, 429),
    "slow_down": json_reply({"error": "slow_down"}, 429),
    "slow_down-400": json_reply({"error": "slow_down"}, 400),
    "empty": json_reply({}),
    "no-token": json_reply({"token_type": "Bearer", "expires_in": 3600}),
    "cut": ScriptedReply((b"{", CloseConnection()), 200, "application/json"),
    "hang": ScriptedReply((PauseStep(3600.0),), 200, "application/json"),
    "refused": json_reply({"error": "invalid_request", "error_description": "Invalid refresh token or "
                                                                            "client_id"}, 400),
    "denied": json_reply({"error": "access_denied"}, 400),
}  # fmt: skip
REFUSED = FAULTS["refused"]
TOKEN_REFUSED = json_reply(
    {
        "error": {
            "message": "invalid access token or token expired",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        },
        "request_id": "emu-token",
    },
    401,
)
"""The error of chat for an expired token."""


@dataclass(eq=False)
class DeviceGrant:
    """One sign-in."""

    user_code: str
    challenge: str
    expires: float
    decision: str = ""
    polled: float = float("-inf")


@dataclass(eq=False)
class TokenFamily:
    """The tokens that one sign-in led to."""

    refresh_token: str = ""
    revoked: bool = False
    access: dict[str, float] = field(default_factory=dict)
    """Access tokens and when they end."""


class IdentityServer:
    """An identity server's memory."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = trio.current_time,
        token_lifetime: float = 6 * 3600.0,
        device_lifetime: float = 900.0,
        interval: float | None = None,
        rotate: bool = True,
        resource_url: str | None = None,
        names_resource: bool = True,
    ) -> None:
        self.clock = clock
        self.token_lifetime = token_lifetime
        self.device_lifetime = device_lifetime
        self.interval = interval
        """What the answer names; Qwen's names nothing.  Two polls within it (or within 2 s) are too fast."""
        self.rotate = rotate
        self.resource_url = resource_url
        """Where the tokens may be used; None is this emulator itself."""
        self.names_resource = names_resource
        self.chat_refuses = False
        """Whether chat refuses every token, as it did when the free tier ended."""
        self.issued_count = 0
        self.reused_count = 0
        """How often a spent refresh token was shown."""
        self.flows: dict[str, DeviceGrant] = {}
        self._refresh: dict[str, TokenFamily] = {}
        self._access: dict[str, TokenFamily] = {}
        self._script: dict[str, deque[ScriptedReply]] = {DEVICE_PATH: deque(), TOKEN_PATH: deque()}

    def __repr__(self) -> str:
        return f"<Identity {len(self.flows)} flows, {self.issued_count} tokens issued>"

    def script(self, *replies: ScriptedReply, at: str = TOKEN_PATH) -> None:
        """Answer the next requests at a path with these, in order."""
        self._script[at].extend(replies)

    def decide(self, user_code: str, *, approve: bool = True) -> bool:
        """Apply the decision of the person at the page; return whether the code was pending."""
        for flow in self.flows.values():
            if (
                flow.user_code == user_code.strip().upper()
                and not flow.decision
                and self.clock() < flow.expires
            ):
                flow.decision = "approve" if approve else "deny"
                return True
        return False

    def has_code(self, token: str) -> bool:
        """Return whether an access token was issued here."""
        return token in self._access

    def accepts_token(self, token: str) -> bool:
        """Return whether chat accepts an access token now."""
        family = self._access[token]
        return not family.revoked and not self.chat_refuses and self.clock() < family.access[token]

    def expire(self) -> None:
        """End every access token now, before its time."""
        for family in self._refresh.values():
            family.access = dict.fromkeys(family.access, self.clock())

    def reply(
        self, method: str, path: str, query: Mapping[str, str], body: Any, origin: str
    ) -> ScriptedReply | None:
        """The answer; None for what is not an identity server's path."""
        form = body if isinstance(body, dict) else {}
        if method == "POST" and self._script.get(path):
            return self._script[path].popleft()
        match method, path:
            case "POST", "/api/v1/oauth2/device/code":
                return self._authorize(form, origin)
            case "POST", "/api/v1/oauth2/token":
                refresh = form.get("grant_type") == "refresh_token"
                return self._refresh_grant(form, origin) if refresh else self._poll(form, origin)
            case "GET", "/authorize":
                return _page(query.get("user_code", ""))
            case "POST", "/authorize":
                approve = form.get("decision") == "approve"
                if not self.decide(form.get("user_code", ""), approve=approve):
                    return _page(None, "There is no such code.")
                return _page(None, "Signed in." if approve else "Denied.")
            case "POST", "/emulator/next":
                return self._next(form)
            case "POST", "/emulator/expire":
                self.expire()
                return json_reply({"expired": True})
        return None

    def _authorize(self, form: Mapping[str, str], origin: str) -> ScriptedReply:
        if form.get("client_id") != CLIENT_ID or form.get("code_challenge_method") != "S256":
            return json_reply({"error": "invalid_client"}, 400)
        code, user_code = secrets.token_urlsafe(24), "".join(secrets.choice(LETTERS) for _ in range(8))
        ends = self.clock() + self.device_lifetime
        self.flows[code] = DeviceGrant(user_code, form.get("code_challenge", ""), ends)
        page = f"{origin}{PAGE_PATH}"
        answer = {
            "device_code": code,
            "user_code": user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={user_code}&client=qproxy",
            "expires_in": self.device_lifetime,
        }
        return json_reply(answer if self.interval is None else {**answer, "interval": self.interval})

    def _poll(self, form: Mapping[str, str], origin: str) -> ScriptedReply:
        code = form.get("device_code", "")
        flow, now = self.flows.get(code), self.clock()
        if flow is None or _challenge(form.get("code_verifier", "")) != flow.challenge:
            return json_reply({"error": "invalid_grant"}, 400)
        before, flow.polled = flow.polled, now
        if now >= flow.expires:
            return json_reply({"error": "expired_token"}, 400)
        if flow.decision == "deny":
            return json_reply({"error": "access_denied"}, 400)
        if now - before < (self.interval or 2.0) * 0.9:
            return FAULTS["slow_down"]
        if not flow.decision:
            return json_reply({"error": "authorization_pending"}, 400)
        del self.flows[code]
        return json_reply(self.issue(TokenFamily(), origin))

    def _refresh_grant(self, form: Mapping[str, str], origin: str) -> ScriptedReply:
        token = form.get("refresh_token", "")
        family = self._refresh.get(token)
        if family is None or family.revoked or form.get("client_id") != CLIENT_ID:
            return REFUSED
        if token != family.refresh_token:
            self.reused_count += 1
            family.revoked = True
            return REFUSED
        return json_reply(self.issue(family, origin))

    def issue(self, family: TokenFamily, origin: str) -> dict[str, Any]:
        """The next tokens of a family."""
        self.issued_count += 1
        access = f"emu-access-{secrets.token_urlsafe(24)}"
        family.access[access] = self.clock() + self.token_lifetime
        self._access[access] = family
        answer: dict[str, Any] = {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": self.token_lifetime,
            "scope": "openid profile email model.completion",
        }
        if self.rotate or not family.refresh_token:
            family.refresh_token = f"emu-refresh-{secrets.token_urlsafe(24)}"
            self._refresh[family.refresh_token] = family
            answer["refresh_token"] = family.refresh_token
        if self.names_resource:
            answer["resource_url"] = self.resource_url or origin
        return answer

    def _next(self, form: Mapping[str, str]) -> ScriptedReply:
        reply = FAULTS.get(form.get("fault", ""))
        if reply is None:
            return json_reply({"faults": list(FAULTS)}, 400)
        self.script(reply, at=DEVICE_PATH if form.get("at") == "device" else TOKEN_PATH)
        return json_reply({"next": form["fault"]})


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _page(user_code: str | None, message: str = "") -> ScriptedReply:
    """The page in the browser; without a code to decide on, only what became of it."""
    form = f"<p>{escape(message)} You may close this page.</p>"
    if user_code is not None:
        form = (
            f'<form method="post" action="{PAGE_PATH}"><p>A program wants to use your (emulated) Qwen '
            "account. Its code:</p>"
            f'<p><input name="user_code" value="{escape(user_code)}" size="10" autocomplete="off"></p>'
            '<p><button name="decision" value="approve">Approve</button> '
            '<button name="decision" value="deny">Deny</button></p></form>'
        )
    text = f'<!doctype html><meta charset="utf-8"><title>Qwen emulator</title><h1>Qwen emulator</h1>{form}'
    policy = "default-src 'none'; form-action 'self'; frame-ancestors 'none'"
    return ScriptedReply((text.encode(),), 200, HTML, (("content-security-policy", policy),))
