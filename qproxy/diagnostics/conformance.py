"""Checks of any OpenAI-compatible server against OpenAI's contract, with requests as an SDK sends them.

Nothing is repaired: `wire.sse` and `wire.conformance` read the bytes as they are. Useful before a server
becomes an account (vLLM, SGLang, llama.cpp, Ollama), and for qproxy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qproxy.diagnostics import network, probes
from qproxy.diagnostics.http_probe import WEB_PAGE_ADVICE, HttpReply, fetch, versioned_base_url
from qproxy.diagnostics.probes import PARSER
from qproxy.diagnostics.report import Finding, State, last_failed
from qproxy.relay.chat_attempt import STREAM_TYPES
from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec, sse
from qproxy.wire.conformance import RULES, Violation, bodies, chat
from qproxy.wire.conformance.chat import ParsedResponse
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import Headers, HTTPRequest
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import EMPTY


@dataclass(slots=True)
class ConformanceCheck:
    """The checks of one server."""

    url: str
    """Base URL without a trailing slash."""
    transport: UpstreamTransport
    wall_clock: Callable[[], float]
    key: str | None = field(default=None, repr=False)
    model: str | None = None
    catalog: ModelCatalog = EMPTY

    async def all(self, found: list[Finding], *, costs: bool = True) -> None:
        """Run all checks, the free ones first, and add the findings to `found`."""
        found += await network.check_route(self.url, self.transport, self.url, self.wall_clock())
        if last_failed(found):
            return
        try:
            names = await self._models(found)
            if names is None:
                return
            await self._error_shapes(found)
            if costs:
                await self._chat(names, found)
        except UpstreamError as error:
            found.append(self._finding("connection", "failed", error.message, "check the server's log"))

    def _finding(self, name: str, state: State, text: str, advice: str = "", tokens: int = 0) -> Finding:
        return Finding(self.url, name, state, text, advice, tokens)

    def _violation_finding(
        self, name: str, violations: Iterable[Violation], text: str, tokens: int = 0
    ) -> list[Finding]:
        """Return a failed finding per violation, or an ok one with `text`."""
        distinct = list(dict.fromkeys(violations))
        if not distinct:
            return [self._finding(name, "ok", text, tokens=tokens)]
        costs = [tokens, *[0] * (len(distinct) - 1)]
        return [
            self._finding(name, "failed", f"{rule}: {message}", RULES[rule], cost)
            for (rule, message), cost in zip(distinct, costs, strict=True)
        ]

    async def _models(self, found: list[Finding]) -> list[str] | None:
        """Return the listed models; None if no other check can pass either."""
        reply = await self._send("GET", "/models")
        found.append(network.check_clock(reply.header(b"date"), self.url, self.wall_clock()))
        if reply.status in (401, 403):
            advice = "check the key" if self.key else "pass the key with --key"
            found.append(self._finding("models", "failed", reply.message, advice))
            return None
        names, violations = bodies.check_models(reply.json())
        if reply.status != 200 or violations:
            url = await versioned_base_url(self.transport, self.url, self._headers())
            if url is not None:
                text = f"{self.url} has no model list, {url} has one"
                found.append(self._finding("models", "failed", text, f"use {url}"))
                return None
        if reply.is_web_page:
            found.append(
                self._finding("models", "failed", f"a web page (status {reply.status})", WEB_PAGE_ADVICE)
            )
            return None
        if reply.status != 200:
            found.append(self._finding("models", "failed", reply.message))
            return []
        found += self._violation_finding("models", violations, f"{len(names)} listed")
        return names

    async def _error_shapes(self, found: list[Finding]) -> None:
        """Check its error responses; rejected requests cost nothing."""
        request = {"model": "no-such-model-for-qproxy-check", "messages": probes.CHAT_PROMPT, "max_tokens": 1}
        reply = await self._send("POST", "/chat/completions", request)
        if reply.status == 200:  # llama.cpp serves its only model under any name
            found.append(self._finding("unknown model", "warning", "the server ignores the model name"))
        else:
            found += self._violation_finding(
                "unknown model",
                bodies.check_error(reply.status, reply.json()),
                f"status {reply.status} in OpenAI's format",
            )
        reply = await self._send("POST", "/chat/completions", raw=b'{"model": ')
        found += self._violation_finding(
            "broken JSON",
            bodies.check_error(reply.status, reply.json()),
            f"status {reply.status} in OpenAI's format",
        )

    async def _chat(self, names: list[str], found: list[Finding]) -> None:
        model = self.model or probes.chat_model(names, self.catalog)
        if model is None:
            found.append(self._finding("chat", "skipped", "no model to test", "name one with --model"))
            return
        greeting = {"model": model, "messages": probes.CHAT_PROMPT, "max_tokens": probes.CHAT_PROMPT_TOKENS}
        tool_request = {
            "model": model,
            "messages": probes.TOOL_PROMPT,
            "max_tokens": probes.TOOL_PROMPT_TOKENS,
            "tools": probes.TOOLS,
        }
        if not await self._chat_response("chat, non-streamed", greeting, found):
            return
        await self._chat_response("chat, streamed", {**greeting, "stream": True}, found)
        counted = {**greeting, "stream": True, "stream_options": {"include_usage": True}}
        await self._chat_response("chat, streamed with usage", counted, found)
        await self._chat_response("tool call, non-streamed", tool_request, found)
        await self._chat_response("tool call, streamed", {**tool_request, "stream": True}, found)
        await self._embeddings(probes.embedding_model(names, self.catalog), found)

    async def _chat_response(self, name: str, body: dict[str, Any], found: list[Finding]) -> bool:
        """Send a chat request and check the response; return whether there was one."""
        try:
            reply = await self._send("POST", "/chat/completions", body)
        except UpstreamError as error:
            found.append(self._finding(name, "failed", f"{body['model']}: {error.message}"))
            return False
        if reply.status != 200:
            found.append(self._finding(name, "failed", f"{body['model']}: {reply.message}"))
            return False
        response = read(reply, stream=bool(body.get("stream")), usage="stream_options" in body)
        if response.error is not None:
            found.append(self._finding(name, "failed", f"{body['model']}: {response.error}"))
            return True
        text = f"{body['model']} responded in OpenAI's format"
        if "tools" in body and not response.violations:
            problem = probes.tool_call_problem(response.calls, response.finish_reasons)
            if problem is not None:
                advice = "" if response.calls else PARSER
                found.append(
                    self._finding(name, "warning", f"{body['model']}: {problem}", advice, response.tokens)
                )
                return True
            text = f"{response.calls[0][0]}({response.calls[0][1]:.60}) in OpenAI's format"
        found += self._violation_finding(name, response.violations, text, response.tokens)
        return True

    async def _embeddings(self, model: str | None, found: list[Finding]) -> None:
        if model is None:
            found.append(self._finding("embeddings", "skipped", "no embedding model listed"))
            return
        for form in ("float", "base64"):
            body = {"model": model, "input": list(probes.TEXTS), "encoding_format": form}
            reply, name = await self._send("POST", "/embeddings", body), f"embeddings, {form}"
            if reply.status != 200:
                found.append(self._finding(name, "failed", f"{model}: {reply.message}"))
            else:
                violations = bodies.check_embeddings(
                    reply.json(), len(probes.TEXTS), as_base64=form == "base64"
                )
                found += self._violation_finding(
                    name, violations, f"{model} returned {len(probes.TEXTS)} vectors"
                )

    def _headers(self) -> Headers:
        authorization = [(b"authorization", b"Bearer " + self.key.encode())] if self.key else []
        return ((b"content-type", b"application/json"), *authorization)

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, raw: bytes | None = None
    ) -> HttpReply:
        data = raw if raw is not None else json_codec.dumps(body) if body is not None else b""
        request = HTTPRequest(method, f"{self.url}{path}", self._headers(), data)
        return await fetch(self.transport, request)


def read(reply: HttpReply, *, stream: bool, usage: bool) -> ParsedResponse:
    """Return the response as a client reads it, with its violations of OpenAI's contract."""
    kind = reply.header(b"content-type").partition(";")[0].strip().lower()
    if not stream:
        response = chat.check_response(reply.json())
        is_expected = kind == "application/json"
    else:
        decoder = sse.Decoder()
        events = [*decoder.feed(reply.body), *decoder.close()]
        response = chat.check_stream([event.data for event in events], usage=usage)
        is_expected = kind == STREAM_TYPES[0]
    if not is_expected:
        response.note("content-type", f"unexpected content type {kind or '(none)'!r}")
    return response
