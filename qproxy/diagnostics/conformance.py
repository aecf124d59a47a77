"""Any OpenAI-compatible server, asked as a client's SDK asks it; its answers are held to OpenAI's contract.

Nothing is mended here: the bytes are read by `wire.sse` and `wire.conformance`, which take the server at its word.
Useful before a server becomes an account (vLLM, SGLang, llama.cpp, Ollama), and for qproxy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qproxy.diagnostics import network, probes
from qproxy.diagnostics.http_probe import HttpReply, fetch
from qproxy.diagnostics.probes import PARSER
from qproxy.diagnostics.report import Finding, State, last_failed
from qproxy.relay.chat_attempt import STREAM_TYPES
from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec, sse
from qproxy.wire.conformance import RULES, Violation, bodies, chat
from qproxy.wire.conformance.chat import ParsedResponse
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.catalog import EMPTY


@dataclass(slots=True)
class ConformanceCheck:
    """One server under examination."""

    url: str
    """Its base URL, without a slash at the end."""
    transport: UpstreamTransport
    wall_clock: Callable[[], float]
    key: str | None = field(default=None, repr=False)
    model: str | None = None
    catalog: ModelCatalog = EMPTY

    async def all(self, found: list[Finding], *, costs: bool = True) -> None:
        """Every question, the free ones first; what is found is added to `found`."""
        found += await network.check_route(self.url, self.transport, self.url, self.wall_clock())
        if last_failed(found):
            return
        try:
            names = await self._models(found)
            await self._error_shapes(found)
            if costs:
                await self._chat(names, found)
        except UpstreamError as error:
            found.append(self._finding("connection", "failed", error.message, "see the server's own log"))

    def _finding(self, name: str, state: State, text: str, advice: str = "", tokens: int = 0) -> Finding:
        return Finding(self.url, name, state, text, advice, tokens)

    def _violation_finding(
        self, name: str, found: Iterable[Violation], well: str, tokens: int = 0
    ) -> list[Finding]:
        """A finding for each breach, or one that there is none."""
        broken = list(dict.fromkeys(found))
        if not broken:
            return [self._finding(name, "ok", well, tokens=tokens)]
        costs = [tokens, *[0] * (len(broken) - 1)]
        return [
            self._finding(name, "failed", f"{rule}: {text}", RULES[rule], cost)
            for (rule, text), cost in zip(broken, costs, strict=True)
        ]

    async def _models(self, found: list[Finding]) -> list[str]:
        got = await self._send("GET", "/models")
        found.append(network.check_clock(got.header(b"date"), self.url, self.wall_clock()))
        if got.status != 200:
            advice = "give its key with --key" if got.status in (401, 403) else ""
            found.append(self._finding("models", "failed", got.message, advice))
            return []
        names, broken = bodies.check_models(got.json())
        found += self._violation_finding("models", broken, f"{len(names)} are listed")
        return names

    async def _error_shapes(self, found: list[Finding]) -> None:
        """How it says no; a request that it refuses costs nothing."""
        asked = {"model": "no-such-model-for-qproxy-check", "messages": probes.CHAT_PROMPT, "max_tokens": 1}
        got = await self._send("POST", "/chat/completions", asked)
        if got.status == 200:  # llama.cpp serves its one model whatever it is called
            found.append(self._finding("unknown model", "warning", "it is answered all the same"))
        else:
            found += self._violation_finding(
                "unknown model",
                bodies.check_error(got.status, got.json()),
                f"status {got.status}, in OpenAI's shape",
            )
        got = await self._send("POST", "/chat/completions", raw=b'{"model": ')
        found += self._violation_finding(
            "broken JSON",
            bodies.check_error(got.status, got.json()),
            f"status {got.status}, in OpenAI's shape",
        )

    async def _chat(self, names: list[str], found: list[Finding]) -> None:
        model = self.model or probes.chat_model(names, self.catalog)
        if model is None:
            found.append(
                self._finding("chat", "skipped", "no model to ask is known", "name one with --model")
            )
            return
        greeting = {"model": model, "messages": probes.CHAT_PROMPT, "max_tokens": probes.CHAT_PROMPT_TOKENS}
        errand = {
            "model": model,
            "messages": probes.TOOL_PROMPT,
            "max_tokens": probes.TOOL_PROMPT_TOKENS,
            "tools": probes.TOOLS,
        }
        if not await self._chat_response("chat, whole", greeting, found):
            return
        await self._chat_response("chat, streamed", {**greeting, "stream": True}, found)
        counted = {**greeting, "stream": True, "stream_options": {"include_usage": True}}
        await self._chat_response("chat, streamed with usage", counted, found)
        await self._chat_response("tool call, whole", errand, found)
        await self._chat_response("tool call, streamed", {**errand, "stream": True}, found)
        await self._embeddings(probes.embedding_model(names, self.catalog), found)

    async def _chat_response(self, name: str, body: dict[str, Any], found: list[Finding]) -> bool:
        """Ask and judge; whether there was an answer at all."""
        try:
            got = await self._send("POST", "/chat/completions", body)
        except UpstreamError as error:
            found.append(self._finding(name, "failed", f"{body['model']}: {error.message}"))
            return False
        if got.status != 200:
            found.append(self._finding(name, "failed", f"{body['model']}: {got.message}"))
            return False
        reading = read(got, stream=bool(body.get("stream")), usage="stream_options" in body)
        if reading.error is not None:
            found.append(self._finding(name, "failed", f"{body['model']}: {reading.error}"))
            return True
        well = f"{body['model']} answered, in OpenAI's shape"
        if "tools" in body and not reading.violations:
            trouble = probes.tool_call_problem(reading.calls, reading.finish_reasons)
            if trouble is not None:
                advice = "" if reading.calls else PARSER
                found.append(
                    self._finding(name, "warning", f"{body['model']}: {trouble}", advice, reading.tokens)
                )
                return True
            well = f"{reading.calls[0][0]}({reading.calls[0][1]:.60}), in OpenAI's shape"
        found += self._violation_finding(name, reading.violations, well, reading.tokens)
        return True

    async def _embeddings(self, model: str | None, found: list[Finding]) -> None:
        if model is None:
            found.append(self._finding("embeddings", "skipped", "no model that embeds is listed"))
            return
        for form in ("float", "base64"):
            body = {"model": model, "input": list(probes.TEXTS), "encoding_format": form}
            got, name = await self._send("POST", "/embeddings", body), f"embeddings, {form}"
            if got.status != 200:
                found.append(self._finding(name, "failed", f"{model}: {got.message}"))
            else:
                broken = bodies.check_embeddings(got.json(), len(probes.TEXTS), as_base64=form == "base64")
                found += self._violation_finding(name, broken, f"{model} gave {len(probes.TEXTS)} vectors")

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, raw: bytes | None = None
    ) -> HttpReply:
        fields = [(b"content-type", b"application/json")]
        if self.key:
            fields.append((b"authorization", b"Bearer " + self.key.encode()))
        data = raw if raw is not None else json_codec.dumps(body) if body is not None else b""
        request = HTTPRequest(method, f"{self.url}{path}", tuple(fields), data)
        return await fetch(self.transport, request)


def read(got: HttpReply, *, stream: bool, usage: bool) -> ParsedResponse:
    """An answer as a client reads it that asked for a stream, or for none."""
    kind = got.header(b"content-type").partition(";")[0].strip().lower()
    if not stream:
        reading = chat.check_response(got.json())
        right = kind == "application/json"
    else:
        decoder = sse.Decoder()
        events = [*decoder.feed(got.body), *decoder.close()]
        reading = chat.check_stream([event.data for event in events], usage=usage)
        right = kind == STREAM_TYPES[0]
    if not right:
        reading.note("content-type", f"it is {kind or 'absent'!r}")
    return reading
