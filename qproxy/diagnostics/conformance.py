"""Any OpenAI-compatible server, asked as a client's SDK asks it; its answers are held to OpenAI's contract.

Nothing is mended here: the bytes are read by `wire.sse` and `wire.contract`, which take the server at its word.
Useful before a server becomes an account (vLLM, SGLang, llama.cpp, Ollama), and for qproxy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qproxy.diagnostics import network as way
from qproxy.diagnostics import probes as questions
from qproxy.diagnostics.http_probe import Got, asked
from qproxy.diagnostics.probes import PARSER
from qproxy.diagnostics.report import Finding, State, stuck
from qproxy.relay.relay import STREAM_TYPES
from qproxy.transport import Transport
from qproxy.wire import json_codec as jsontext
from qproxy.wire import sse
from qproxy.wire.conformance import RULES, Breach, chat
from qproxy.wire.conformance import bodies as plain
from qproxy.wire.conformance.chat import Reading
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest


@dataclass(slots=True)
class Probe:
    """One server under examination."""

    url: str
    """Its base URL, without a slash at the end."""
    transport: Transport
    wall: Callable[[], float]
    key: str | None = field(default=None, repr=False)
    model: str | None = None

    async def all(self, found: list[Finding], *, costs: bool = True) -> None:
        """Every question, the free ones first; what is found is added to `found`."""
        found += await way.to(self.url, self.transport, self.url, self.wall())
        if stuck(found):
            return
        try:
            names = await self._models(found)
            await self._refusals(found)
            if costs:
                await self._questions(names, found)
        except UpstreamError as error:
            found.append(self._finding("connection", "failed", error.message, "see the server's own log"))

    def _finding(self, name: str, state: State, words: str, advice: str = "", tokens: int = 0) -> Finding:
        return Finding(self.url, name, state, words, advice, tokens)

    def _judged(self, name: str, found: Iterable[Breach], well: str, tokens: int = 0) -> list[Finding]:
        """A finding for each breach, or one that there is none."""
        broken = list(dict.fromkeys(found))
        if not broken:
            return [self._finding(name, "ok", well, tokens=tokens)]
        costs = [tokens, *[0] * (len(broken) - 1)]
        return [
            self._finding(name, "failed", f"{rule}: {words}", RULES[rule], cost)
            for (rule, words), cost in zip(broken, costs, strict=True)
        ]

    async def _models(self, found: list[Finding]) -> list[str]:
        got = await self._send("GET", "/models")
        found.append(way.clock(got.header(b"date"), self.url, self.wall()))
        if got.status != 200:
            advice = "give its key with --key" if got.status in (401, 403) else ""
            found.append(self._finding("models", "failed", got.said, advice))
            return []
        names, broken = plain.models(got.json())
        found += self._judged("models", broken, f"{len(names)} are listed")
        return names

    async def _refusals(self, found: list[Finding]) -> None:
        """How it says no; a request that it refuses costs nothing."""
        asked = {"model": "no-such-model-for-qproxy-check", "messages": questions.GREETING, "max_tokens": 1}
        got = await self._send("POST", "/chat/completions", asked)
        if got.status == 200:  # llama.cpp serves its one model whatever it is called
            found.append(self._finding("unknown model", "warning", "it is answered all the same"))
        else:
            found += self._judged(
                "unknown model",
                plain.error(got.status, got.json()),
                f"status {got.status}, in OpenAI's shape",
            )
        got = await self._send("POST", "/chat/completions", raw=b'{"model": ')
        found += self._judged(
            "broken JSON", plain.error(got.status, got.json()), f"status {got.status}, in OpenAI's shape"
        )

    async def _questions(self, names: list[str], found: list[Finding]) -> None:
        model = self.model or questions.chat_model(names)
        if model is None:
            found.append(
                self._finding("chat", "skipped", "no model to ask is known", "name one with --model")
            )
            return
        greeting = {"model": model, "messages": questions.GREETING, "max_tokens": questions.GREETING_TOKENS}
        errand = {
            "model": model,
            "messages": questions.ERRAND,
            "max_tokens": questions.ERRAND_TOKENS,
            "tools": questions.TOOLS,
        }
        if not await self._answer("chat, whole", greeting, found):
            return
        await self._answer("chat, streamed", {**greeting, "stream": True}, found)
        counted = {**greeting, "stream": True, "stream_options": {"include_usage": True}}
        await self._answer("chat, streamed with usage", counted, found)
        await self._answer("tool call, whole", errand, found)
        await self._answer("tool call, streamed", {**errand, "stream": True}, found)
        await self._embeddings(questions.embedding_model(names), found)

    async def _answer(self, name: str, body: dict[str, Any], found: list[Finding]) -> bool:
        """Ask and judge; whether there was an answer at all."""
        try:
            got = await self._send("POST", "/chat/completions", body)
        except UpstreamError as error:
            found.append(self._finding(name, "failed", f"{body['model']}: {error.message}"))
            return False
        if got.status != 200:
            found.append(self._finding(name, "failed", f"{body['model']}: {got.said}"))
            return False
        reading = read(got, stream=bool(body.get("stream")), usage="stream_options" in body)
        if reading.error is not None:
            found.append(self._finding(name, "failed", f"{body['model']}: {reading.error}"))
            return True
        well = f"{body['model']} answered, in OpenAI's shape"
        if "tools" in body and not reading.breaches:
            trouble = questions.errand_trouble(reading.calls, reading.reasons)
            if trouble is not None:
                advice = "" if reading.calls else PARSER
                found.append(
                    self._finding(name, "warning", f"{body['model']}: {trouble}", advice, reading.tokens)
                )
                return True
            well = f"{reading.calls[0][0]}({reading.calls[0][1]:.60}), in OpenAI's shape"
        found += self._judged(name, reading.breaches, well, reading.tokens)
        return True

    async def _embeddings(self, model: str | None, found: list[Finding]) -> None:
        if model is None:
            found.append(self._finding("embeddings", "skipped", "no model that embeds is listed"))
            return
        for form in ("float", "base64"):
            body = {"model": model, "input": list(questions.TEXTS), "encoding_format": form}
            got, name = await self._send("POST", "/embeddings", body), f"embeddings, {form}"
            if got.status != 200:
                found.append(self._finding(name, "failed", f"{model}: {got.said}"))
            else:
                broken = plain.embeddings(got.json(), len(questions.TEXTS), as_base64=form == "base64")
                found += self._judged(name, broken, f"{model} gave {len(questions.TEXTS)} vectors")

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, raw: bytes | None = None
    ) -> Got:
        fields = [(b"content-type", b"application/json")]
        if self.key:
            fields.append((b"authorization", b"Bearer " + self.key.encode()))
        data = raw if raw is not None else jsontext.dumps(body) if body is not None else b""
        request = HTTPRequest(method, f"{self.url}{path}", tuple(fields), data)
        return await asked(self.transport, request)


def read(got: Got, *, stream: bool, usage: bool) -> Reading:
    """An answer as a client reads it that asked for a stream, or for none."""
    kind = got.header(b"content-type").partition(";")[0].strip().lower()
    if not stream:
        reading = chat.whole(got.json())
        right = kind == "application/json"
    else:
        decoder = sse.Decoder()
        events = [*decoder.feed(got.body), *decoder.close()]
        reading = chat.stream([event.data for event in events], usage=usage)
        right = kind == STREAM_TYPES[0]
    if not right:
        reading.note("content-type", f"it is {kind or 'absent'!r}")
    return reading
